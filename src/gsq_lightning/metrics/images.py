"""Counts of the images that were seen, their sizes, a hash of their pixels, and reconstructions that are not finite."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

_MULTIPLIER, _MODULUS = 65_521, 2_147_483_647  # primes of the hash
_LARGEST = torch.iinfo(torch.int64).max


class Counts(NamedTuple):
    """Over all processes.

    Attributes:
        images: () int64.
        nonfinite: () int64, reconstructions with a value that is NaN or infinite.
        pixels: () int64, H·W summed over the images.
        smallest, largest: (2,) int64, least and greatest H and W.
        hash: () int64, of the pixels of all originals, whatever their order.
    """

    images: Tensor
    nonfinite: Tensor
    pixels: Tensor
    smallest: Tensor
    largest: Tensor
    hash: Tensor

    @property
    def size(self) -> tuple[int, int] | None:
        """H and W where all images have the same."""
        height, width = self.largest.tolist()
        return (height, width) if bool((self.smallest == self.largest).all()) else None

    @property
    def hash_in_words(self) -> str | None:
        """For reports."""
        return f"{int(self.hash):016x}" if self.images > 0 else None

    @property
    def size_in_words(self) -> str | None:
        """For reports."""
        if self.images == 0:
            return None
        return "several" if self.size is None else f"{self.size[0]}×{self.size[1]}"


class ImageCounts(Metric):
    """Counts images and reconstructions that are not finite."""

    full_state_update = False
    images: Tensor
    nonfinite: Tensor
    pixels: Tensor
    smallest: Tensor
    largest: Tensor
    hash: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("images", "nonfinite", "pixels", "hash"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("smallest", default=torch.full((2,), _LARGEST), dist_reduce_fx="min")
        self.add_state("largest", default=torch.zeros(2, dtype=torch.int64), dist_reduce_fx="max")

    def update(self, finite: Tensor, image: Tensor, hashes: Tensor) -> None:
        """Adds images.

        Args:
            finite: (B,) bool, of each reconstruction.
            image: (B, 3, H, W) uint8, the originals.
            hashes: (B,) int64, their `pixel_hash`.
        """
        size = torch.tensor(image.shape[-2:], device=self.images.device)
        self.images += len(image)
        self.nonfinite += (~finite).sum()
        self.pixels += len(image) * size.prod()
        self.smallest = torch.minimum(self.smallest, size)
        self.largest = torch.maximum(self.largest, size)
        self.hash += (hashes * hashes % _MODULUS).sum()  # a sum of the hashes themselves is one of all pixels summed

    def compute(self) -> Counts:
        return Counts(*(getattr(self, name).clone() for name in Counts._fields))


def pixel_hash(image: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 → (B,) int64 in [0, 2³¹ - 1), equal on all devices."""
    values = image.flatten(1).long()
    weights = torch.arange(1, values.shape[1] + 1, device=image.device) * _MULTIPLIER % _MODULUS
    return (values * weights).sum(dim=1) % _MODULUS
