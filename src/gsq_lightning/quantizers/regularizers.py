"""Losses that spread latents over a codebook (GSQ, arXiv 2412.02632, Table 2; off by default, as in the paper).

The paper names them without formulas; these are the formulas of the works that introduced them. The paper's reference
has others: its entropy loss has 45 times the gradient of ours, in another direction; its coding rate loss pulls latents
the same way, 2.4 times as hard, and the codebook too.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gsq_lightning.distributed import mean_over_ranks
from gsq_lightning.errors import InputError

ENTROPY_TEMPERATURE = 0.01  # MaskGIT's tokenizer
CODING_PRECISION = 0.2  # ε² of EMP-SSL
BLOCK_ELEMENTS = 2**24  # affinities in memory at once
LARGEST_SEARCH = 2**40  # affinities of a step: minutes on a GPU; beyond it nobody would wait


def entropy_loss(
    points: Tensor, codes: Tensor, temperature: float = ENTROPY_TEMPERATURE, *, over_ranks: bool = False
) -> Tensor:
    """Mean entropy of the assignments less the entropy of their mean (MaskGIT, arXiv 2202.04200, its tokenizer's loss).

    The assignment of a point is softmax_j(-‖x - c_j‖² / temperature). Low when each point is sure of its code and
    all codes are used equally. Computed in blocks, which are recomputed in the backward pass: never n × V at once.

    Args:
        points: (n, d), normalized for the lookup.
        codes: (V, d), normalized for the lookup; gets gradients too.
        temperature: above 0.
        over_ranks: whether the mean of the assignments is over all ranks, each with as many points.

    Returns:
        Scalar in [-log V, log V].

    Raises:
        InputError: where n · V is beyond what any machine could compute in a step.
    """
    count, size = len(points), len(codes)
    if count * size > LARGEST_SEARCH:
        raise InputError(
            f"the entropy loss compares {count} latents with {size} codes, {count * size:.1e} pairs, more than the "
            f"{LARGEST_SEARCH:.1e} allowed; set entropy_weight to 0, or lower the batch or the codebook_size"
        )
    rows = max(1, BLOCK_ELEMENTS // size)
    sample_entropy = points.new_zeros(())
    mean_assignment = points.new_zeros(size)
    for block in points.split(rows):
        block_entropy, block_assignment = checkpoint(_assignments, block, codes, temperature, use_reentrant=False)
        sample_entropy = sample_entropy + block_entropy / count
        mean_assignment = mean_assignment + block_assignment / count
    if over_ranks:
        mean_assignment = mean_over_ranks(mean_assignment)
    return sample_entropy + torch.special.xlogy(mean_assignment, mean_assignment.clamp(min=1e-30)).sum()


def coding_rate_loss(points: Tensor, precision: float = CODING_PRECISION, *, over_ranks: bool = False) -> Tensor:
    """Negative total coding rate (TCR): -½ log det(I + d / (n ε²) Zᵀ Z), EMP-SSL, arXiv 2304.03977, section 3.

    Low when the points fill all d dimensions equally.

    Args:
        points: (n, d).
        precision: ε² above 0.
        over_ranks: whether the points of all ranks count, as many of each.

    Returns:
        Scalar, at most 0.
    """
    count, dimension = points.shape
    gram = points.T @ points * (dimension / (count * precision))
    if over_ranks:
        gram = mean_over_ranks(gram)
    return -0.5 * torch.logdet(torch.eye(dimension, dtype=points.dtype, device=points.device) + gram)


def _assignments(points: Tensor, codes: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Summed over points: entropies (scalar), assignments (V,)."""
    # ‖x‖² is the same for all codes, so the softmax does not depend on it
    affinity = (2.0 * points @ codes.T - codes.square().sum(dim=1)) / temperature
    log_assignment = affinity.log_softmax(dim=1)
    assignment = log_assignment.exp()
    return -(assignment * log_assignment).sum(), assignment.sum(dim=0)
