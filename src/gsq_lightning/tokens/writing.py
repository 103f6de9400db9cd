"""Writes a folder of tokens: its `tokens.json`, to which new shards must fit, and the shards."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from gsq_lightning.errors import require
from gsq_lightning.tokens.batch import TokenBatch
from gsq_lightning.tokens.facts import FACTS_FILE, TokenFacts
from gsq_lightning.tokens.parquet import write_parquet
from gsq_lightning.tokens.shards import TokenShard, shard_name, write_shard

FileType = Literal["safetensors", "parquet"]
WRITERS = {"safetensors": write_shard, "parquet": write_parquet}


def facts_of(tokenizer: Any, images: Any, split: str, precision: str, file_type: FileType) -> TokenFacts:
    """What the tokens of a split are.

    Args:
        tokenizer: a `GSQTokenizer`.
        images: the split, `ImageShards` of a data module.
        split: its name.
        precision: in which the tokenizer computes, as the Trainer calls it.
        file_type: of the shards.

    Raises:
        InputError: where the tokenizer cannot encode images of this size.
    """
    factor = tokenizer.downsample_factor
    tokenizer.tokens_per_image(images.size, images.size)  # which refuses sizes that do not divide
    return TokenFacts(
        tokenizer_hash=tokenizer.hash,
        precision=precision,
        num_groups=tokenizer.quantizer.num_groups,
        codebook_size=tokenizer.quantizer.codebook_size,
        downsample_factor=factor,
        height=images.size // factor,
        width=images.size // factor,
        split=split,
        images=images.images,
        shards=images.shards,
        images_per_shard=images.images_per_shard,
        copies=list(images.copies),
        data_fingerprint=images.fingerprint,
        class_names=images.class_names,
        file_type=file_type,
        version=version("gsq-lightning"),
    )


def claim_folder(folder: Path, facts: TokenFacts) -> None:
    """Writes `tokens.json` to a folder. Raises InputError where it holds shards of something else."""
    if any(folder.glob("tokens-*")):
        require(
            (folder / FACTS_FILE).exists(),
            f"{folder} holds shards of tokens, and no {FACTS_FILE} says what they are; name another folder",
        )
        check_folder(folder, facts)
    else:  # also where a run ended before its first shard
        facts.write(folder)


def check_folder(folder: Path, facts: TokenFacts) -> None:
    """Raises InputError where a folder is of tokens of something else."""
    difference = TokenFacts.read(folder).difference(facts)
    require(difference is None, f"{folder} holds tokens {difference}; name another folder, or remove it")


def write_rows(folder: Path, number: int, rows: Sequence[TokenBatch], facts: TokenFacts) -> int:
    """Writes one shard, whole or not at all.

    Args:
        folder: of all shards.
        number: of this one.
        rows: its batches, in order and on the CPU; those that hold no image may be left out.
        facts: of the folder.

    Returns:
        how many rows were written.

    Raises:
        InputError: where another job has claimed the folder for something else meanwhile.
    """
    if (folder / FACTS_FILE).exists():
        check_folder(folder, facts)
    rows = rows or [TokenBatch.of_none(facts.height, facts.width, facts.num_groups)]
    whole = TokenBatch(
        torch.cat([part.indices for part in rows]),
        torch.cat([part.label for part in rows]),
        torch.cat([part.copy for part in rows]),
        [name for part in rows for name in part.name],
    )
    path = folder / shard_name(number, facts.file_type)
    for left_over in folder.glob(f".{path.name}.*"):  # of a process that was killed while it wrote
        left_over.unlink(missing_ok=True)
    WRITERS[facts.file_type](path, TokenShard.of(whole, facts.codebook_size))
    return len(whole.name)
