"""Token shards on disk: a safetensors file for each, written whole and read through memory maps."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gsq_lightning.errors import InputError
from gsq_lightning.files import write_whole
from gsq_lightning.names import PackedNames
from gsq_lightning.tokens.batch import TokenBatch


class TokenShard(NamedTuple):
    """Consecutive images of a split, with all copies of one image next to each other: N rows.

    Attributes:
        indices: (N, h, w, G) in the smallest type that holds them: uint8, uint16, int32 or int64.
        label: (N,) int64, -1 where an image has none.
        copy: (N,) uint8, which copy of its image each row is.
        names: (bytes,) uint8, the names of all rows one after the other.
        name_ends: (N,) int64, where each name ends.
    """

    indices: Tensor
    label: Tensor
    copy: Tensor
    names: Tensor
    name_ends: Tensor

    @classmethod
    def of(cls, rows: TokenBatch, codebook_size: int) -> "TokenShard":
        names = PackedNames.pack(rows.name)
        return cls(
            rows.indices.to(smallest_type(codebook_size)).contiguous(),
            rows.label.to(torch.int64),
            rows.copy.to(torch.uint8),
            torch.from_numpy(names.encoded.copy()),  # which is read-only
            torch.from_numpy(names.ends),
        )

    def name(self, row: int) -> str:
        return PackedNames(self.names.numpy(), self.name_ends.numpy())[row]


def shard_name(number: int, file_type: str = "safetensors") -> str:
    return f"tokens-{number:06d}.{file_type}"


def write_shard(path: Path, shard: TokenShard) -> None:
    """Writes a file through an atomic rename. Equal shards are equal bytes."""
    write_whole(path, save(shard._asdict()))


def open_shard(path: Path) -> TokenShard:
    """Maps a file into memory: what is not used is not read, and no file stays open. Raises InputError."""
    with _opened(path) as file:
        return TokenShard(**{name: file.get_tensor(name) for name in TokenShard._fields})


def rows_of(path: Path) -> int:
    """How many rows a shard has, from the head of its file. Raises InputError."""
    with _opened(path) as file:
        return int(file.get_slice("label").get_shape()[0])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as a shard of tokens: {error}") from error


def missing_shards(folder: Path, numbers: Sequence[int], file_type: str = "safetensors") -> list[int]:
    """Those of some shards that are not written yet."""
    there = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    return [number for number in numbers if shard_name(number, file_type) not in there]


def smallest_type(codebook_size: int) -> torch.dtype:
    """The smallest integer type that holds every index below `codebook_size`: uint8, uint16, int32 or int64."""
    for kind in (torch.uint8, torch.uint16, torch.int32):
        if codebook_size - 1 <= torch.iinfo(kind).max:
            return kind
    return torch.int64
