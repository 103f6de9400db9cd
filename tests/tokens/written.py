"""Token folders for tests, written without a tokenizer."""

from pathlib import Path

import torch

from gsq_lightning.tokens import TokenBatch, TokenFacts
from gsq_lightning.tokens.shards import TokenShard, shard_name, write_shard


def write_tokens(
    folder: Path,
    images: int = 10,
    images_per_shard: int = 4,
    copies: tuple[str, ...] = ("plain",),
    codebook_size: int = 300,
    grid: tuple[int, int] = (2, 3),
    num_groups: int = 2,
    class_names: list[str] | None = None,
    tokenizer_hash: str = "ab12",
) -> TokenBatch:
    """Writes tokens that are drawn at random, and returns all of them in order."""
    rows = images * len(copies)
    indices = torch.randint(codebook_size, (rows, *grid, num_groups), generator=torch.Generator().manual_seed(images))
    image = torch.arange(images).repeat_interleave(len(copies))
    every = TokenBatch(
        indices, image % 3 - 1, torch.arange(rows) % len(copies), [f"class/image {int(one)}.png" for one in image]
    )
    shards = -(-images // images_per_shard)
    facts = TokenFacts(
        tokenizer_hash=tokenizer_hash,
        precision="32-true",
        num_groups=num_groups,
        codebook_size=codebook_size,
        downsample_factor=8,
        height=grid[0],
        width=grid[1],
        split="train",
        images=images,
        shards=shards,
        images_per_shard=images_per_shard,
        copies=list(copies),
        data_fingerprint="cd34",
        class_names=class_names,
        file_type="safetensors",
        version="0",
    )
    facts.write(folder)
    step = images_per_shard * len(copies)
    for shard in range(shards):
        part = TokenBatch(*(field[shard * step : (shard + 1) * step] for field in every))
        write_shard(folder / shard_name(shard), TokenShard.of(part, codebook_size))
    return every
