"""From what the transformer knows of a position to its G indices: one after the other, or each by itself."""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gsq_lightning.tokens import add_group_offsets
from token_generator.transformer import Transformer


class Drawn(NamedTuple):
    """One index for each of M positions.

    Attributes:
        code: (M,) int64, the index; a tuple's own `index` is another thing.
        log_probability: (M,), of that index under the model.
    """

    code: Tensor
    log_probability: Tensor


class Position(NamedTuple):
    """All indices of each of M positions.

    Attributes:
        indices: (M, G) int64.
        log_probability: (M,), of all G together.
    """

    indices: Tensor
    log_probability: Tensor


# (R, V) logits → an index for each of M positions; R = 2·M with guidance: with the class, then without
Draw = Callable[[Tensor], Drawn]


class Head(nn.Module):
    """Distribution of the G indices of a position."""

    @abstractmethod
    def forward(self, hidden: Tensor, indices: Tensor) -> Tensor:
        """(M, width) and the true indices (M, G) → logits (M, G, V), each of which knows the indices before it."""

    @abstractmethod
    def sample(self, hidden: Tensor, draw: Draw, cached: bool = True) -> Position:
        """(R, width) → indices of M positions. Without `cached` everything is computed again for each index."""


class IndependentHead(Head):
    """Each of the G indices by itself: one linear layer."""

    def __init__(self, width: int, num_groups: int, codebook_size: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.to_logits = nn.Linear(width, num_groups * codebook_size)
        nn.init.normal_(self.to_logits.weight, std=0.02)

    def forward(self, hidden: Tensor, indices: Tensor) -> Tensor:
        return self.to_logits(hidden).unflatten(-1, (self.num_groups, -1))

    def sample(self, hidden: Tensor, draw: Draw, cached: bool = True) -> Position:
        logits = self.to_logits(hidden).unflatten(-1, (self.num_groups, -1))
        return joined([draw(logits[:, group]) for group in range(self.num_groups)])


class DepthHead(Head):
    """A small causal transformer over the groups, as in RQ-Transformer (arXiv 2203.01941): what the large one knows of
    the position comes first, then its indices one by one.

    Args:
        width: of both transformers.
        num_groups, codebook_size: G and V.
        layers, heads, dropout: of the small transformer.
    """

    def __init__(
        self, width: int, num_groups: int, codebook_size: int, layers: int, heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.codebook_size = codebook_size
        self.start = nn.Linear(width, width)
        self.embedding = nn.Embedding((num_groups - 1) * codebook_size, width)  # what follows the last is not asked
        self.group = nn.Parameter(0.02 * torch.randn(num_groups, width))
        self.transformer = Transformer(width, layers, heads, dropout)
        self.to_logits = nn.Parameter(0.02 * torch.randn(num_groups, width, codebook_size))
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, hidden: Tensor, indices: Tensor) -> Tensor:
        before = self.embedding(add_group_offsets(indices[:, :-1], self.codebook_size))
        x = torch.cat([self.start(hidden)[:, None], before], dim=1) + self.group
        return torch.einsum("mgw,gwv->mgv", self.transformer(x, causal=True), self.to_logits)

    def sample(self, hidden: Tensor, draw: Draw, cached: bool = True) -> Position:
        cache = self.transformer.empty_cache() if cached else None
        steps, drawn = [self.start(hidden) + self.group[0]], []
        for group in range(self.num_groups):
            x = steps[-1][:, None] if cached else torch.stack(steps, dim=1)
            known = self.transformer(x, causal=True, cache=cache)[:, -1]
            drawn.append(draw(known @ self.to_logits[group]))
            if group + 1 < self.num_groups:
                code = drawn[-1].code
                every = code.repeat(len(hidden) // len(code))  # with guidance both halves go on with the same index
                steps.append(self.embed(every, group) + self.group[group + 1])
        return joined(drawn)

    def embed(self, index: Tensor, group: int) -> Tensor:
        return self.embedding(index + group * self.codebook_size)


def joined(drawn: list[Drawn]) -> Position:
    """The G indices of each position, and the probability of all."""
    return Position(
        torch.stack([one.code for one in drawn], dim=1), torch.stack([one.log_probability for one in drawn]).sum(dim=0)
    )
