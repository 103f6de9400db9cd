"""Learned Perceptual Image Patch Similarity (arXiv 1801.03924), version 0.1 of the lpips package."""

from torch import Tensor

from gsq_lightning.errors import require
from gsq_lightning.metrics.interface import PixelMetric
from gsq_lightning.pixels import pixels_to_image
from gsq_lightning.pretrained.backbones import LPIPSTrunk, load_lpips
from gsq_lightning.pretrained.frozen import FrozenNetwork

MIN_SIZE: dict[LPIPSTrunk, int] = {"alex": 31, "vgg": 16}  # pixels; below, the last layer has none left


class PerceptualDistance(PixelMetric):
    """LPIPS averaged over images, lower is better.

    Args:
        trunk: "alex", which its authors recommend as a metric, or "vgg", which they recommend as a loss.
        weights: those of the trunk: "pretrained", a path (see `load_lpips`), or "random" (tests).

    Raises:
        InputError: where the weights cannot be had.
    """

    higher_is_better = False

    def __init__(self, trunk: LPIPSTrunk, weights: str) -> None:
        super().__init__()
        self.name = f"lpips_{trunk}"
        self.min_size = MIN_SIZE[trunk]
        self.network = FrozenNetwork(load_lpips(trunk, weights))

    def of_each(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Two times (B, 3, H, W) uint8 → (B,) of at least 0. Raises InputError for images too small for the trunk."""
        require(
            min(image.shape[-2:]) >= self.min_size,
            f"{self.name} needs images of at least {self.min_size}×{self.min_size} pixels, these have "
            f"{image.shape[-2]}×{image.shape[-1]}; leave it out of the metrics",
        )
        return self.network(pixels_to_image(reconstruction), pixels_to_image(image)).flatten()
