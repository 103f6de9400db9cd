"""Samples as files."""

import re
from pathlib import Path

from torch import Tensor
from torchvision.utils import make_grid

from gsq_lightning.pixels import image_to_picture


def write_pictures(folder: Path, pictures: Tensor, name: str) -> None:
    """Each of (B, 3, H, W) in [-1, 1] as a PNG file, NAME-000.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        image_to_picture(picture).save(folder / f"{name}-{number:03d}.png")


def remove_pictures(folder: Path) -> None:
    """Removes what `write_pictures` wrote under numbers."""
    for path in folder.glob("*.png"):
        if re.fullmatch(r"\d+-\d{3,}", path.stem):
            path.unlink()


def write_grid(path: Path, pictures: Tensor) -> None:
    """(B, 3, H, W) in [-1, 1] as one PNG file, in rows of about the square root of B."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = round(len(pictures) ** 0.5)
    image_to_picture(make_grid(pictures.float().cpu(), nrow=columns, padding=2, pad_value=1.0)).save(path)
