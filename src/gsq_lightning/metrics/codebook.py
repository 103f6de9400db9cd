"""How much of a codebook is used (GSQ, arXiv 2412.02632, section 4)."""

from typing import NamedTuple

import torch
from torch import Tensor

from gsq_lightning.errors import require
from gsq_lightning.metrics.interface import ImageMetric, MetricValues


class CodebookShape(NamedTuple):
    """Of a quantizer.

    Attributes:
        codebook_size: V.
        num_groups: G.
        num_codebooks: 1 where all groups share one codebook, else G.
    """

    codebook_size: int
    num_groups: int = 1
    num_codebooks: int = 1


class CodebookStatistics(NamedTuple):
    """Of histograms of indices.

    Attributes:
        usage: share of the codes used at least once, in [0, 1].
        perplexity: exp(entropy of the histogram), in [1, V].
    """

    usage: Tensor
    perplexity: Tensor


class CodebookUsage(ImageMetric):
    """Counts every index seen, per group; exact over any number of batches and ranks.

    Groups that share a codebook are pooled. Of several codebooks, usage and perplexity are averaged: an index 3 in
    each is a code of its own.

    Args:
        codebook_size: V.
        num_groups: G.
        num_codebooks: 1 where all groups share one codebook, else G.

    Attributes:
        uses: (V·num_codebooks,) int64, how often each code was used, over all ranks, at the last `compute`.
    """

    name = "codebook"
    wants = "indices"
    higher_is_better = True
    counts: Tensor

    def __init__(self, codebook_size: int, num_groups: int = 1, num_codebooks: int = 1) -> None:
        super().__init__()
        require(
            num_codebooks in (1, num_groups),
            f"num_codebooks is {num_codebooks}; it must be 1, for all groups, or {num_groups}, one for each",
        )
        self.shape = CodebookShape(codebook_size, num_groups, num_codebooks)
        self.uses: Tensor | None = None
        self._unchecked = True
        zeros = torch.zeros(num_groups, codebook_size, dtype=torch.int64)
        self.add_state("counts", default=zeros, dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        """Adds a batch.

        Args:
            indices: (..., G) int64 in [0, V).

        Raises:
            InputError: for another G, or where the first batch since `reset` is out of range.
        """
        codes, groups = self.shape.codebook_size, self.shape.num_groups
        require(
            indices.ndim > 0 and indices.shape[-1] == groups,
            f"indices are {tuple(indices.shape)}; their last dimension must be the {groups} groups",
        )
        if self._unchecked and indices.numel():  # once: it waits for the device
            lowest, highest = (int(end) for end in indices.aminmax())
            require(
                lowest >= 0 and highest < codes, f"indices are from {lowest} to {highest}; codes are 0 to {codes - 1}"
            )
            self._unchecked = False
        offsets = torch.arange(groups, device=indices.device) * codes
        flat = (indices + offsets).flatten()
        self.counts.view(-1).scatter_add_(0, flat, torch.ones_like(flat))

    def reset(self) -> None:
        super().reset()
        self.uses = None
        self._unchecked = True

    def compute(self) -> CodebookStatistics:
        """Of each codebook, then of each group: (num_codebooks + G,) each."""
        of_codebooks = self.counts.sum(dim=0, keepdim=True) if self.shape.num_codebooks == 1 else self.counts
        self.uses = of_codebooks.flatten()
        return codebook_statistics(torch.cat([of_codebooks, self.counts]))

    def values(self) -> MetricValues:
        usage, perplexity = self.compute()
        codebooks, groups = self.shape.num_codebooks, self.shape.num_groups
        values = {
            "codebook_usage": float(usage[:codebooks].mean()),
            "codebook_perplexity": float(perplexity[:codebooks].mean()),
            "codebook_codes_used": float(torch.count_nonzero(self.uses)) if self.uses is not None else 0.0,
        }
        for group in range(groups if groups > 1 else 0):
            values[f"codebook_usage_group_{group}"] = float(usage[codebooks + group])
            values[f"codebook_perplexity_group_{group}"] = float(perplexity[codebooks + group])
        return MetricValues(values, [])


def codebook_statistics(counts: Tensor) -> CodebookStatistics:
    """Statistics of histograms along the last dimension, in float64.

    Args:
        counts: (..., V), how often each code was used. An empty histogram has usage 0 and perplexity 1.
    """
    frequency = counts.double() / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    entropy = -torch.special.xlogy(frequency, frequency).sum(dim=-1)
    return CodebookStatistics(usage=(counts > 0).double().mean(dim=-1), perplexity=entropy.exp())
