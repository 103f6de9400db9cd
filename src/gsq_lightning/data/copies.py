"""Copies of an image, each of which gets tokens: how generators are trained with augmentation."""

import math

from torch import Tensor

from gsq_lightning.data.transforms import center_crop
from gsq_lightning.tokens.facts import Augmentation

CORNERS = ("top left", "top right", "bottom left", "bottom right")
# names of an image's copies, the plain one first
COPIES: dict[Augmentation, tuple[str, ...]] = {
    "none": ("plain",),
    "flip": ("plain", "mirrored"),
    "ten_crop": ("center", *CORNERS, "center mirrored", *(f"{corner} mirrored" for corner in CORNERS)),
}
TEN_CROP_MARGIN = 1.1  # side of the square that ten crops are cut from / side of a crop (LlamaGen, arXiv 2406.06525)


def side_before(augmentation: Augmentation, size: int) -> int:
    """Side of the square that copies of `size` × `size` pixels are cut from."""
    return math.floor(TEN_CROP_MARGIN * size) if augmentation == "ten_crop" else size


def copies_of(pixels: Tensor, augmentation: Augmentation, size: int) -> list[Tensor]:
    """(3, S, S) with S of `side_before` → the copies, (3, size, size) each, in the order of `COPIES`."""
    if augmentation == "none":
        return [pixels]
    crops = [center_crop(pixels, size)]
    if augmentation == "ten_crop":
        near, far = slice(None, size), slice(-size, None)
        crops += [pixels[:, rows, columns] for rows in (near, far) for columns in (near, far)]
    return crops + [crop.flip(-1) for crop in crops]
