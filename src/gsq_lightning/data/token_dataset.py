"""The tokens of a folder, by number."""

import dataclasses
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from gsq_lightning.data.batch import NO_LABEL
from gsq_lightning.data.dataset import IndexedImages, key_of
from gsq_lightning.data.sampler import SampleKey
from gsq_lightning.data.sources.classes import renumbering
from gsq_lightning.data.sources.interface import SHOWN
from gsq_lightning.errors import InputError, first_few, how_many, one_of, require, whole_number
from gsq_lightning.tokens.batch import TokenBatch
from gsq_lightning.tokens.facts import TokenFacts, WithTokenFacts
from gsq_lightning.tokens.shards import TokenShard, missing_shards, open_shard, rows_of, shard_name

Copies = Literal["all", "plain", "random"]
Numbers = Sequence[int] | Sequence[bool] | np.ndarray | torch.Tensor
MOST_MAPPED = 4096  # shards: systems allow some ten thousand maps for each process


class TokenDataset(WithTokenFacts, IndexedImages):
    """Tokens that `gsq predict` wrote, in any order, through memory maps: what is not asked for is not read.

    `dataset[7]` is a `TokenBatch` of one image without the dimension B, so that a plain `DataLoader(dataset, 32)` makes
    `TokenBatch`es; `dataset[2:9]`, `dataset[[4, 1, 1]]` and `dataset[mask]` are batches.

    Args:
        folder: with `tokens.json` and all its shards.
        copies: of augmented images: "all" are items of their own, those of an image next to each other; "plain" has
            each image's first one, without augmentation; "random" draws one by seed, epoch and image, where a
            `SampleKey` asks (the data module's sampler), else the plain one.
        images: (N,) numbers of images in the folder, or a mask of bool over all of them; by default all.

    Raises:
        InputError: where there are no tokens, shards are missing, they are Parquet files, or lack one of `images`.
    """

    def __init__(self, folder: str | Path, copies: Copies = "all", images: Numbers | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self.copies: Copies = one_of("copies", copies, Copies)
        facts = self.facts
        require(
            facts.file_type == "safetensors",
            f"{self.folder} holds Parquet files, for datasets and polars; TokenDataset reads those that gsq predict "
            "writes by default",
        )
        missing = missing_shards(self.folder, range(facts.shards))
        if missing:
            raise InputError(
                f"{len(missing)} of {facts.shards} shards of tokens are missing in {self.folder}, the first of them "
                f"{shard_name(missing[0])}; the command that wrote the others writes them"
            )
        self._ends = np.cumsum([rows_of(self._path(number)) for number in range(facts.shards)])
        self._images: np.ndarray | None = None
        if images is not None:
            self._images = numbers_in(images, self.num_images)
        self._numbers: torch.Tensor | None = None  # of the classes, -1 last, where they are not those of the files
        self._mapped: dict[int, TokenShard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}  # other processes map the files themselves

    @cached_property
    def facts(self) -> TokenFacts:
        """What `tokens.json` says; of classes what `number_by` said."""
        return TokenFacts.read(self.folder)

    @cached_property
    def num_classes(self) -> int:
        """Classes: as many as have names, else one more than the greatest label; 0 without labels."""
        return len(self.class_names) if self.class_names is not None else int(self.labels.max(initial=-1)) + 1

    @property
    def num_images(self) -> int:
        return len(self._images) if self._images is not None else int(self._ends[-1]) // len(self.facts.copies)

    @cached_property
    def labels(self) -> np.ndarray:
        """(num_images,) int64, -1 where an image has none. Reads all labels."""
        shards = (self._shard(number) for number in range(self.facts.shards))
        every = self._numbered(torch.cat([shard.label[:: len(self.facts.copies)] for shard in shards])).numpy()
        return every if self._images is None else every[self._images]

    def name(self, image: int) -> str:
        """The name of an image, by its number below num_images; negative ones count from the end. Raises InputError."""
        shard, row = self._find(self._row(int(numbers_in([image], self.num_images)[0]), 0))
        return shard.name(row)

    def number_by(self, class_names: Sequence[str]) -> None:
        """Gives labels the numbers of these classes, such as those of training; others become -1: a note."""
        own = self.class_names or []
        table = renumbering(own, class_names)
        self._renumber(table, list(class_names))
        unknown = [name for name, label in zip(own, table, strict=False) if label == NO_LABEL]
        if unknown:
            self.notes = [f"training does not have the classes {first_few(unknown, SHOWN)}: they have no label"]

    def remove_labels(self, why: str) -> None:
        """Has images without labels, and a note on that."""
        self._renumber(np.full(self.num_classes + 1, NO_LABEL), None)
        self.notes = [why]

    def _renumber(self, table: np.ndarray, class_names: list[str] | None) -> None:
        """Gives label k the number table[k]; of those without one table[-1] is NO_LABEL."""
        numbers = torch.from_numpy(table)
        self._numbers = numbers if self._numbers is None else numbers[self._numbers]
        self.facts = dataclasses.replace(self.facts, class_names=class_names)
        for name in ("labels", "num_classes"):  # which may have been asked for already
            self.__dict__.pop(name, None)

    def part(self, images: Numbers, copies: Copies | None = None) -> "TokenDataset":
        """Some of the images.

        Args:
            images: (N,) their numbers below num_images, negative ones from the end; or a mask of bool over all.
            copies: by default as here.

        Raises:
            InputError: for numbers of no image, and for what are none.
        """
        chosen = numbers_in(images, self.num_images)
        chosen = chosen if self._images is None else self._images[chosen]
        part = TokenDataset(self.folder, copies or self.copies, chosen)
        part.facts, part._numbers = self.facts, self._numbers
        return part

    def __len__(self) -> int:
        return self.num_images * (len(self.facts.copies) if self.copies == "all" else 1)

    def __str__(self) -> str:
        copies = f", {len(self.facts.copies)} copies of each" if len(self.facts.copies) > 1 else ""
        return f"tokens of {how_many(self.num_images, 'image')} in {self.folder}{copies}"

    def __getitem__(self, key: SampleKey | int | slice | Numbers) -> TokenBatch:
        """One item, or a batch of several. Raises IndexError for a single number, InputError for one of several."""
        if isinstance(key, slice):
            key = range(*key.indices(len(self)))
        if isinstance(key, SampleKey):
            return self._item(key)
        if isinstance(key, int) or np.ndim(key) == 0:
            return self._item(whole_number("an item", key, -sys.maxsize))
        chosen = numbers_in(key, len(self))
        return self.collate([self._item(item) for item in chosen.tolist()])

    def _item(self, key: SampleKey | int) -> TokenBatch:
        item, number = key_of(key).item, len(self)
        if not -number <= item < number:
            raise IndexError(f"{item} of {number} items of {self.folder}")
        image, copy = item % number, 0
        if self.copies == "all":
            image, copy = divmod(image, len(self.facts.copies))
        elif self.copies == "random" and isinstance(key, SampleKey):
            copy = int(torch.randint(len(self.facts.copies), (), generator=key.generator()))
        shard, row = self._find(self._row(image, copy))
        name: Any = shard.name(row)
        return TokenBatch(shard.indices[row].long(), self._numbered(shard.label[row]), shard.copy[row].long(), name)

    def _numbered(self, label: torch.Tensor) -> torch.Tensor:
        return label if self._numbers is None else self._numbers[label]

    def collate(self, items: Sequence[TokenBatch]) -> TokenBatch:
        return TokenBatch.stack(items) if items else TokenBatch.of_none(*self.grid, self.num_groups)

    def _row(self, image: int, copy: int) -> int:
        number = image if self._images is None else int(self._images[image])
        return number * len(self.facts.copies) + copy

    def _find(self, row: int) -> tuple[TokenShard, int]:
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self._shard(number), row - (int(self._ends[number - 1]) if number else 0)

    def _shard(self, number: int) -> TokenShard:
        if number not in self._mapped:
            if len(self._mapped) >= MOST_MAPPED:
                self._mapped.clear()
            self._mapped[number] = open_shard(self._path(number))
        return self._mapped[number]

    def _path(self, number: int) -> Path:
        return self.folder / shard_name(number)


def numbers_in(chosen: Numbers, count: int) -> np.ndarray:
    """Some of `count` things, as NumPy chooses elements, by number.

    Args:
        chosen: (N,) integers in [-count, count), negative ones from the end; or (count,) bool, True for the chosen.
        count: how many there are.

    Returns:
        (N,) int64 in [0, count).

    Raises:
        InputError: for anything else.
    """
    numbers = np.asarray(chosen.cpu() if isinstance(chosen, torch.Tensor) else chosen)
    if numbers.dtype == bool:
        require(numbers.shape == (count,), f"a mask has the shape {numbers.shape}; it must be ({count},)")
        return np.flatnonzero(numbers)
    if numbers.size == 0:
        return np.empty(0, np.int64)
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise InputError(f"numbers are {numbers.dtype} of the shape {numbers.shape}; they must be integers, or a mask")
    numbers = numbers.astype(np.int64)
    outside = numbers[(numbers < -count) | (numbers >= count)]
    if len(outside):
        raise InputError(f"there is no number {outside[0]}: there are {count}, from 0")
    return np.where(numbers < 0, numbers + count, numbers)
