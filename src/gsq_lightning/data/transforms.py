"""From a decoded photograph to the pixels a network sees. All randomness comes from the generator that is passed."""

from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Crop = Literal["center", "random"]


@dataclass(frozen=True)
class ResizeAndCrop:
    """Resizes the short side (bilinear, antialiased), crops a square, perhaps flips it.

    Args:
        image_size: side of the square, in pixels.
        short_side: what the short side is resized to, at least `image_size`.
        crop: "center", or "random" at any place.
        flip: mirror left and right with probability ½.
    """

    image_size: int
    short_side: int
    crop: Crop = "center"
    flip: bool = False

    def __str__(self) -> str:
        return f"short side to {self.short_side}, {self.crop} crop of {self.image_size}×{self.image_size}"

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Tensor:
        """RGB image → (3, image_size, image_size) uint8."""
        # PIL's bilinear filter widens when it shrinks an image: it is antialiased
        image = F.resize(image, [self.short_side], F.InterpolationMode.BILINEAR)
        if self.crop == "random":
            return random_crop(F.pil_to_tensor(image), self.image_size, generator, self.flip)
        pixels = F.pil_to_tensor(F.center_crop(image, [self.image_size]))
        return flip_by_chance(pixels, generator) if self.flip else pixels


def random_crop(pixels: Tensor, size: int, generator: torch.Generator, flip: bool) -> Tensor:
    """(3, H, W) with H, W ≥ size → (3, size, size) at a random place, perhaps mirrored."""
    top = int(torch.randint(pixels.shape[1] - size + 1, (), generator=generator))
    left = int(torch.randint(pixels.shape[2] - size + 1, (), generator=generator))
    cropped = pixels[:, top : top + size, left : left + size]
    return flip_by_chance(cropped, generator) if flip else cropped


def flip_by_chance(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored left and right with probability ½."""
    return pixels.flip(-1) if torch.rand((), generator=generator) < 0.5 else pixels
