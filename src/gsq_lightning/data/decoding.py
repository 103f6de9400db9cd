"""From the bytes of an image file to its pixels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

# what Pillow raises for damaged files, files that are no images, and images of absurd size
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)

PLAIN_COLORSPACES = ("YCbCr", "RGB", "Gray")


class ImageDecoder:
    """Decodes image files to RGB, by their content whatever their name; of an animation the first picture.

    Transparency is dropped and the EXIF orientation ignored, as ImageNet's users do; 16 bits become 8. Plain JPEG
    files, whole and of sane size, go through simplejpeg into memory that is used again, which spares the system the
    half megabyte of fresh pages that each image would take; all others through Pillow. Both stand on libjpeg-turbo
    and give the same pixels.
    """

    def __init__(self) -> None:
        self._buffer = np.empty(0, dtype=np.uint8)
        self._start = 0  # its address

    def decode(self, content: bytes) -> Tensor:
        """An image file → (3, H, W) uint8, which holds until the next call.

        Raises:
            OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError: where it is damaged, no image,
                or huge.
        """
        pixels = self._decode_plain_jpeg(content)
        if pixels is None:
            try:
                with Image.open(io.BytesIO(content)) as image:
                    pixels = np.array(to_rgb(image))
            except UnidentifiedImageError as error:
                raise ValueError("its content is no image of a known format") from error
            except UNREADABLE:
                raise
            except Exception as error:  # what Pillow's readers of rare formats make of damaged files
                raise ValueError(f"{type(error).__name__}: {error}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def owns(self, pixels: Tensor) -> bool:
        """Whether a tensor lies in the memory that the next call writes to."""
        return self._start <= pixels.data_ptr() < self._start + self._buffer.nbytes

    def _decode_plain_jpeg(self, content: bytes) -> np.ndarray | None:
        if content[:2] != b"\xff\xd8":
            return None
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
            if colorspace not in PLAIN_COLORSPACES or height * width > (Image.MAX_IMAGE_PIXELS or 0):
                return None
            if self._buffer.nbytes < 3 * height * width:
                self._buffer = np.empty(3 * height * width, dtype=np.uint8)
                self._start = self._buffer.ctypes.data
            return simplejpeg.decode_jpeg(content, "RGB", buffer=self._buffer)
        except ValueError:  # damaged, or not quite as the standard has it: Pillow decides
            return None

    def __getstate__(self) -> dict[str, Any]:
        return {"_buffer": np.empty(0, dtype=np.uint8), "_start": 0}


def read_image(path: Path) -> Image.Image:
    """An image file in RGB. Raises what `ImageDecoder.decode` does."""
    with Image.open(path) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """The first picture of an opened file in RGB."""
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would cut off at 255
        eight_bits = np.asarray(image).astype(np.int64) // 257
        return Image.fromarray(eight_bits.clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
