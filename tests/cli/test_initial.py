"""`gsq fit --init_from`, as a user would type it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gsq_lightning.__main__ import main
from tests.cli.test_fit import TINY, error_of, images, train_tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and the run of a tiny tokenizer; its average is not its last weights."""
    folder = tmp_path_factory.mktemp("trained")
    train_tiny(folder, train_images=8, val_images=2, steps=2)
    return folder


def fit(folder: Path, *options: str) -> list[str]:
    """The command for a run in `folder`, that validates nothing."""
    where = [f"--trainer.logger.save_dir={folder / 'runs'}", "--trainer.limit_val_batches=0", "--model.metrics=null"]
    return ["fit", "--config", "quickstart.yaml", *TINY, *where, *options]


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "runs/quickstart/version_0/checkpoints/last.ckpt", weights_only=True)
    return found


def test_weights_in_and_steps_fresh_and_a_resumed_run_goes_on_without_them(trained: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.ckpt"
    source.write_bytes((trained / "runs/quickstart/version_0/checkpoints/last.ckpt").read_bytes())
    still = ["--model.tokenizer_optimizer.lr=0", "--model.discriminator_optimizer.lr=0"]
    command = fit(tmp_path, *images(trained / "images"), *still, f"--init_from={source}")
    main([*command, "--trainer.max_steps=1"])
    before, after = torch.load(source, weights_only=True), content(tmp_path)
    assert after["global_step"] == after["training_state"]["ema_updates"] == 1
    for name, value in after["state_dict"].items():
        part, _, rest = name.partition(".")
        expected = before["state_dict"][f"ema.module.{rest}" if part == "tokenizer" else name]
        assert torch.equal(value, expected), name
    run = tmp_path / "runs/quickstart/version_0"
    assert yaml.safe_load((run / "config.yaml").read_text())["init_from"] == str(source)
    record = json.loads((run / "init_from.json").read_text())
    assert len(record["loaded"]) > 50
    assert not record["fresh"]
    source.unlink()
    main([*command, "--trainer.max_steps=2"])
    assert content(tmp_path)["global_step"] == 2
    main([*fit(tmp_path), f"--ckpt_path={run}", "--trainer.max_steps=3"])  # its config names the file too


def test_the_decoder_alone_of_a_run(trained: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    run = trained / "runs/quickstart"
    main(["export", str(run / "version_0/checkpoints/last.ckpt"), str(export)])
    overlay = ["--config", "finetune/decoder.yaml", *images(trained / "images"), "--trainer.max_steps=1"]
    main(fit(tmp_path, *overlay, f"--init_from={export}"))
    before = torch.load(run / "version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    after = content(tmp_path)["state_dict"]
    for name, value in after.items():
        if name.startswith("tokenizer."):
            same = torch.equal(value, before[f"ema.module.{name.removeprefix('tokenizer.')}"])
            assert same == (not name.startswith("tokenizer.decoder.")), name
    record = json.loads((tmp_path / "runs/quickstart/version_0/init_from.json").read_text())
    assert not record["fresh"]


WRONG = {
    "no such file": (["--init_from=none/of/these.ckpt"], "there is no none/of/these.ckpt"),
    "a folder of images": (["--init_from=IMAGES"], "there is no checkpoint below"),
    "another architecture": (
        ["--init_from=RUN", "--model.tokenizer.base_channels=16"],
        "base_channels 8 → 16",
    ),
    "another discriminator": (
        ["--init_from=RUN", "--model.discriminator.channels=8"],
        "--init.discriminator false the discriminator",
    ),
    "no discriminator in it": (["--init_from=EXPORT", "--init.discriminator=true"], "holds no discriminator"),
    "no discriminator here": (
        [
            "--init_from=RUN",
            "--init.discriminator=true",
            "--model.discriminator=null",
            "--model.discriminator_start_step=0",
        ],
        "this training has no discriminator",
    ),
    "resume and start": (["--init_from=RUN", "--ckpt_path=RUN"], "give one of the two"),
    "without effect": (["--init.discriminator=false"], "have no effect without --init_from"),
    "a random encoder": (["--model.trained=decoder"], "would stay random"),
    "part of a random encoder": (
        ["--init_from=RUN", "--model.trained=decoder", "--init.exclude=[quantizer.*]"],
        "1 tensor of encoder and codebook would stay random",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    flags, message = WRONG[case]
    places = {"IMAGES": trained / "images", "RUN": trained / "runs/quickstart", "EXPORT": trained / "export"}
    if not places["EXPORT"].exists():
        main(["export", str(places["RUN"] / "version_0/checkpoints/last.ckpt"), str(places["EXPORT"])])
    for word, place in places.items():
        flags = [flag.replace(f"={word}", f"={place}") for flag in flags]
    assert message in error_of(fit(tmp_path, *images(trained / "images"), *flags), capsys)
    assert not (tmp_path / "runs").exists()
