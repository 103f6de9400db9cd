"""Batches of tokens, which generators are trained on."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TokenBatch(NamedTuple):
    """The tokens of B images, or of one image without the dimension B.

    Attributes:
        indices: (B, h, w, G) int64.
        label: (B,) int64, -1 where an image has none.
        copy: (B,) int64, which copy of its image each is: 0 is the plain one.
        name: B names of images; the name of the one image.
    """

    indices: Tensor
    label: Tensor
    copy: Tensor
    name: Sequence[str]

    @classmethod
    def of_none(cls, height: int, width: int, num_groups: int) -> "TokenBatch":
        """A batch of no images, whose grids would be h × w with G groups."""
        none = torch.empty(0, dtype=torch.int64)
        return cls(torch.empty(0, height, width, num_groups, dtype=torch.int64), none, none, [])

    @classmethod
    def stack(cls, items: "Sequence[TokenBatch]") -> "TokenBatch":
        """A batch of at least one image."""
        return cls(
            torch.stack([item.indices for item in items]),
            torch.stack([item.label for item in items]),
            torch.stack([item.copy for item in items]),
            [str(item.name) for item in items],
        )
