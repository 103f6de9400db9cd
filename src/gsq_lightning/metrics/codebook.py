"""How much of a codebook is used (GSQ, arXiv 2412.02632, section 4)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class CodebookStatistics(NamedTuple):
    """Of a histogram of indices.

    Attributes:
        usage: share of the codes used at least once, in [0, 1].
        perplexity: exp(entropy of the histogram), in [1, V].
    """

    usage: Tensor
    perplexity: Tensor


class CodebookUsage(Metric):
    """Counts every index seen, per group; exact over any number of batches and processes.

    Args:
        codebook_size: V.
        num_groups: G.

    Attributes:
        uses: (V,) int64, how often each code was used, by all processes, when `compute` was called last.
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(self, codebook_size: int, num_groups: int = 1) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.num_groups = num_groups
        self.uses: Tensor | None = None
        self.add_state(
            "counts", default=torch.zeros(num_groups, codebook_size, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, indices: Tensor) -> None:
        """indices (..., G) int64 in [0, V)."""
        offsets = torch.arange(self.num_groups, device=indices.device) * self.codebook_size
        flat = (indices + offsets).flatten()
        self.counts.view(-1).scatter_add_(0, flat, torch.ones_like(flat))

    def reset(self) -> None:
        super().reset()
        self.uses = None

    def compute(self) -> CodebookStatistics:
        """Over all groups pooled; scalars."""
        self.uses = self.counts.sum(dim=0)
        return codebook_statistics(self.uses)

    def compute_per_group(self) -> CodebookStatistics:
        """Of each group; (G,) each. With several processes all must call it."""
        with self.sync_context():
            return codebook_statistics(self.counts)


def codebook_statistics(counts: Tensor) -> CodebookStatistics:
    """Statistics of histograms along the last dimension, in float64.

    Args:
        counts: (..., V), how often each code was used. An empty histogram has usage 0 and perplexity 1.
    """
    frequency = counts.double() / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    entropy = -torch.special.xlogy(frequency, frequency).sum(dim=-1)
    return CodebookStatistics(usage=(counts > 0).double().mean(dim=-1), perplexity=entropy.exp())
