"""The check of indices, which quantizers, tokenizer and sequences of tokens share."""

import torch
from torch import Tensor

from gsq_lightning.errors import InputError, require


def as_indices(indices: Tensor, codebook_size: int, wait_for_device: bool = False) -> Tensor:
    """Indices of any integer type as int64.

    Args:
        indices: of any shape, each in [0, V).
        codebook_size: V.
        wait_for_device: compare values with V on every device; else on the CPU alone, where nothing waits for it.
            Compiled and exported graphs cannot depend on values: they compare none.

    Raises:
        InputError: for what is no tensor, no integers, or outside [0, V).
    """
    if not isinstance(indices, Tensor):
        kind = type(indices).__name__
        raise InputError(f"indices are of the type {kind}; they must be a tensor: torch.as_tensor converts an array")
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise InputError(f"indices are {indices.dtype}; they must be of an integer type")
    indices = indices.long()
    compared = (wait_for_device or is_at_hand(indices)) and not torch.compiler.is_compiling()
    if compared and indices.numel():
        lowest, highest = (int(end) for end in indices.aminmax())
        require(
            lowest >= 0 and highest < codebook_size,
            f"indices range from {lowest} to {highest}; the codebook has {codebook_size} codes, so 0 to "
            f"{codebook_size - 1} are allowed",
        )
    return indices


def is_at_hand(indices: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device."""
    return indices.device.type == "cpu"
