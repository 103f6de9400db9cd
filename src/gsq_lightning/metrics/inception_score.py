"""Inception score (arXiv 1606.03498)."""

from typing import NamedTuple

import torch
from torch import Tensor

from gsq_lightning.metrics.features import Features
from gsq_lightning.metrics.interface import FeatureMetric, MetricValues

SPLITS = 10  # as the field computes it
CLASSES = 1008  # of the Inception v3 that FID is defined by


class InceptionScoreResult(NamedTuple):
    """Over the splits of a set.

    Attributes:
        mean, std: of the splits' scores; of at least 1, higher is better. NaN where a split has no image.
        smallest_split: images in the split that has least.
    """

    mean: Tensor
    std: Tensor
    smallest_split: Tensor


class InceptionScore(FeatureMetric):
    """exp of the mean KL divergence of p(class | image) to the mean of p over a split, averaged over ten splits.

    Usually images are shuffled into splits; here a hash of the original's pixels decides to which an image belongs, so
    that the score is the same for any order and number of processes, and splits are the same for every tokenizer.
    """

    higher_is_better = True
    probabilities: Tensor
    negative_entropies: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__("inception_score", "inception")
        zeros = torch.zeros(SPLITS, dtype=torch.float64)
        self.add_state("probabilities", default=zeros[:, None].repeat(1, CLASSES), dist_reduce_fx="sum")
        self.add_state("negative_entropies", default=zeros.clone(), dist_reduce_fx="sum")
        self.add_state("counts", default=zeros.long(), dist_reduce_fx="sum")

    def update(self, features: Features | None, hashes: Tensor, real: bool = False) -> None:
        """Adds images. Originals, which have no score here, are passed over.

        Args:
            features: their logits are (B, 1008), without bias.
            hashes: (B,) int64, of the pixels of their originals; of their own where they have none.
            real: whether these are originals.
        """
        if real or features is None:
            return
        assert features.logits is not None
        split = hashes % SPLITS
        logarithms = features.logits.double().log_softmax(dim=1)
        probabilities = logarithms.exp()
        self.probabilities.index_add_(0, split, probabilities)
        self.negative_entropies.index_add_(0, split, (probabilities * logarithms).sum(dim=1))
        self.counts.index_add_(0, split, torch.ones_like(split))

    def compute(self) -> InceptionScoreResult:
        counts = self.counts.double()
        mean = self.probabilities / counts[:, None]
        cross_entropies = torch.special.xlogy(mean, mean).sum(dim=1)
        scores = (self.negative_entropies / counts - cross_entropies).exp()
        return InceptionScoreResult(scores.mean(), scores.std(correction=0), self.counts.min())

    def values(self) -> MetricValues:
        result = self.compute()
        if result.smallest_split == 0:
            return MetricValues({}, [f"{self.name} is left out: one of its ten splits has no image"])
        return MetricValues({self.name: float(result.mean), f"{self.name}_std": float(result.std)}, [])
