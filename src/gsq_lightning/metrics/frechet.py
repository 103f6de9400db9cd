"""Fréchet distance of two sets of features (arXiv 1706.08500)."""

from typing import NamedTuple

import torch
from torch import Tensor

from gsq_lightning.metrics.features import ExtractorName
from gsq_lightning.metrics.interface import MetricValues
from gsq_lightning.metrics.originals import SetDistance


class FeatureStatistics(NamedTuple):
    """Sums over the features of a set of images; those of parts add up.

    Attributes:
        total: (F,) float64, the sum of all features.
        products: (F, F) float64, the sum of their outer products.
        images: () int64, how many.
    """

    total: Tensor
    products: Tensor
    images: Tensor

    @property
    def mean(self) -> Tensor:
        return self.total / self.images

    @property
    def covariance(self) -> Tensor:
        """Unbiased; of at least 2 images."""
        mean = self.mean
        return (self.products - self.images * torch.outer(mean, mean)) / (self.images - 1)


class FrechetDistance(SetDistance):
    """Fréchet distance of Gaussians fitted to the features of two sets; of at least 2 images each. Lower is better.

    Args:
        name: of the value.
        extractor: network whose features it is over.
        num_features: F.
    """

    higher_is_better = False
    keeps = "sums"

    def __init__(self, name: str, extractor: ExtractorName, num_features: int) -> None:
        super().__init__(name, extractor)
        self.num_features = num_features
        for side in ("real", "fake"):
            zeros = torch.zeros(num_features, dtype=torch.float64)
            self.add_state(f"{side}_total", default=zeros, dist_reduce_fx="sum")
            self.add_state(f"{side}_products", default=torch.outer(zeros, zeros), dist_reduce_fx="sum")
            self.add_state(f"{side}_images", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, features: Tensor, hashes: Tensor, real: bool) -> None:
        features = features.double()
        statistics = self._statistics("real" if real else "fake")
        statistics.total.add_(features.sum(dim=0))
        statistics.products.add_(features.T @ features)
        statistics.images.add_(len(features))

    def originals(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._statistics("real")._asdict().items()}

    def compare(self, originals: dict[str, Tensor]) -> MetricValues:
        real, fake = FeatureStatistics(**originals), self._statistics("fake")
        images = int(min(real.images, fake.images))
        if images < 2:
            note = f"{self.name} is left out: a Fréchet distance needs at least 2 images, there is {images}"
            return MetricValues({}, [note])
        notes = []
        if images < self.num_features:
            notes.append(
                f"{self.name} is over {images} images, fewer than its {self.num_features} features: it is biased "
                "upwards, and comparable only with values over the same images"
            )
        return MetricValues({self.name: float(frechet_distance(real, fake))}, notes)

    def _statistics(self, side: str) -> FeatureStatistics:
        return FeatureStatistics(*(getattr(self, f"{side}_{name}") for name in FeatureStatistics._fields))


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> Tensor:
    """‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½, scalar, float64, of at least 2 images each.

    With Σ₁ = AAᵀ and Σ₂ = BBᵀ the last trace is the sum of the singular values of AᵀB. Roots of the eigenvalues of
    Σ₁Σ₂, which torchmetrics, pytorch-fid and torch-fidelity take, turn its rounding errors of 1e-16 into 1e-8 where
    there are fewer images than features, and identical sets come out below 0.
    """
    covariances = first.covariance, second.covariance
    factors = [_factor(covariance) for covariance in covariances]
    root_trace = torch.linalg.svdvals(factors[0].T @ factors[1]).sum()
    distance = (first.mean - second.mean).square().sum() + sum(covariance.trace() for covariance in covariances)
    return (distance - 2.0 * root_trace).clamp(min=0.0)


def _factor(covariance: Tensor) -> Tensor:
    """(F, F) of rank r → (F, r) A with AAᵀ = covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1].clamp(min=0.0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()
