"""Inception score (arXiv 1606.03498) of reconstructions."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from gsq_lightning.metrics.images import pixel_hash

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


class InceptionScore(Metric):
    """exp of the mean KL divergence of p(class | image) to the mean of p over a split, averaged over ten splits.

    Usually images are shuffled into splits; here the pixels of the original decide to which an image belongs, so that
    the score is the same for any order and number of processes, and splits are the same for every tokenizer.
    """

    full_state_update = False
    higher_is_better = True
    probabilities: Tensor
    negative_entropies: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        zeros = torch.zeros(SPLITS, dtype=torch.float64)
        self.add_state("probabilities", default=zeros[:, None].repeat(1, CLASSES), dist_reduce_fx="sum")
        self.add_state("negative_entropies", default=zeros.clone(), dist_reduce_fx="sum")
        self.add_state("counts", default=zeros.long(), dist_reduce_fx="sum")

    def update(self, logits: Tensor, image: Tensor) -> None:
        """Adds reconstructions.

        Args:
            logits: (B, 1008) of the reconstructions, without bias.
            image: (B, 3, H, W) uint8, their originals.
        """
        split = split_of(image)
        logarithms = logits.double().log_softmax(dim=1)
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


def split_of(image: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 → (B,) int64 in [0, 10), a hash of the pixels."""
    return pixel_hash(image) % SPLITS
