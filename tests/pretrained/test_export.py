import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, InputError
from gsq_lightning.pretrained.export import read_tokenizer

Build = Callable[..., GSQTokenizer]


def write_checkpoint(
    path: Path, tokenizer: GSQTokenizer, averaged: GSQTokenizer | None, **others: torch.Tensor
) -> None:
    """A checkpoint as training writes it, with the average of the weights where there is one."""
    state = {f"tokenizer.{name}": value for name, value in tokenizer.state_dict().items()} | others
    if averaged is not None:
        state |= {f"ema.module.{name}": value for name, value in averaged.state_dict().items()}
    training = {"ema_updates": 3 if averaged is not None else 0}
    torch.save({"tokenizer_config": tokenizer.config, "state_dict": state, "training_state": training}, path)


def test_a_saved_tokenizer_comes_back_the_same(small_tokenizer: Build, tmp_path: Path) -> None:
    tokenizer = small_tokenizer(normalization="clip").eval()
    tokenizer.save_pretrained(tmp_path / "exported")
    loaded = GSQTokenizer.from_pretrained(tmp_path / "exported")
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    assert not loaded.training
    assert loaded.config == tokenizer.config
    with torch.no_grad():
        assert torch.equal(loaded(image), tokenizer(image))


def test_a_tokenizer_that_is_saved_again_keeps_the_size_of_its_images(small_tokenizer: Build, tmp_path: Path) -> None:
    small_tokenizer().save_pretrained(tmp_path / "unknown")
    assert "image_size" not in (tmp_path / "unknown" / "config.json").read_text()
    checkpoint = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint, small_tokenizer(), None)
    content = torch.load(checkpoint) | {"data_settings": {"image_size": 64, "val_image_size": 96}}
    torch.save(content, checkpoint)
    GSQTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "first")
    GSQTokenizer.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert read_tokenizer(tmp_path / "second").image_size == 96


def test_in_half_precision_it_takes_half_the_bytes(small_tokenizer: Build, tmp_path: Path) -> None:
    tokenizer = small_tokenizer().eval()
    for name, half in (("whole", False), ("half", True)):
        tokenizer.save_pretrained(tmp_path / name, half=half)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.7 * sizes[0]
    loaded = GSQTokenizer.from_pretrained(tmp_path / "half")
    for name, value in loaded.state_dict().items():
        assert value.dtype == tokenizer.state_dict()[name].dtype
        torch.testing.assert_close(value, tokenizer.state_dict()[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("num_groups", "normalization"), [(8, "none"), (4, "none"), (1, "l2")])
def test_in_half_precision_it_keeps_its_codes(
    small_tokenizer: Build, tmp_path: Path, num_groups: int, normalization: str
) -> None:
    """In float16 close codes would be one."""
    tokenizer = small_tokenizer(num_groups=num_groups, codebook_size=4096, normalization=normalization).eval()
    tokenizer.save_pretrained(tmp_path, half=True)
    latent = torch.randn(2, tokenizer.quantizer.latent_channels, 8, 8)
    indices = GSQTokenizer.from_pretrained(tmp_path).quantizer.latent_to_indices(latent)
    assert torch.equal(indices, tokenizer.quantizer.latent_to_indices(latent))


def test_of_a_checkpoint_the_averaged_weights_or_the_raw_ones(small_tokenizer: Build, tmp_path: Path) -> None:
    raw, averaged = small_tokenizer().eval(), small_tokenizer().eval()
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    write_checkpoint(tmp_path / "averaged.ckpt", raw, averaged)
    write_checkpoint(tmp_path / "plain.ckpt", raw, None)
    with torch.no_grad():
        for name, weights, expected in (
            ("averaged", "ema", averaged),
            ("averaged", "raw", raw),
            ("plain", "ema", raw),
            ("plain", "raw", raw),
        ):
            loaded = GSQTokenizer.from_pretrained(tmp_path / f"{name}.ckpt", weights=weights)
            assert torch.equal(loaded(image), expected(image))
    with pytest.raises(InputError, match="weights is 'best'; it must be one of: ema, raw"):
        GSQTokenizer.from_pretrained(tmp_path / "plain.ckpt", weights="best")


def test_options_without_effect_are_refused(small_tokenizer: Build, tmp_path: Path) -> None:
    small_tokenizer().save_pretrained(tmp_path / "export")
    write_checkpoint(tmp_path / "last.ckpt", small_tokenizer(), None)
    for source in ("demo", tmp_path / "export"):
        with pytest.raises(InputError, match=r'kind; only a checkpoint of training has "raw" ones'):
            GSQTokenizer.from_pretrained(source, weights="raw")
        with pytest.raises(InputError, match="weights is 'fp32'; it must be one of: ema, raw"):
            GSQTokenizer.from_pretrained(source, weights="fp32")  # type: ignore[arg-type]
    for source in ("demo", tmp_path / "export", tmp_path / "last.ckpt"):
        with pytest.raises(InputError, match=r"revision is 'v1', and .* is on this machine"):
            GSQTokenizer.from_pretrained(source, revision="v1")


def test_the_card_of_another_tokenizer_does_not_stay(small_tokenizer: Build, tmp_path: Path) -> None:
    """It has another's metrics."""
    first, second = small_tokenizer(), small_tokenizer()
    first.save_pretrained(tmp_path)
    second.save_pretrained(tmp_path)  # without a card
    (tmp_path / "README.md").write_text(second.model_card("me/f4"))
    second.save_pretrained(tmp_path)  # whose card it is
    with pytest.raises(
        InputError, match=r"holds another tokenizer, and README\.md its model card; name another folder"
    ):
        first.save_pretrained(tmp_path)
    assert GSQTokenizer.from_pretrained(tmp_path).hash == second.hash


def test_a_run_stands_for_its_newest_checkpoint(small_tokenizer: Build, tmp_path: Path) -> None:
    """As for the command."""
    runs = [small_tokenizer(), small_tokenizer()]
    for number, tokenizer in enumerate(runs):
        path = tmp_path / f"version_{number}" / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        write_checkpoint(path, tokenizer, None)
    for folder, tokenizer in ((tmp_path, runs[1]), (tmp_path / "version_0", runs[0])):
        assert GSQTokenizer.from_pretrained(folder, weights="raw").hash == tokenizer.hash


@pytest.mark.parametrize("name", ["nope.ckpt", "demo_g2", "runs/none", "runs/f8/version_0"])
def test_a_slip_is_told_that_there_is_no_such_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=f"there is no .*{name}.*this package comes with demo, demo_g1, demo_g3"):
        GSQTokenizer.from_pretrained(name)


def test_of_a_checkpoint_no_more_is_read_than_needed(small_tokenizer: Build, tmp_path: Path) -> None:
    """A discriminator and optimizer states are most of a checkpoint: they stay on disk."""
    path = tmp_path / "large.ckpt"
    write_checkpoint(path, small_tokenizer(), None, **{"discriminator.weight": torch.zeros(2**24)})
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux")
    before = resident()
    saved = read_tokenizer(path)
    assert set(saved.weights) == set(small_tokenizer().state_dict())
    assert resident() - before < 2**24  # of 2**26


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_exported_folders_that_do_not_work_are_refused_in_one_line(small_tokenizer: Build, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json is missing"):
        GSQTokenizer.from_pretrained(tmp_path)
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = tokenizer.config
    config["quantizer"]["codebook_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"1 tensor: quantizer.codebook: \(32, 4\) in the file, \(64, 4\) in"):
        GSQTokenizer.from_pretrained(tmp_path)
    config["widht"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="widht"):
        GSQTokenizer.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"half a fi")
    with pytest.raises(InputError, match="cannot be read"):
        GSQTokenizer.from_pretrained(tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        GSQTokenizer.from_pretrained(tmp_path / "broken.ckpt")
    (tmp_path / "text.ckpt").write_text('{"a": 1}')
    torch.save({"a": tmp_path}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("text.ckpt", "old.ckpt"):  # where torch advises weights_only=False
        with pytest.raises(InputError, match=rf"{name} is not a .*: it is none, is damaged, or names code$"):
            GSQTokenizer.from_pretrained(tmp_path / name)
    torch.save([1], tmp_path / "list.ckpt")
    torch.save({"a": 1}, tmp_path / "other.ckpt")
    for name, message in (
        ("list.ckpt", "it holds no dictionary but list"),
        ("other.ckpt", "it has no 'tokenizer_config'"),
    ):
        with pytest.raises(InputError, match=message):
            GSQTokenizer.from_pretrained(tmp_path / name)


def test_files_of_an_export_are_no_tokenizers(small_tokenizer: Build, tmp_path: Path) -> None:
    small_tokenizer().save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(InputError, match=f"name its folder, {tmp_path}$"):
            GSQTokenizer.from_pretrained(tmp_path / name)


BLOCKED = """
import sys
for name in ("lightning", "torchmetrics", "lpips", "timm", "torchvision", "tensorboard", "vector_quantize_pytorch"):
    sys.modules[name] = None
import torch
from gsq_lightning import GSQTokenizer
tokenizer = GSQTokenizer.from_pretrained(sys.argv[1])
with torch.no_grad():
    indices = tokenizer.encode_indices(torch.zeros(1, 3, 8, 8))
    assert torch.equal(tokenizer.decode_indices(indices), tokenizer(torch.zeros(1, 3, 8, 8)))
print("torch._dynamo" in sys.modules)
"""


def test_using_an_export_needs_nothing_of_training(small_tokenizer: Build, tmp_path: Path) -> None:
    """Nor torch's compiler, whose import takes as long as torch's own."""
    small_tokenizer().save_pretrained(tmp_path)
    command = [sys.executable, "-c", BLOCKED, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "False", result.stderr


REPORT = {
    "name": "run",
    "metrics": {"rfid": 0.4881234, "psnr": "inf", "images": 50000.0},
    "notes": ["Inception's images were resized without antialiasing"],
    "data": "/home/somebody/imagenet/val",
    "image_size": "256×256",
    "protocols": {"rfid": "Inception v3 of torch-fidelity"},
}


def test_pushed_to_the_hub_with_a_card(small_tokenizer: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        def create_repo(self, repository: str, private: bool, exist_ok: bool) -> str:
            assert (private, exist_ok) == (True, True)
            return f"https://hub/{repository}"

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
            shutil.copytree(folder_path, tmp_path / repo_id)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    (tmp_path / "metrics.json").write_text(json.dumps(REPORT))
    tokenizer = small_tokenizer().eval()
    address = tokenizer.push_to_hub("me/f4", tmp_path / "metrics.json", license="apache-2.0", private=True)
    assert address == "https://hub/me/f4"
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        assert torch.equal(GSQTokenizer.from_pretrained(tmp_path / "me/f4")(image), tokenizer(image))
    card = (tmp_path / "me/f4/README.md").read_text("utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    for line in (
        'tokenizer = GSQTokenizer.from_pretrained("me/f4")',
        "| rfid | 0.488123 |",
        "| psnr | inf |",
        "- images: val",
        "- rfid: Inception v3 of torch-fidelity",
        "- Inception's images were resized without antialiasing",
    ):
        assert line in card.splitlines()
    assert "somebody" not in card
    with pytest.raises(InputError, match=r"missing\.json cannot be read as a report"):
        tokenizer.push_to_hub("me/f4", tmp_path / "missing.json")


def test_a_push_that_fails_is_one_line(small_tokenizer: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    class ConnectError(Exception):
        """As of httpx, which is no OSError."""

    class Hub:
        def create_repo(self, repository: str, private: bool, exist_ok: bool) -> str:
            raise ConnectError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    with pytest.raises(InputError, match="'me/f4' could not be written to on the Hugging Face Hub: Name or service"):
        small_tokenizer().push_to_hub("me/f4")


def test_the_card_of_an_own_quantizer_says_how_it_is_loaded(small_tokenizer: Build) -> None:
    class Mine(GroupedSphericalQuantizer):
        """A class that the package does not know."""

    tokenizer = small_tokenizer()
    tokenizer.quantizer = Mine(8, 32, 2)
    lines = tokenizer.model_card("me/f4").splitlines()
    assert "Quantizer: Mine, a class of its own." in lines
    assert 'tokenizer = GSQTokenizer.from_pretrained("me/f4", quantizer=Mine(…))' in lines
