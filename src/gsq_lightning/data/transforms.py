"""Crops, resizing and flips. All randomness comes from the generator that is passed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from gsq_lightning.errors import one_of

Crop = Literal["center", "random", "resized"]
CROP_SCALE = (0.2, 1.0)  # of a "resized" crop
MAX_IMAGE_SIZE = 2**14  # pixels; an image of this side has 800 MB
MAX_RESIZED_PIXELS = MAX_IMAGE_SIZE**2  # a strip of one by 60,000 pixels would be resized to more


@dataclass(frozen=True)
class ResizeAndCrop:
    """Resizes the short side (bilinear, antialiased), crops a square, perhaps flips it.

    Args:
        image_size: side of the square, in pixels.
        short_side: what the short side is resized to, at least `image_size`.
        crop: "center"; "random" at any place; or "resized", which crops a rectangle of random area and shape from the
            original and resizes that (Inception's, https://arxiv.org/abs/1409.4842), of at least the pixels of the
            square where the original has them: what is enlarged is blurred, and a tokenizer would learn the blur.
        flip: mirror left and right with probability ½.
        crop_scale: least and greatest share of the original's area that a "resized" crop takes; of a small original
            more.
        enlarge: whether images with a shorter side than `short_side` are enlarged to it; else only to `image_size`.

    Raises:
        InputError: for another word for the crop.
    """

    image_size: int
    short_side: int
    crop: Crop = "center"
    flip: bool = False
    crop_scale: tuple[float, float] = CROP_SCALE
    enlarge: bool = True

    def __post_init__(self) -> None:
        one_of("crop", self.crop, Crop)

    def __str__(self) -> str:
        crop = f"{self.crop} crop of {self.image_size}×{self.image_size}"
        if self.crop == "resized":
            return crop
        return f"short side to {self.short_side}{'' if self.enlarge else ' at most'}, {crop}"

    def __call__(self, pixels: Tensor, stream: Callable[[], torch.Generator]) -> Tensor:
        """(3, H, W) uint8, and what makes the random stream if there is need of one → (3, image_size, image_size)."""
        if self.crop == "center" and not self.flip:
            return center_crop(self._resized(pixels), self.image_size)
        generator = stream()
        if self.crop == "resized":
            pixels = self._random_resized_crop(pixels, generator)
        elif self.crop == "random":
            pixels = random_crop(self._resized(pixels), self.image_size, generator)
        else:
            pixels = center_crop(self._resized(pixels), self.image_size)
        if self.flip and torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(-1)
        return pixels

    def _resized(self, pixels: Tensor) -> Tensor:
        short_side = self.short_side
        if not self.enlarge:
            short_side = max(min(short_side, *pixels.shape[1:]), self.image_size)
        return resize(pixels, short_side)

    def _random_resized_crop(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        needed = min(1.0, self.image_size**2 / pixels[0].numel())
        least, greatest = (max(share, needed) for share in self.crop_scale)
        # torchvision draws from the global stream
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return v2.RandomResizedCrop([self.image_size], scale=(least, greatest), antialias=True)(pixels)


def short_side_for(image_size: int, crop_ratio: float) -> int:
    """The short side of which a center crop takes that share, rounded down."""
    return int(image_size / crop_ratio + 1e-6)  # 56 / 0.56 is a little less than 100 in floating point


def resize(pixels: Tensor, short_side: int) -> Tensor:
    """(3, H, W) uint8 → its short side so long, bilinear, antialiased: bit-exact with torchvision's `resize`.

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


def random_crop(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """(3, H, W) with H, W ≥ size → (3, size, size) at a random place."""
    top = int(torch.randint(pixels.shape[1] - size + 1, (), generator=generator))
    left = int(torch.randint(pixels.shape[2] - size + 1, (), generator=generator))
    return pixels[:, top : top + size, left : left + size]
