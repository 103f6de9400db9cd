"""uint8 pixels ⇄ images in [-1, 1]."""

import torch
from torch import Tensor


def pixels_to_image(pixels: Tensor) -> Tensor:
    """uint8 in [0, 255] → float32 in [-1, 1]; `image_to_pixels` inverts it exactly."""
    return pixels.to(torch.float32, memory_format=torch.contiguous_format) / 127.5 - 1.0


def image_to_pixels(image: Tensor) -> Tensor:
    """[-1, 1], any float type → uint8 in [0, 255], clamped and rounded."""
    return ((image.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
