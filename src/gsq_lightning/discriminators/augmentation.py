"""Differentiable augmentation: random changes of the discriminator's input, of real and fake images alike.

DiffAugment, arXiv 2006.10738, with the strengths of the GSQ paper (arXiv 2412.02632): cutout of 20 % where DiffAugment
has 50 %, and additional resizing. All operations work on pixels in [0, 1], as in the paper's reference.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.errors import look_up, require

Operation = Literal["color", "translation", "cutout", "resize"]

BRIGHTNESS = 0.5  # added, of a range of 1
SATURATION = (0.0, 2.0)
CONTRAST = (0.5, 1.5)
TRANSLATION = 0.125  # of the height and width
CUTOUT = 0.2  # of the height and width
RESIZE = (0.8, 1.2)


class AugmentationDraw(NamedTuple):
    """Random parameters of the operations, for each image of a batch.

    Attributes:
        brightness: (B,) in [-0.5, 0.5), added to pixels in [0, 1].
        saturation: (B,) in [0, 2), factor of a pixel's distance from its own gray.
        contrast: (B,) in [0.5, 1.5), factor of a pixel's distance from the image's mean.
        shift: (B, 2) int64, pixels that the image moves down and to the right.
        hole: (B, 2) int64, row and column of the first pixel that is cut out; may lie beyond the border.
        zoom: (B,) in [0.8, 1.2), magnification about the center.
    """

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    shift: Tensor
    hole: Tensor
    zoom: Tensor


class DifferentiableAugmentation(nn.Module):
    """Random changes of color and position through which gradients flow; does nothing in eval mode.

    Pixels from beyond the border are black, and so is the cutout. The change of color may take values out of [-1, 1],
    as in DiffAugment. Each image has random parameters of its own. The GSQ paper's reference differs in "resize" alone,
    where it draws one ratio for the whole batch.

    Args:
        policy: what to do, in this order:
            "color", brightness by ±0.5 of the range, then saturation by 0 to 2, then contrast by 0.5 to 1.5;
            "translation", by up to 12.5 % of height and width, in whole pixels;
            "cutout", of a rectangle of 20 % of height and width, whose middle lies anywhere in the image;
            "resize", by 0.8 to 1.2, bilinear, in the frame of the image.
        same_draw: use the same random parameters for all batches within `within_step`, so that an image and its
            reconstruction are changed alike; otherwise each call draws new ones.

    Raises:
        InputError: for an unknown word in `policy`, or none.
    """

    def __init__(
        self, policy: Sequence[Operation] = ("color", "translation", "cutout"), same_draw: bool = False
    ) -> None:
        super().__init__()
        require(len(policy) > 0, "the augmentation policy is empty; leave the augmentation out")
        self._operations = [look_up("augmentation policy", name, OPERATIONS) for name in policy]
        self.policy = list(policy)
        self.same_draw = same_draw
        self._in_step = False
        self._draw_of_step: AugmentationDraw | None = None

    def draw(self, image: Tensor) -> AugmentationDraw:
        """Random parameters for a batch.

        Args:
            image: (B, 3, H, W); only its shape and device count.
        """
        batch, _, height, width = image.shape

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(batch, device=image.device)

        def integer(low: int, high: int) -> Tensor:
            """Both ends included."""
            return torch.randint(low, high + 1, (batch,), device=image.device)

        largest_shift = [_share(side, TRANSLATION) for side in (height, width)]
        hole_size = [_share(side, CUTOUT) for side in (height, width)]
        return AugmentationDraw(
            brightness=uniform(-BRIGHTNESS, BRIGHTNESS),
            saturation=uniform(*SATURATION),
            contrast=uniform(*CONTRAST),
            shift=torch.stack([integer(-largest, largest) for largest in largest_shift], dim=1),
            hole=torch.stack(
                # an even hole has its middle between pixels: one position more, so that both borders are treated alike
                [
                    integer(0, side - size % 2) - size // 2
                    for side, size in zip((height, width), hole_size, strict=True)
                ],
                dim=1,
            ),
            zoom=uniform(*RESIZE),
        )

    def forward(self, image: Tensor, draw: AugmentationDraw | None = None) -> Tensor:
        """Augments a batch.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            draw: parameters for each image; by default drawn now, or earlier in the same step.

        Returns:
            (B, 3, H, W) float32.
        """
        image = image.float()
        if not self.training:
            return image
        if draw is None:
            draw = self._next_draw(image)
        pixels = (image + 1) / 2
        for operation in self._operations:
            pixels = operation(pixels, draw)
        return 2 * pixels - 1

    @contextmanager
    def within_step(self) -> Iterator[None]:
        """Batches within it share their random parameters, if `same_draw` is set. All must have one shape."""
        self._in_step = True
        try:
            yield
        finally:
            self._in_step, self._draw_of_step = False, None

    def _next_draw(self, image: Tensor) -> AugmentationDraw:
        if not (self.same_draw and self._in_step):
            return self.draw(image)
        if self._draw_of_step is None:
            self._draw_of_step = self.draw(image)
        return self._draw_of_step


def _color(pixels: Tensor, draw: AugmentationDraw) -> Tensor:
    pixels = pixels + _per_image(draw.brightness)
    gray = pixels.mean(dim=1, keepdim=True)
    pixels = gray + (pixels - gray) * _per_image(draw.saturation)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (pixels - mean) * _per_image(draw.contrast)


def _translation(pixels: Tensor, draw: AugmentationDraw) -> Tensor:
    for dim in (2, 3):
        side = pixels.shape[dim]
        source = torch.arange(side, device=pixels.device) - draw.shift[:, dim - 2, None]  # (B, side)
        inside = (source >= 0) & (source < side)
        shape = [len(pixels), 1, 1, 1]
        shape[dim] = side
        pixels = pixels.gather(dim, source.clamp(0, side - 1).view(shape).expand_as(pixels)) * inside.view(shape)
    return pixels


def _cutout(pixels: Tensor, draw: AugmentationDraw) -> Tensor:
    inside = []
    for dim in (2, 3):
        side = pixels.shape[dim]
        from_hole = torch.arange(side, device=pixels.device) - draw.hole[:, dim - 2, None]  # (B, side)
        inside.append((from_hole >= 0) & (from_hole < _share(side, CUTOUT)))
    rows, columns = inside
    hole = rows[:, None, :, None] & columns[:, None, None, :]
    return pixels * ~hole


def _resize(pixels: Tensor, draw: AugmentationDraw) -> Tensor:
    # not F.affine_grid, whose product of matrices is rounded under autocast and TF32
    rows, columns = (
        ((2 * torch.arange(side, device=pixels.device) + 1) / side - 1) / draw.zoom[:, None]
        for side in pixels.shape[2:]
    )
    shape = (len(pixels), *pixels.shape[2:])
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], dim=-1)  # (B, H, W, 2)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


OPERATIONS = {"color": _color, "translation": _translation, "cutout": _cutout, "resize": _resize}


def _share(side: int, share: float) -> int:
    """A share of a side, in whole pixels."""
    return int(side * share + 0.5)


def _per_image(values: Tensor) -> Tensor:
    """(B,) → (B, 1, 1, 1)."""
    return values[:, None, None, None]
