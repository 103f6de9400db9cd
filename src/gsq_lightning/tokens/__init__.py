"""Tokens for generators: batches of them, shards on disk, and sequences. What writes and loads them is elsewhere."""

from gsq_lightning.tokens.batch import TokenBatch
from gsq_lightning.tokens.facts import TokenFacts
from gsq_lightning.tokens.sequences import (
    SpecialTokens,
    add_group_offsets,
    combine_groups,
    flatten_tokens,
    grid_positions,
    remove_group_offsets,
    separate_groups,
    unflatten_tokens,
)
from gsq_lightning.tokens.shards import smallest_type

__all__ = [
    "SpecialTokens",
    "TokenBatch",
    "TokenFacts",
    "add_group_offsets",
    "combine_groups",
    "flatten_tokens",
    "grid_positions",
    "remove_group_offsets",
    "separate_groups",
    "smallest_type",
    "unflatten_tokens",
]
