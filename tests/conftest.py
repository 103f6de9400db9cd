"""What tests of several parts need: small tokenizers, folders of images, a quiet and repeatable torch."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer

# quickstart.yaml without trained networks, so that it takes images of any size
WITHOUT_WEIGHTS = (
    "--model.discriminator=PatchDiscriminator",
    "--model.perceptual_loss=null",
    "--model.tokenizer_scheduler=null",
    "--model.metrics.names=[psnr,ssim,codebook,rfd_random]",
)


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_statistics(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests leave the user's cache alone, and share nothing through it."""
    monkeypatch.setenv("GSQ_CACHE", str(tmp_path_factory.mktemp("statistics")))


@pytest.fixture
def small_tokenizer() -> Callable[..., GSQTokenizer]:
    """A factory of f4 tokenizers of a few thousand weights; takes the quantizer's arguments."""

    def build(
        latent_channels: int = 8, codebook_size: int = 32, num_groups: int = 2, normalization: str = "l2"
    ) -> GSQTokenizer:
        quantizer = GroupedSphericalQuantizer(latent_channels, codebook_size, num_groups, normalization)
        return GSQTokenizer(
            quantizer,
            channel_multipliers=(1, 1, 2),
            base_channels=8,
            encoder_blocks=1,
            decoder_blocks=1,
            norm_groups=4,
        )

    return build


def write_images(folder: Path, count: int, size: tuple[int, int] = (40, 36), seed: int = 0) -> list[Path]:
    """Writes `count` different smooth images of size (width, height) as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        path = folder / f"image_{number:03d}.png"
        coarse.resize(size, Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


def write_page_files(page: str, folder: Path) -> None:
    """Writes the files that a page of docs/ shows, each of all the code blocks that begin with its name."""
    for name, content in re.findall(r"```\w+\n# (\S+\.(?:py|yaml))\n(.*?)```", page, flags=re.DOTALL):
        with (folder / name).open("a") as file:
            file.write(content)


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """A folder with train (2 classes, 8 images each) and val (2 classes, 3 images each)."""
    root = tmp_path / "images"
    for split, count in (("train", 8), ("val", 3)):
        for number, name in enumerate(("cats", "dogs")):
            write_images(root / split / name, count, seed=10 * number + count)
    return root


def run_tests_alone(file: str, part: str = "test", **environment: str) -> None:
    """Runs tests in a process of their own, and asserts that they pass.

    Args:
        file: of the tests, in this folder.
        part: of them, as `pytest -k` has it.
        environment: variables of the process, beside those of this one.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", part]
    result = subprocess.run(
        [*command, str(Path(__file__).parent / file)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:]
