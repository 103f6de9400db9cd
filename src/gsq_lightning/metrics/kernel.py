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

    It is unbiased for sets that are independent of each other, as generated images are. N reconstructions and their
    originals are not: where the two are equal it is -2/N times the excess of k(x, x) over k between different images.

    Its main value is the mean over 100 subsets of 1,000 images, drawn from a fixed seed, as the usual programs report
    it, with their deviation beside it; the estimate over all images has less noise. Below 1,000 images there is only
    that.

    Args:
        name: of the main value; the others are `name_std` and `name_all`.
        extractor: network whose features it is over.
        num_features: F.
    """

    higher_is_better = False
    protocol = f"{SUBSETS} subsets of {SUBSET_SIZE} images, or all where they are fewer"

    def compare(self, originals: dict[str, Tensor]) -> MetricValues:
        real, fake = originals["features"], self.others()
        if min(len(real), len(fake)) < 2:
            note = f"{self.name} is left out: a kernel distance needs at least 2 images, there is {len(fake)}"
            return MetricValues({}, [note])
        result = kernel_distance(real, fake)
        values = {self.name: result.of_all}
        if result.mean is not None and result.std is not None:
            values = {self.name: result.mean, f"{self.name}_std": result.std, f"{self.name}_all": result.of_all}
        return MetricValues(values, self.notes())


def kernel_distance(first: Tensor, second: Tensor) -> KernelResult:
    """Between two sets of features, (N, F) and (M, F) with N, M of at least 2, in float64.

    Subsets are those that torch-fidelity draws of sets in this order. All of them come out of one pass over the
    kernels of all pairs, in tiles: O(TILE² + (N + M)·F) memory.
    """
    members = None
    if min(len(first), len(second)) >= SUBSET_SIZE:
        members = _draw_subsets(len(first), len(second), first.device)
    within_first = _kernel_sums(first, first, members and (members[0], members[0]))
    within_second = _kernel_sums(second, second, members and (members[1], members[1]))
    across = _kernel_sums(first, second, members)

    def unbiased(index: int, sizes: tuple[int, int]) -> Tensor:
        """Of the sums over all images (index 0), or over each subset (1)."""
        n, m = sizes
        return (
            within_first[index] / (n * (n - 1)) + within_second[index] / (m * (m - 1)) - 2.0 * across[index] / (n * m)
        )

    of_all = float(unbiased(0, (len(first), len(second))))
    if members is None:
        return KernelResult(of_all)
    of_subsets = unbiased(1, (SUBSET_SIZE, SUBSET_SIZE))
    return KernelResult(of_all, float(of_subsets.mean()), float(of_subsets.std(correction=0)))


def _kernel_sums(x: Tensor, y: Tensor, members: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Sums of the kernel over pairs, those of an image with itself left out where x is y.

    Args:
        x, y: (N, F) and (M, F).
        members: (SUBSETS, N) and (SUBSETS, M) float64, 1 where an image is in a subset, else 0; or none.

    Returns:
        Over all pairs, (); and over those of each subset, (SUBSETS,).
    """
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    of_subsets = torch.zeros(SUBSETS, dtype=torch.float64, device=x.device)
    for row in range(0, len(x), TILE):
        rows = x[row : row + TILE].double()
        for column in range(0, len(y), TILE):
            kernel = (rows @ y[column : column + TILE].double().T / x.shape[1] + 1.0) ** 3
            if x is y and row == column:
                kernel.fill_diagonal_(0.0)
            total += kernel.sum()
            if members is not None:
                in_rows, in_columns = members[0][:, row : row + TILE], members[1][:, column : column + TILE]
                of_subsets += (in_rows @ kernel * in_columns).sum(dim=1)
    return total, of_subsets


def _draw_subsets(first: int, second: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(SUBSETS, first) and (SUBSETS, second) float64: 1 where an image is in a subset, else 0."""
    generator = np.random.RandomState(SEED)
    members = torch.zeros(SUBSETS, first, dtype=torch.float64), torch.zeros(SUBSETS, second, dtype=torch.float64)
    for subset in range(SUBSETS):
        for member in members:
            member[subset, generator.choice(member.shape[1], SUBSET_SIZE, replace=False)] = 1.0
    return members[0].to(device), members[1].to(device)
