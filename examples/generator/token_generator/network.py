"""The generator: a transformer over the positions of an image, and a head for the indices of each."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.errors import look_up, require, require_at_least
from gsq_lightning.tokens import add_group_offsets, grid_positions
from token_generator.heads import DepthHead, Head, IndependentHead
from token_generator.transformer import Transformer

HeadName = Literal["depth", "independent"]


class TokenShape(NamedTuple):
    """Of the tokens of an image.

    Attributes:
        num_groups: G, indices of a position.
        codebook_size: V, an index is in [0, V).
        height, width: h and w, positions of an image.
        num_classes: of labels; 0 where images have none.
    """

    num_groups: int
    codebook_size: int
    height: int
    width: int
    num_classes: int

    @property
    def positions(self) -> int:
        return self.height * self.width


class TokenGenerator(nn.Module):
    """Distribution of the indices (B, N, G) of an image, N = h·w positions in rows, given its class.

    A position enters the transformer as the sum of its G embeddings (UniTok, arXiv 2502.20321). Autoregressive, output
    n sees the class and the positions before n. Masked (MaskGIT, arXiv 2202.04200), it sees the class and all positions
    that are not masked. Either way the head turns it into the G indices of position n.

    Args:
        shape: of the tokens.
        width: of the vectors.
        layers: of the transformer over positions.
        heads: of attention.
        head: "depth", the indices of a position one after the other, or "independent", each by itself.
        depth_layers: of the depth head.
        masked: the masked variant.
        dropout: in [0, 1).

    Raises:
        InputError: for sizes that make no sense.
    """

    places: Tensor  # (N, 2): row and column of each position

    def __init__(
        self,
        shape: TokenShape,
        width: int = 256,
        layers: int = 6,
        heads: int = 4,
        head: HeadName = "depth",
        depth_layers: int = 2,
        masked: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_at_least(1, width=width, layers=layers, heads=heads, depth_layers=depth_layers)
        require(width % heads == 0, f"width is {width}; {heads} heads must divide it")
        self.shape = shape
        self.masked = masked
        self.transformer = Transformer(width, layers, heads, dropout)
        groups, codes = shape.num_groups, shape.codebook_size
        make_head = {
            "depth": lambda: DepthHead(width, groups, codes, depth_layers, heads, dropout),
            "independent": lambda: IndependentHead(width, groups, codes),
        }
        self.head: Head = look_up("head", head, make_head)()
        self.embedding = nn.Embedding(groups * codes, width)
        self.classes = nn.Embedding(shape.num_classes + 1, width)  # the last one: no class
        self.rows = nn.Embedding(shape.height, width)
        self.columns = nn.Embedding(shape.width, width)
        self.mask = nn.Parameter(torch.zeros(width)) if masked else None  # DDP refuses what gets no gradient
        self.register_buffer("places", grid_positions(shape.height, shape.width), persistent=False)
        for embedding in (self.embedding, self.classes, self.rows, self.columns):
            nn.init.normal_(embedding.weight, std=0.02)

    def embed(self, indices: Tensor) -> Tensor:
        """(B, N, G) → (B, N, width)."""
        return self.embedding(add_group_offsets(indices, self.shape.codebook_size)).sum(dim=2)

    def class_token(self, label: Tensor) -> Tensor:
        """(B,), below 0 for no class → (B, 1, width)."""
        return self.classes(torch.where(label < 0, self.shape.num_classes, label))[:, None]

    def position_embedding(self) -> Tensor:
        """(N, width): row and column of each position."""
        return self.rows(self.places[:, 0]) + self.columns(self.places[:, 1])

    def hidden(self, indices: Tensor, label: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the transformer knows of each position: (B, N, width).

        Args:
            indices: (B, N, G).
            label: (B,), below 0 for no class.
            mask: (B, N), True where a position is not to be seen; of the masked variant alone.
        """
        start, tokens, place = self.class_token(label), self.embed(indices), self.position_embedding()
        if mask is None:
            return self.transformer(torch.cat([start, tokens[:, :-1]], dim=1) + place, causal=True)
        assert self.mask is not None
        tokens = torch.where(mask[..., None], self.mask, tokens) + place
        return self.transformer(torch.cat([start, tokens], dim=1), causal=False)[:, 1:]

    def forward(self, indices: Tensor, label: Tensor, mask: Tensor | None = None) -> Tensor:
        """−log p of each index in nats: (B, N, G). Arguments as of `hidden`; what is not masked has no meaning."""
        hidden = self.hidden(indices, label, mask)
        logits = self.head(hidden.flatten(0, 1), indices.flatten(0, 1))
        return F.cross_entropy(logits.flatten(0, 1), indices.flatten(), reduction="none").view(indices.shape)


def random_mask(indices: Tensor) -> Tensor:
    """(B, N, G) → (B, N) bool: of each image a share cos(π/2 · u) of its positions, u uniform, and one at least."""
    batch, positions, _ = indices.shape
    share = torch.cos(0.5 * math.pi * torch.rand(batch, 1, device=indices.device))
    count = (share * positions).ceil().clamp(min=1)
    order = torch.rand(batch, positions, device=indices.device).argsort(dim=1).argsort(dim=1)
    return order < count
