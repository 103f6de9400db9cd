"""Learned Perceptual Image Patch Similarity (arXiv 1801.03924), version 0.1 of the lpips package."""

import torch
from torch import Tensor
from torchmetrics import Metric

from gsq_lightning.errors import InputError
from gsq_lightning.pretrained.backbones import LPIPSTrunk, load_lpips
from gsq_lightning.pretrained.frozen import FrozenNetwork

MIN_SIZE: dict[LPIPSTrunk, int] = {"alex": 31, "vgg": 16}  # pixels; below, the last layer has none left


class PerceptualDistance(Metric):
    """LPIPS averaged over images, lower is better.

    Args:
        trunk: "alex", which its authors recommend as a metric, or "vgg", which they recommend as a loss.
        weights: of the trunk: "pretrained", a path (see `load_lpips`), or "random" (tests).

    Raises:
        InputError: where the weights cannot be had.
    """

    full_state_update = False
    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self, trunk: LPIPSTrunk, weights: str) -> None:
        super().__init__()
        self.trunk: LPIPSTrunk = trunk
        self.weights = weights
        self.network = FrozenNetwork(load_lpips(trunk, weights))
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, reconstruction: Tensor, image: Tensor) -> None:
        """Two times (B, 3, H, W) uint8. Raises InputError for images too small for the trunk."""
        if min(image.shape[-2:]) < MIN_SIZE[self.trunk]:
            raise InputError(
                f"lpips_{self.trunk} needs images of at least {MIN_SIZE[self.trunk]}×{MIN_SIZE[self.trunk]} pixels, "
                f"these have {image.shape[-2]}×{image.shape[-1]}; leave it out of the metrics"
            )
        distances = self.network(reconstruction.float() / 127.5 - 1.0, image.float() / 127.5 - 1.0)
        self.total += distances.double().sum()
        self.count += len(image)

    def compute(self) -> Tensor:
        """Scalar of at least 0, float64."""
        return self.total / self.count
