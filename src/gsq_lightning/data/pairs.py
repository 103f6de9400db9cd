"""Reconstructions and their originals in two folders, file by file."""

import hashlib
import os
import unicodedata
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gsq_lightning.data.dataset import unread_line
from gsq_lightning.data.decoding import UNREADABLE, ImageDecoder
from gsq_lightning.data.sources import FolderSource, ImageSource
from gsq_lightning.data.transforms import ResizeAndCrop
from gsq_lightning.errors import InputError

SHOWN = 3  # names in a message


class Pair(NamedTuple):
    """An original and its reconstruction, (3, H, W) uint8 each."""

    original: Tensor
    reconstruction: Tensor


class FolderPairs(Dataset[Pair]):
    """Files of two folders that have the same path below them, without suffix.

    Args:
        real: folder of originals.
        fake: folder of reconstructions.
        transform: what is done to the originals first, or nothing.

    Raises:
        InputError: where a file has no partner; when asked for a pair, where it cannot be read or sizes differ.
    """

    def __init__(self, real: Path, fake: Path, transform: ResizeAndCrop | None) -> None:
        self.real = FolderSource(real)
        self.fake = FolderSource(fake)
        self.transform = transform
        self._decoder = ImageDecoder()
        originals, reconstructions = _by_stem(self.real), _by_stem(self.fake)
        for folder, missing in (
            (fake, originals.keys() - reconstructions.keys()),
            (real, reconstructions.keys() - originals.keys()),
        ):
            if missing:
                names = sorted(missing)
                shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
                raise InputError(
                    f"{len(names)} of {len(originals.keys() | reconstructions.keys())} images have no partner in "
                    f"{folder}: {shown}; files belong together that have the same path, without suffix"
                )
        self.items = [(originals[stem], reconstructions[stem]) for stem in sorted(originals)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> Pair:
        original, reconstruction = self.items[item]
        pixels = self._decode(self.real, original)
        if self.transform is not None:
            try:
                pixels = self.transform(pixels, torch.Generator)
            except ValueError as error:
                raise InputError(f"{self.real.name(original)} cannot be used: {error}") from error
        pair = Pair(pixels, self._decode(self.fake, reconstruction))
        if pair.original.shape != pair.reconstruction.shape:
            raise InputError(
                f"{self.fake.name(reconstruction)} has {_size(pair.reconstruction)} pixels, its original "
                f"{_size(pixels)}; image_size N resizes and crops originals to N×N as validation does"
            )
        return pair

    def _decode(self, source: ImageSource, item: int) -> Tensor:
        try:
            return self._decoder.decode(source.read(item)).clone()
        except OSError as error:
            raise InputError(unread_line(source.name(item), error)) from error
        except UNREADABLE as error:
            raise InputError(f"{source.name(item)} cannot be read as an image: {error}") from error

    @property
    def fingerprint(self) -> str:
        """Tells the originals from others: a hash of names, sizes, times of change, and what is done to them."""
        return hashlib.sha256(f"{self.real.fingerprint()} {self.transform!r}".encode()).hexdigest()

    def loader(self, batch_size: int, num_workers: int) -> DataLoader:
        """Lists of batches: neighbors of equal size in one `Pair` of (B, 3, H, W) each."""
        return DataLoader(self, batch_size, num_workers=num_workers, collate_fn=_stacked)


def _by_stem(source: FolderSource) -> dict[str, int]:
    """Numbers of images by their path without suffix."""
    items: dict[str, int] = {}
    for item, path in enumerate(source.names):
        stem = unicodedata.normalize("NFC", os.path.splitext(path)[0])  # letters and accents in one, or apart
        if stem in items:
            raise InputError(f"{source.place} holds both {source.names[items[stem]]} and {path}; which one is meant?")
        items[stem] = item
    return items


def _stacked(batch: list[Pair]) -> list[Pair]:
    """Neighbors of equal size in one: each tensor takes a file descriptor on its way from a worker."""
    groups = groupby(batch, key=lambda pair: pair.original.shape)
    return [Pair(*(torch.stack(part) for part in zip(*members, strict=True))) for _, members in groups]


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[-2]}×{pixels.shape[-1]}"
