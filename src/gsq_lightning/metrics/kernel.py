"""Kernel distance of two sets of features, unbiased for few images (KID, arXiv 1801.01401)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gsq_lightning.metrics.feature_sets import FeatureSets
from gsq_lightning.metrics.interface import MetricValues

SUBSETS = 100  # and their size, as torch-fidelity, clean-fid and torchmetrics have them
SUBSET_SIZE = 1000
SEED = 2020  # of their choice, torch-fidelity's
TILE = 2048  # features whose kernels are in memory at once, squared


class KernelResult(NamedTuple):
    """Squared maximum mean discrepancies; an unbiased estimate may be below 0.

    Attributes:
        of_all: over all images.
        mean, std: over the subsets; None where there are too few images for them.
    """

    of_all: float
    mean: float | None = None
    std: float | None = None


class KernelDistance(FeatureSets):
    """Squared maximum mean discrepancy with the kernel k(x, y) = (x·y/F + 1)³. Lower is better.

    No image is compared with itself or with its own reconstruction, so that the estimate is unbiased for pairs as it
    is for independent sets (Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html, Lemma 6), and 0 for equal
    sets. With these comparisons, as in torch-fidelity and torchmetrics, N equal images would be too low by 2/N times
    the excess of k(x, x) over k between different images.

    Its main value is the mean over 100 subsets of 1,000 images, drawn from a fixed seed, as the usual programs report
    it, with their deviation beside it; the estimate over all images has less noise. Below 1,000 images there is only
    that.

    Args:
        name: of the main value; the others are `name_std` and `name_all`.
        extractor: network whose features it is over.
        num_features: F.
    """

    higher_is_better = False
    protocol = f"{SUBSETS} subsets of {SUBSET_SIZE}, or all where they are fewer; none against its reconstruction"

    def compare(self, originals: dict[str, Tensor]) -> MetricValues:
        real, real_hashes, (fake, fake_hashes) = originals["features"], originals["feature_hashes"], self.others()
        if min(len(real), len(fake)) < 2:
            images = min(len(real), len(fake))
            note = f"{self.name} is left out: a kernel distance needs at least 2 images, there is {images}"
            return MetricValues({}, [note])
        result = kernel_distance(real, fake, partners_of(fake_hashes, real_hashes))
        values = {self.name: result.of_all}
        if result.mean is not None and result.std is not None:
            values = {self.name: result.mean, f"{self.name}_std": result.std, f"{self.name}_all": result.of_all}
        return MetricValues(values, self.notes())


def partners_of(hashes: Tensor, others: Tensor) -> Tensor:
    """Index of the image with the same hash in another set, -1 where there is none; no image is taken twice.

    Args:
        hashes, others: (M,) and (N,) int64, sorted.

    Returns:
        (M,) int64.
    """
    repeats = torch.arange(len(hashes), device=hashes.device) - torch.searchsorted(hashes, hashes)
    partners = torch.searchsorted(others, hashes) + repeats
    found = partners < len(others)
    return partners.where(found & (others[partners.where(found, 0)] == hashes), -1)


def kernel_distance(first: Tensor, second: Tensor, partners: Tensor | None = None) -> KernelResult:
    """Between two sets of features, in float64.

    Subsets are those that torch-fidelity draws of sets in this order. All of them come out of one pass over the
    kernels of all pairs, in tiles: O(TILE² + (N + M)·F) memory.

    Args:
        first, second: (N, F) and (M, F), N and M of at least 2.
        partners: (M,) int64, index of the first set's image that each of the second is not compared with, or -1; by
            default all are compared.
    """
    members = None
    if min(len(first), len(second)) >= SUBSET_SIZE:
        members = _draw_subsets(len(first), len(second), first.device)
    if partners is None:
        partners = torch.full((len(second),), -1, device=second.device)
    within_first = _mean_kernels(first, first, _themselves(first), members and (members[0], members[0]))
    within_second = _mean_kernels(second, second, _themselves(second), members and (members[1], members[1]))
    across = _mean_kernels(first, second, partners, members)
    of_all, of_subsets = (
        in_first + in_second - 2.0 * between
        for in_first, in_second, between in zip(within_first, within_second, across, strict=True)
    )
    if members is None:
        return KernelResult(float(of_all))
    return KernelResult(float(of_all), float(of_subsets.mean()), float(of_subsets.std(correction=0)))


def _themselves(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def _mean_kernels(
    x: Tensor, y: Tensor, partners: Tensor, members: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Means of the kernel over pairs, but for those with partners.

    Args:
        x, y: (N, F) and (M, F).
        partners: (M,) int64, index in x, or -1.
        members: (SUBSETS, N) and (SUBSETS, M) float64, 1 where an image is in a subset, else 0; or none.

    Returns:
        Over all pairs, (); and over those of each subset, (SUBSETS,); float64.
    """
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    of_subsets = torch.zeros(SUBSETS, dtype=torch.float64, device=x.device)
    paired_columns = (partners >= 0).nonzero().squeeze(1)
    paired_rows = partners[paired_columns]
    for row in range(0, len(x), TILE):
        rows = x[row : row + TILE].double()
        for column in range(0, len(y), TILE):
            kernel = (rows @ y[column : column + TILE].double().T / x.shape[1] + 1.0) ** 3
            i, j = paired_rows - row, paired_columns - column
            inside = (i >= 0) & (i < kernel.shape[0]) & (j >= 0) & (j < kernel.shape[1])
            kernel[i[inside], j[inside]] = 0.0
            total += kernel.sum()
            if members is not None:
                in_rows, in_columns = members[0][:, row : row + TILE], members[1][:, column : column + TILE]
                of_subsets += (in_rows @ kernel * in_columns).sum(dim=1)
    total /= len(x) * len(y) - len(paired_rows)
    if members is not None:
        of_subsets /= SUBSET_SIZE**2 - (members[0][:, paired_rows] * members[1][:, paired_columns]).sum(dim=1)
    return total, of_subsets


def _draw_subsets(first: int, second: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(SUBSETS, first) and (SUBSETS, second) float64: 1 where an image is in a subset, else 0."""
    generator = np.random.RandomState(SEED)
    members = torch.zeros(SUBSETS, first, dtype=torch.float64), torch.zeros(SUBSETS, second, dtype=torch.float64)
    for subset in range(SUBSETS):
        for member in members:
            member[subset, generator.choice(member.shape[1], SUBSET_SIZE, replace=False)] = 1.0
    return members[0].to(device), members[1].to(device)
