"""A pre-norm transformer, causal or not, with a cache of keys and values for sampling."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeyValues:
    """Keys and values of one attention layer, of all steps so far: (B, heads, T, width / heads) each."""

    def __init__(self) -> None:
        self.stored: tuple[Tensor, Tensor] | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds those of the steps that are new. Returns all."""
        if self.stored is not None:
            key, value = torch.cat([self.stored[0], key], dim=2), torch.cat([self.stored[1], value], dim=2)
        self.stored = key, value
        return self.stored


class Block(nn.Module):
    """Attention and a two-layer network of 4 × width, each behind a norm and beside a skip connection.

    Args:
        width: of the vectors.
        heads: of attention; must divide `width`.
        dropout: on what both parts add, in [0, 1).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.to_query_key_value = nn.Linear(width, 3 * width)
        self.from_heads = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.widen_and_narrow = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, causal: bool, cache: KeyValues | None) -> Tensor:
        x = x + self.dropout(self.attend(self.attention_norm(x), causal, cache))
        return x + self.dropout(self.widen_and_narrow(self.norm(x)))

    def attend(self, x: Tensor, causal: bool, cache: KeyValues | None) -> Tensor:
        split = self.to_query_key_value(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (B, heads, T, width / heads) each
        if cache is not None:
            key, value = cache.extend(key, value)
        # a single new step sees all that came before it: it needs no mask
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal and x.shape[1] > 1)
        return self.from_heads(attended.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Blocks and a last norm.

    Args:
        width, heads, dropout: as of `Block`.
        layers: number of blocks.
    """

    def __init__(self, width: int, layers: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for block in self.blocks:  # as GPT-2: what layers add to the stream keeps its size, however many there are
            assert isinstance(block, Block)
            for weight in (block.from_heads.weight, block.widen_and_narrow[2].weight):
                assert isinstance(weight, Tensor)
                nn.init.normal_(weight, std=0.02 / (2 * layers) ** 0.5)

    def forward(self, x: Tensor, causal: bool, cache: list[KeyValues] | None = None) -> Tensor:
        """(B, T, width) → the same shape. With a cache, x is the one step that follows what the cache has seen."""
        for number, block in enumerate(self.blocks):
            x = block(x, causal, None if cache is None else cache[number])
        return self.norm(x)

    def empty_cache(self) -> list[KeyValues]:
        return [KeyValues() for _ in self.blocks]
