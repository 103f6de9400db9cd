"""The tokenizers that come with the package."""

from pathlib import Path

import pytest
import torch

from gsq_lightning import GSQTokenizer
from gsq_lightning.cli.weights import Objects
from gsq_lightning.data.photographs import VAL_PHOTOGRAPHS, load_photograph
from gsq_lightning.pixels import pixels_to_image
from gsq_lightning.pretrained import export

CONFIGS = {"demo_g1": ("demo_g1.yaml",), "demo_g3": ("demo_g1.yaml", "demo_g3.yaml")}
GROUPS = {"demo_g1": 1, "demo_g3": 3, "demo": 3}
PSNR = {"demo_g1": 24.5, "demo_g3": 26.0, "demo": 26.0}  # dB, a little below what they reach


@pytest.fixture(autouse=True)
def _without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "reachable", lambda url: pytest.fail("asked the Hub"))


@pytest.mark.parametrize("name", GROUPS)
def test_a_demo_reconstructs_photographs_that_it_was_not_trained_on(name: str) -> None:
    tokenizer = GSQTokenizer.from_pretrained(name)
    pixels = torch.stack([load_photograph(photograph, 256)[:, :256, 40:296] for photograph in VAL_PHOTOGRAPHS])
    image = pixels_to_image(pixels)
    with torch.no_grad():
        indices = tokenizer.encode_indices(image)
        error = (tokenizer.decode_indices(indices).clamp(-1, 1) - image).square().mean(dim=(1, 2, 3))
    assert indices.shape == (2, 32, 32, GROUPS[name])
    assert tokenizer.bits_per_image(256, 256) == 13 * 32 * 32 * GROUPS[name]
    assert float((10 * torch.log10(4 / error)).min()) > PSNR[name]


def test_demo_is_the_better_one() -> None:
    assert GSQTokenizer.from_pretrained("demo").hash == GSQTokenizer.from_pretrained("demo_g3").hash


@pytest.mark.parametrize("name", CONFIGS)
def test_its_recipe_trains_a_tokenizer_of_its_shape(name: str) -> None:
    with torch.device("meta"):
        recipe = Objects("weights", [text for config in CONFIGS[name] for text in ("--config", config)])
    assert recipe.model.tokenizer.config == GSQTokenizer.from_pretrained(name).config


@pytest.mark.parametrize("overlay", [(), ("demo_large.yaml",)])
def test_fewer_images_than_steps_between_validations_are_enough(overlay: tuple[str, ...]) -> None:
    """Lightning refuses an interval longer than an epoch, unless it counts over epochs."""
    with torch.device("meta"):
        configs = [text for config in ("demo_g1.yaml", *overlay) for text in ("--config", config)]
        trainer = Objects("weights", configs).config.trainer
    assert trainer.val_check_interval >= 500
    assert trainer.check_val_every_n_epoch is None


@pytest.mark.parametrize("name", CONFIGS)
def test_it_fits_into_the_wheel(name: str) -> None:
    folder = export.DEMOS / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    assert (folder / "README.md").read_text("utf-8").startswith("---\nlicense:")


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = GSQTokenizer.from_pretrained("demo_g1")
    other.save_pretrained(tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    assert GSQTokenizer.from_pretrained("demo").hash == other.hash


def test_a_folder_of_that_name_that_holds_no_tokenizer_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert GSQTokenizer.from_pretrained("demo").config["quantizer"]["num_groups"] == 3
