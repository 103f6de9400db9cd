"""`gsq export`, `gsq convert`, and released checkpoints in the other commands."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gsq_lightning import GSQTokenizer
from gsq_lightning.__main__ import main
from tests.conftest import write_images
from tests.pretrained.reference_network import Network, make_config


def write_checkpoint(path: Path, tokenizer: GSQTokenizer) -> None:
    state = {f"tokenizer.{name}": value for name, value in tokenizer.state_dict().items()}
    training_state = {"ema_updates": 0}
    torch.save({"tokenizer_config": tokenizer.config, "state_dict": state, "training_state": training_state}, path)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    network = Network(make_config())
    network.reconstruct(torch.zeros(1, 3, 16, 16))
    state = {name: weight.detach() for name, weight in network.state.items()}
    torch.save({"model_state_dict": state, "config": network.config}, tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


def same(first: GSQTokenizer, second: GSQTokenizer) -> bool:
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        return torch.equal(first(image), second(image))


def test_a_checkpoint_becomes_a_folder(small_tokenizer: Callable[..., GSQTokenizer], tmp_path: Path) -> None:
    tokenizer = small_tokenizer().eval()
    write_checkpoint(tmp_path / "last.ckpt", tokenizer)
    report = tmp_path / "validate" / "last" / "metrics.json"
    report.parent.mkdir(parents=True)
    sha256 = hashlib.sha256((tmp_path / "last.ckpt").read_bytes()).hexdigest()
    report.write_text(json.dumps({"name": "run", "metrics": {"psnr": 21.5}, "checkpoint_sha256": sha256}))
    main(["export", str(tmp_path / "last.ckpt"), str(tmp_path / "out"), "--license", "mit"])
    assert same(GSQTokenizer.from_pretrained(tmp_path / "out"), tokenizer)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "license: mit" in card
    assert "| psnr | 21.5 |" in card


@pytest.mark.parametrize("place", ["runs/f8", "runs/f8/version_0"])
def test_a_run_stands_for_its_newest_checkpoint(
    small_tokenizer: Callable[..., GSQTokenizer], tmp_path: Path, place: str
) -> None:
    tokenizer = small_tokenizer().eval()
    (tmp_path / "runs" / "f8" / "version_0" / "checkpoints").mkdir(parents=True)
    write_checkpoint(tmp_path / "runs" / "f8" / "version_0" / "checkpoints" / "last.ckpt", tokenizer)
    main(["export", str(tmp_path / place), str(tmp_path / "out")])
    assert same(GSQTokenizer.from_pretrained(tmp_path / "out"), tokenizer)


def test_a_folder_with_anything_in_it_is_left_alone(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("mine")
    with pytest.raises(SystemExit) as exit_info:
        main(["convert", str(released), str(tmp_path / "out")])
    assert exit_info.value.code == 2
    assert "exists and is not empty; name another folder" in capsys.readouterr().err
    assert (tmp_path / "out" / "config.json").read_text() == "mine"


def test_a_released_checkpoint_becomes_a_folder_of_ours(
    small_tokenizer: Callable[..., GSQTokenizer], released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["convert", str(released), str(tmp_path / "out")])
    assert same(GSQTokenizer.from_pretrained(tmp_path / "out"), GSQTokenizer.from_released(released))
    assert "its card has no metrics" in capsys.readouterr().out
    write_checkpoint(tmp_path / "ours.ckpt", small_tokenizer())
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "ours.ckpt"), str(tmp_path / "other")])
    assert "is no checkpoint that GSQ's authors released" in capsys.readouterr().err


def test_a_released_checkpoint_is_validated_as_it_is(released: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2, size=(16, 16))
    main(
        [
            *("validate", f"--ckpt_path={released}", f"--data.root={tmp_path / 'images'}"),
            *("--data.image_size=16", "--data.num_workers=0", "--model.metrics.names=[psnr,codebook]"),
            "--trainer.accelerator=cpu",
        ]
    )
    (path,) = tmp_path.rglob("metrics.json")
    report = json.loads(path.read_text())
    assert report["metrics"]["images"] == 2
    assert report["metrics"]["bits_per_image"] == 2 * 2 * 2 * 6  # h·w·G·log2 V


def test_a_tokenizer_of_the_package_is_a_name_for_all_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of that name without a tokenizer hides it from none; and nothing is written into the package."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "demo", 2, size=(16, 16))
    data = ["--data.root=demo", "--data.image_size=16", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    main(["validate", "--ckpt_path=demo", *data, "--model.metrics.names=[psnr]"])
    assert json.loads(Path("demo_g3-report/validate/metrics.json").read_text())["name"] == "demo_g3"
    main(["predict", "--ckpt_path=demo_g1", *data])
    assert list(Path("tokens/val").glob("*.safetensors"))
    main(["export", "demo", "out"])
    assert GSQTokenizer.from_pretrained("out").hash == GSQTokenizer.from_pretrained("demo_g3").hash
    for command in (["export", "demo", "raw"], ["validate", "--ckpt_path=demo", *data]):
        with pytest.raises(SystemExit):
            main([*command, "--weights=raw"])
        assert "holds weights of one kind" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["validate", "--ckpt_path=demo_g2", *data])
    assert "there is no checkpoint demo_g2" in capsys.readouterr().err


def test_the_folder_of_a_released_checkpoint_is_validated(released: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 1, size=(16, 16))
    data = [f"--data.root={tmp_path / 'images'}", "--data.image_size=16", "--data.num_workers=0"]
    main(["validate", f"--ckpt_path={released.parent}", *data, "--model.metrics.names=[psnr]"])
    assert (tmp_path / "validate" / "checkpoint" / "metrics.json").is_file()
