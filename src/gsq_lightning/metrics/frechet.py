"""Fréchet distance of two sets of features (arXiv 1706.08500)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance


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


class FrechetResult(NamedTuple):
    """Of two sets of images.

    Attributes:
        distance: scalar of at least 0, float64; NaN where a set has fewer than 2 images, which have no covariance.
        real: statistics of the originals, over all processes.
        fake_images: () int64, reconstructions over all processes.
    """

    distance: Tensor
    real: FeatureStatistics
    fake_images: Tensor


class FrechetDistance(FrechetInceptionDistance):
    """torchmetrics' distance, over features that are handed to it.

    Its sums are torchmetrics'. The distance is computed from symmetric factors rather than from the eigenvalues of a
    product of two covariances, see `frechet_distance`.

    Args:
        num_features: F.

    Attributes:
        has_real: whether the statistics of the originals were set, so that theirs need not be added.
    """

    def __init__(self, num_features: int) -> None:
        features = nn.Identity()
        features.num_features = num_features  # type: ignore[assignment]
        super().__init__(feature=features)
        self.num_features = num_features
        self.has_real = False

    def update(self, features: Tensor, real: bool) -> None:
        """Adds images.

        Args:
            features: (B, F).
            real: whether of originals, or of reconstructions.
        """
        super().update(features, real)

    def set_real(self, statistics: FeatureStatistics | None) -> None:
        """Takes the statistics of all originals as given, until `reset`.

        Args:
            statistics: None on the processes other than the first, as those of all processes are summed.
        """
        self.has_real = True
        if statistics is not None:
            self.real_features_sum += statistics.total.to(self.real_features_sum.device)
            self.real_features_cov_sum += statistics.products.to(self.real_features_cov_sum.device)
            self.real_features_num_samples += statistics.images.to(self.real_features_num_samples.device)

    def compute(self) -> FrechetResult:  # type: ignore[override]
        real = FeatureStatistics(self.real_features_sum, self.real_features_cov_sum, self.real_features_num_samples)
        fake = FeatureStatistics(self.fake_features_sum, self.fake_features_cov_sum, self.fake_features_num_samples)
        return FrechetResult(frechet_distance(real, fake), FeatureStatistics(*(x.clone() for x in real)), fake.images)

    def reset(self) -> None:
        super().reset()
        self.has_real = False


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> Tensor:
    """‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½, scalar, float64; NaN where a set has fewer than 2 images.

    With Σ₁ = AAᵀ and Σ₂ = BBᵀ the last trace is the sum of the singular values of AᵀB. Roots of the eigenvalues of
    Σ₁Σ₂, which torchmetrics, pytorch-fid and torch-fidelity take, turn its rounding errors of 1e-16 into 1e-8 where
    there are fewer images than features, and identical sets come out below 0.
    """
    if first.images < 2 or second.images < 2:
        return torch.full((), torch.nan, dtype=torch.float64, device=first.total.device)
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
