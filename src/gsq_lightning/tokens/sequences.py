"""Tokens as sequences: the order of positions, one vocabulary for all groups, special tokens, positions in the grid.

Letters: B images, h × w positions, G indices at each, V codes.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from gsq_lightning.errors import require, require_at_least
from gsq_lightning.indices import as_indices


def flatten_tokens(indices: Tensor, keep_groups: bool = False) -> Tensor:
    """(B, h, w, G) → (B, h·w·G), or (B, h·w, G) with `keep_groups`.

    Raster order: rows from the top, positions from the left, at each position its G indices.

    Raises:
        InputError: where indices are not of four dimensions.
    """
    require(
        indices.ndim == 4,
        f"indices have the shape {tuple(indices.shape)}; it must be (B, h, w, G): of a single image, indices[None]",
    )
    return rearrange(indices, "b h w g -> b (h w) g" if keep_groups else "b h w g -> b (h w g)")


def unflatten_tokens(sequence: Tensor, height: int, width: int) -> Tensor:
    """(B, h·w·G) or (B, h·w, G) → (B, h, w, G): the inverse of `flatten_tokens`.

    Args:
        sequence: of either shape.
        height, width: of the grid, h and w.

    Raises:
        InputError: where the sequence is not that of such a grid.
    """
    groups = sequence.shape[1] // (height * width) if sequence.ndim == 2 else sequence.shape[-1]
    require(
        sequence.ndim in (2, 3) and groups > 0 and sequence.shape[1:].numel() == height * width * groups,
        f"a sequence of shape {tuple(sequence.shape)} is no grid of {height}×{width} positions; it must be "
        "(B, h·w·G) or (B, h·w, G)",
    )
    return sequence.reshape(-1, height, width, groups)


def add_group_offsets(indices: Tensor, codebook_size: int) -> Tensor:
    """(…, G) in [0, V) → (…, G) int64 in [0, G·V): group g's indices have codes g·V to (g+1)·V - 1 to themselves.

    For one table of embeddings where each group has codes of its own.

    Raises:
        InputError: for what are no integers, and on the CPU for those outside [0, V).
    """
    return as_indices(indices, codebook_size) + codebook_size * torch.arange(indices.shape[-1], device=indices.device)


def remove_group_offsets(tokens: Tensor, codebook_size: int) -> Tensor:
    """The inverse of `add_group_offsets`."""
    return tokens.long() - codebook_size * torch.arange(tokens.shape[-1], device=tokens.device)


def combine_groups(indices: Tensor, codebook_size: int) -> Tensor:
    """(…, G) in [0, V) → (…) int64 in [0, V^G): Σ_g i_g · V^(G-1-g), so that the first group counts most.

    Raises:
        InputError: where V^G does not fit int64; for what are no integers, and on the CPU for those outside [0, V).
    """
    _check_combined(codebook_size, indices.shape[-1])
    combined = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for index in as_indices(indices, codebook_size).unbind(-1):
        combined = combined * codebook_size + index
    return combined


def separate_groups(combined: Tensor, codebook_size: int, num_groups: int) -> Tensor:
    """(…) in [0, V^G) → (…, G) int64 in [0, V): the inverse of `combine_groups`. Raises InputError as that."""
    _check_combined(codebook_size, num_groups)
    indices, rest = [], combined.long()
    for _ in range(num_groups):
        indices.append(rest % codebook_size)
        rest = rest.div(codebook_size, rounding_mode="floor")
    return torch.stack(indices[::-1], dim=-1)


def grid_positions(height: int, width: int, num_groups: int | None = None) -> Tensor:
    """Where each token of a raster-ordered sequence stands: (h·w, 2) int64 of row and column.

    With `num_groups` (h·w·G, 3): row, column and group, for sequences of `flatten_tokens`.
    """
    sizes = (height, width) if num_groups is None else (height, width, num_groups)
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes))


class SpecialTokens(NamedTuple):
    """Numbers above the codes: start, mask, and one for each class, so that one table of embeddings holds all.

    Attributes:
        num_codes: numbers in use by codes: V, G·V or V^G.
        num_classes: or 0.
    """

    num_codes: int
    num_classes: int = 0

    @property
    def start(self) -> int:
        """Begins a sequence without a class; it also stands for the class that guidance leaves out."""
        return self.num_codes

    @property
    def mask(self) -> int:
        """Stands for a token that is to be predicted."""
        return self.num_codes + 1

    @property
    def vocabulary_size(self) -> int:
        return self.num_codes + 2 + self.num_classes

    def of_class(self, label: Tensor) -> Tensor:
        """(B,) labels in [-1, num_classes) → (B,) int64 tokens; -1, no label, is `start`. Raises InputError."""
        if label.numel():
            require_at_least(-1, label=int(label.min()))
            require(
                int(label.max()) < self.num_classes, f"label is {int(label.max())}, of {self.num_classes} class(es)"
            )
        return torch.where(label < 0, self.start, self.num_codes + 2 + label.long())

    def prepend(self, sequence: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, n) codes → (B, 1 + n) int64, the class (or `start`) first. `[:, 1:]` and `label_of(…[:, 0])` undo it."""
        if label is None:
            label = torch.full((len(sequence),), -1, device=sequence.device)
        return torch.cat([self.of_class(label)[:, None], sequence.long()], dim=1)

    def label_of(self, token: Tensor) -> Tensor:
        """(B,) → (B,) labels, -1 for `start`: the inverse of `of_class`."""
        return torch.where(token == self.start, -1, token - self.num_codes - 2)


def _check_combined(codebook_size: int, num_groups: int) -> None:
    require(
        codebook_size**num_groups <= 2**63,
        f"{num_groups} indices of {codebook_size} codes do not fit into one: {codebook_size}^{num_groups} is above "
        "2^63; keep the groups, or give them offsets",
    )
