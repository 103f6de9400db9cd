"""Precision and recall of generated images (arXiv 1904.06991): fidelity and variety apart."""

from typing import NamedTuple

import torch
from torch import Tensor

from gsq_lightning.metrics.feature_sets import FeatureSets
from gsq_lightning.metrics.interface import MetricValues

NEIGHBORS = 3
ROWS = 512  # images whose distances to all others are in memory at once


class PrecisionRecallResult(NamedTuple):
    """Shares in [0, 1].

    Attributes:
        precision: of the generated images that lie within the manifold of the real ones.
        recall: of the real images that lie within the manifold of the generated ones.
    """

    precision: float
    recall: float


class PrecisionRecall(FeatureSets):
    """A manifold is the union of balls around its images that reach to the third nearest other one."""

    protocol = f"{NEIGHBORS} nearest neighbors"

    def compare(self, originals: dict[str, Tensor]) -> MetricValues:
        real, fake = originals["features"], self.others()[0]
        if min(len(real), len(fake)) <= NEIGHBORS:
            note = f"{self.name} is left out: it needs more than {NEIGHBORS} images of each kind"
            return MetricValues({}, [note])
        suffix = self.name.removeprefix("precision_recall")
        result = precision_recall(real, fake)
        values = {f"precision{suffix}": result.precision, f"recall{suffix}": result.recall}
        return MetricValues(values, self.notes())


def precision_recall(real: Tensor, fake: Tensor) -> PrecisionRecallResult:
    """Of features (N, F) and (M, F) with N, M above 3, in float64."""
    return PrecisionRecallResult(precision=_share_within(fake, real), recall=_share_within(real, fake))


def _share_within(images: Tensor, manifold: Tensor) -> float:
    centers = manifold.double()
    # its nearest neighbor is an image itself
    radii = torch.cat(
        [torch.cdist(rows, centers).kthvalue(NEIGHBORS + 1, dim=1).values for rows in centers.split(ROWS)]
    )
    within = [(torch.cdist(rows.double(), centers) <= radii).any(dim=1) for rows in images.split(ROWS)]
    return float(torch.cat(within).double().mean())
