"""From decoded pixels to those a network sees. All randomness comes from the stream that is passed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

Crop = Literal["center", "random", "resized"]
MAX_IMAGE_SIZE = 2**14  # pixels; an image of this side has 800 MB
MAX_RESIZED_PIXELS = MAX_IMAGE_SIZE**2  # a strip of one by 60,000 pixels would be resized to more


@dataclass(frozen=True)
class ResizeAndCrop:
    """Resizes the short side (bilinear, antialiased), crops a square, perhaps flips it.

    Args:
        image_size: side of the square, in pixels.
        short_side: what the short side is resized to, at least `image_size`.
        crop: "center"; "random" at any place; or "resized", which crops a rectangle of random area and shape from the
            original and resizes that (Inception's, https://arxiv.org/abs/1409.4842).
        flip: mirror left and right with probability ½.
        crop_scale: least and greatest share of the original's area that a "resized" crop takes.
    """

    image_size: int
    short_side: int
    crop: Crop = "center"
    flip: bool = False
    crop_scale: tuple[float, float] = (0.2, 1.0)

    def __str__(self) -> str:
        crop = f"{self.crop} crop of {self.image_size}×{self.image_size}"
        return crop if self.crop == "resized" else f"short side to {self.short_side}, {crop}"

    def __call__(self, pixels: Tensor, stream: Callable[[], torch.Generator]) -> Tensor:
        """(3, H, W) uint8, and what makes the random stream if there is need of one → (3, image_size, image_size)."""
        if self.crop == "center":
            pixels = center_crop(resize(pixels, self.short_side), self.image_size)
            return flip_by_chance(pixels, stream()) if self.flip else pixels
        generator = stream()
        if self.crop == "random":
            return random_crop(resize(pixels, self.short_side), self.image_size, generator, self.flip)
        pixels = self._random_resized_crop(pixels, generator)
        return flip_by_chance(pixels, generator) if self.flip else pixels

    def _random_resized_crop(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        # torchvision draws from the global stream
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return v2.RandomResizedCrop([self.image_size], scale=self.crop_scale, antialias=True)(pixels)


def short_side_for(image_size: int, crop_ratio: float) -> int:
    """The short side of which a center crop takes that share, rounded down."""
    return int(image_size / crop_ratio + 1e-6)  # 56 / 0.56 is a little less than 100 in floating point


def resize(pixels: Tensor, short_side: int) -> Tensor:
    """(3, H, W) uint8 → its short side so long, bilinear, antialiased: torchvision's `resize` to the bit.

    Straight to the kernel, which knows pixels with their colors next to each other by the stride of a batch of one.
    """
    channels, height, width = pixels.shape
    if height < width:
        size = (short_side, int(short_side * width / height))
    else:
        size = (int(short_side * height / width), short_side)
    if size[0] * size[1] > MAX_RESIZED_PIXELS:
        raise ValueError(f"{width}×{height} pixels are too narrow: with a short side of {short_side} it would be huge")
    batch = pixels.as_strided((1, channels, height, width), (pixels.numel(), *pixels.stride()))
    return F.interpolate(batch, size, mode="bilinear", antialias=True)[0]


def center_crop(pixels: Tensor, size: int) -> Tensor:
    """(3, H, W) with H, W ≥ size → (3, size, size), where torchvision's `center_crop` cuts."""
    top, left = (round((side - size) / 2.0) for side in pixels.shape[1:])
    return pixels[:, top : top + size, left : left + size]


def random_crop(pixels: Tensor, size: int, generator: torch.Generator, flip: bool) -> Tensor:
    """(3, H, W) with H, W ≥ size → (3, size, size) at a random place, perhaps mirrored."""
    top = int(torch.randint(pixels.shape[1] - size + 1, (), generator=generator))
    left = int(torch.randint(pixels.shape[2] - size + 1, (), generator=generator))
    cropped = pixels[:, top : top + size, left : left + size]
    return flip_by_chance(cropped, generator) if flip else cropped


def flip_by_chance(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored left and right with probability ½."""
    return pixels.flip(-1) if torch.rand((), generator=generator) < 0.5 else pixels
