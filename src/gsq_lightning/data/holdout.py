"""Validation images from a set that has none: a share held out by name."""

import hashlib
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gsq_lightning.data.sources.interface import ImageSource
from gsq_lightning.errors import require
from gsq_lightning.names import PackedNames


class SourcePart(ImageSource):
    """Some images of a source.

    Args:
        source: all images.
        items: (N,) int64, which of them.
        words: what part this is, for messages.
    """

    def __init__(self, source: ImageSource, items: np.ndarray, words: str) -> None:
        self.source = source
        self.items = items
        self.place = f"{source.place} ({words})"
        self.labels = source.labels[items]
        self.class_names = source.class_names
        self.notes = source.notes

    @cached_property
    def names(self) -> PackedNames:  # type: ignore[override]
        return PackedNames.pack(self.source.names[int(item)] for item in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def name(self, item: int) -> str:
        return self.source.name(int(self.items[item]))

    def short_name(self, item: int) -> str:
        return self.source.short_name(int(self.items[item]))

    def read(self, item: int) -> bytes:
        return self.source.read(int(self.items[item]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.source.fingerprint().encode() + self.items.tobytes()).hexdigest()


class HoldOut(NamedTuple):
    """The two parts of a source that has no splits."""

    train: SourcePart
    val: SourcePart


def hold_out(source: ImageSource, share: float) -> HoldOut:
    """The training and the validation part of a source. An image's name decides: every machine comes to the same parts.

    Args:
        source: all images.
        share: of them, about, for validation, in (0, 1).

    Raises:
        InputError: where one of the parts is empty.
    """
    hashes = np.fromiter((hash_of(source.names[item]) for item in range(len(source))), np.float64, len(source))
    train, val = np.flatnonzero(hashes >= share), np.flatnonzero(hashes < share)
    require(
        len(train) > 0 and len(val) > 0,
        f"val_share {share:g} of {len(source)} images in {source.place} leaves {len(train)} for training and "
        f"{len(val)} for validation; choose another share, or name validation images with data.val",
    )
    words = f"val_share {share:g} by name"
    return HoldOut(SourcePart(source, train, f"all but {words}"), SourcePart(source, val, words))


def hash_of(name: str) -> float:
    """The place of a name within its source as a number in [0, 1)."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
