"""Validation images from a set that has none: a share that names decide."""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from gsq_lightning.data.sources.interface import ImageSource
from gsq_lightning.data.sources.splits import Split
from gsq_lightning.errors import require
from gsq_lightning.names import PackedNames


class SourcePart(ImageSource):
    """The training or the validation part of a source that has no splits.

    Args:
        source: all images.
        parts: of `hold_out`.
        share: of them, about, that is for validation.
        split: which part.
    """

    def __init__(self, source: ImageSource, parts: "HeldOut", share: float, split: Split) -> None:
        self.source = source
        self.items = parts.train if split == "train" else parts.val
        self.place = f"{source.place} ({'all but ' if split == 'train' else ''}val_share {share:g} by name)"
        self.labels = source.labels[self.items]
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


class HeldOut(NamedTuple):
    """Numbers of the images of each part, (N,) int64."""

    train: np.ndarray
    val: np.ndarray


def hold_out(names: Iterable[str], share: float, place: object) -> HeldOut:
    """Divides images by a hash of their names, which is the same on every machine, and whatever other images there are.

    Args:
        names: of all images, within their source.
        share: of them, about, for validation, in (0, 1).
        place: of the images, for the message.

    Raises:
        InputError: where one of the parts is empty.
    """
    hashes = np.fromiter(map(hash_of, names), np.float64)
    train, val = np.flatnonzero(hashes >= share), np.flatnonzero(hashes < share)
    require(
        len(train) > 0 and len(val) > 0,
        f"val_share {share:g} of {len(hashes)} images in {place} leaves {len(train)} for training and {len(val)} for "
        "validation; choose another share, or add a validation split",
    )
    return HeldOut(train, val)


def check_share(share: float | None) -> float | None:
    """A share that options give, as a Python float. Raises InputError for one that is not between 0 and 1."""
    require(share is None or 0 < share < 1, f"val_share is {share}; it must be above 0 and below 1")
    return None if share is None else float(share)


def hash_of(name: str) -> float:
    """A name as a number in [0, 1), the same however a file system writes its accents."""
    digest = hashlib.blake2b(normalize("NFC", name).encode("utf-8", "surrogateescape"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
