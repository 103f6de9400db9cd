"""From the bytes of an image file to its pixels."""

from functools import cache

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from gsq_lightning.pictures import picture_formats, read_rgb

PLAIN_COLORSPACES = ("YCbCr", "RGB", "Gray")


@cache
def image_suffixes() -> frozenset[str]:
    """Endings of their names, with the dot, in lower case."""
    formats = {*picture_formats(), "MPO"}  # JPEG files of stereo cameras
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def decode_image(content: bytes) -> Tensor:
    """An image file → (3, H, W) uint8 in RGB, by its content whatever its name; of an animation the first picture.

    The EXIF orientation is ignored: pixels are as stored, as ImageNet's users have them. All else is as of
    `gsq_lightning.pictures.to_rgb`. Plain JPEG files, whole and of sane size, go through simplejpeg; all others through
    Pillow. Both stand on libjpeg-turbo and give the same pixels.

    Raises:
        ValueError: where it is damaged, no image, huge, or of an unknown range.
    """
    pixels = decode_plain_jpeg(content)
    if pixels is None:
        pixels = np.array(read_rgb(content))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_plain_jpeg(content: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8; None for what is no plain, whole JPEG file of sane size."""
    if content[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
        if colorspace not in PLAIN_COLORSPACES or height * width > (Image.MAX_IMAGE_PIXELS or 0):
            return None
        return simplejpeg.decode_jpeg(content, "RGB")
    except ValueError:  # damaged, or not quite as the standard has it: Pillow decides
        return None
