"""How many images were seen, and in how many a network broke down."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class Counts(NamedTuple):
    """Over all processes.

    Attributes:
        images: () int64.
        nonfinite: () int64, reconstructions with a value that is NaN or infinite.
    """

    images: Tensor
    nonfinite: Tensor


class ImageCounts(Metric):
    """Counts images and reconstructions that are not finite."""

    full_state_update = False
    images: Tensor
    nonfinite: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("images", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("nonfinite", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, finite: Tensor) -> None:
        """finite (B,) bool, of each reconstruction."""
        self.images += len(finite)
        self.nonfinite += (~finite).sum()

    def compute(self) -> Counts:
        return Counts(self.images.clone(), self.nonfinite.clone())
