"""Datasets: the interface of a split, and the images of a source, read, decoded and transformed."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gsq_lightning.data.batch import ImageBatch, Sample, UnreadableImage, batch_of, collate
from gsq_lightning.data.decoding import decode_image
from gsq_lightning.data.image_shards import Cut, ImageShards, IndexedShards
from gsq_lightning.data.loader import Loading, make_loader
from gsq_lightning.data.sampler import DataPosition, EpochSampler, InOrder, SampleKey
from gsq_lightning.data.sources.interface import ImageSource
from gsq_lightning.errors import InputError, how_many

OnError = Literal["raise", "skip"]
Transform = Callable[[Tensor, Callable[[], torch.Generator]], Tensor]

MOST_SUBSTITUTES = 1000  # unreadable images in a row that end a run: then it is not the images


class ImageDataset(Dataset[Any]):
    """The images of a split, as pixels or as tokens, and how they are loaded.

    Attributes:
        has_random_access: images can be drawn in any order, which `overfit_batches` needs.
        notes: what should be said of them once, such as how many files are left out.
    """

    has_random_access = True
    notes: Sequence[str] = ()

    @abstractmethod
    def count(self) -> int:
        """Images in an epoch of training. Raises InputError where that is not known."""

    def __str__(self) -> str:
        """How much there is, and where, for the log."""
        return how_many(self.count(), "image")

    @abstractmethod
    def train_loader(self, position: DataPosition, step_images: int, loading: Loading) -> DataLoader:
        """Batches of this device, shuffled by the seed and epoch of `position`, from there on.

        Args:
            position: read whenever a pass begins.
            step_images: of an optimizer step, over all devices; a pass is cut to a multiple of it.
            loading: the share of this device.
        """

    @abstractmethod
    def val_loader(self, loading: Loading) -> DataLoader:
        """Batches of this device's share: over all devices each image comes once."""

    def in_shards(self, cut: Cut, images_per_shard: int) -> ImageShards:
        """The images in the shards that their tokens are written in; streamed ones keep those that they come in."""
        raise NotImplementedError


class IndexedImages(ImageDataset):
    """Images by number: `self[key]` is the one that a `SampleKey`, or a plain number, names."""

    @abstractmethod
    def __len__(self) -> int: ...

    def count(self) -> int:
        return len(self)

    def train_loader(self, position: DataPosition, step_images: int, loading: Loading) -> DataLoader:
        sampler = EpochSampler(len(self), loading.rank, loading.world_size, position, step_images)
        return make_loader(self, loading, sampler, collate_fn=self.collate)

    def val_loader(self, loading: Loading) -> DataLoader:
        sampler = EpochSampler(len(self), loading.rank, loading.world_size)
        if len(sampler) == 0:
            # fewer images than devices: a batch of none, so that this device takes part in the others' validation
            return DataLoader([self.collate([])], sampler=InOrder([0]), batch_size=None)  # type: ignore[arg-type]
        return make_loader(self, loading, sampler, collate_fn=self.collate)

    def collate(self, items: Sequence[Any]) -> Any:
        """A batch of what `self[key]` returns, or of nothing."""
        return collate(items)

    def in_shards(self, cut: Cut, images_per_shard: int) -> ImageShards:
        return IndexedShards(self, cut, images_per_shard)

    def short_name(self, item: int, sample: Sample) -> str:
        """The name of an image within the data set."""
        return sample.path


class SourceImages(IndexedImages):
    """The images of a source.

    Args:
        source: where they come from.
        transform: (3, H, W) uint8, and a function that makes the random stream of this image → (3, h, w) uint8.
        on_error: what an image that cannot be decoded does: "raise" InputError with its name, or "skip".
        substitute: what takes the place of a skipped image: with True a readable one from elsewhere in the source,
            the same for the same image, so that batches keep their size (training); with False nothing, so that no
            image counts twice (evaluation).
        epoch_images: length of an epoch; by default each image comes once. Otherwise the next epoch goes on in the
            source where the last one ended, so that all images come equally often.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        on_error: OnError = "raise",
        substitute: bool = False,
        epoch_images: int | None = None,
    ) -> None:
        self.source = source
        self.notes = source.notes
        self.transform = transform
        self.on_error = on_error
        self.substitute = substitute
        self.epoch_images = len(source) if epoch_images is None else epoch_images
        # a step without a common divisor visits every image once; a wide one soon leaves a folder that is gone
        self._stride = next(
            step
            for step in range(max(1, round(0.618 * len(source))), len(source) + 2)
            if math.gcd(step, len(source)) == 1
        )

    def __len__(self) -> int:
        return self.epoch_images

    def __str__(self) -> str:
        found = f"{how_many(len(self.source), 'image')} in {self.source.place}"
        return found if len(self) == len(self.source) else f"{found}, {len(self)} draws in an epoch"

    def __getitem__(self, key: SampleKey | int) -> Sample | UnreadableImage:
        key = key_of(key)
        unreadable: list[UnreadableImage] = []
        tries = min(len(self.source), MOST_SUBSTITUTES) if self.substitute else 1
        first = key.item
        if self.epoch_images != len(self.source):
            first = (key.epoch * self.epoch_images + key.item) * self._stride % len(self.source)
        for attempt in range(tries):
            item = (first + attempt * self._stride) % len(self.source)
            try:
                pixels = self._read(item, key)
                return Sample(pixels, int(self.source.labels[item]), self.source.name(item), tuple(unreadable))
            except OSError as error:
                raise InputError(unread_line(self.source.name(item), error)) from error
            except ValueError as error:
                if self.on_error == "raise":
                    raise InputError(unreadable_line(self.source.name(item), error)) from error
                unreadable.append(UnreadableImage(self.source.name(item), str(error)))
        if self.substitute:
            raise InputError(
                f"none of {tries} images of {self.source.place} can be read, the last {unreadable[-1].path}: "
                f"{unreadable[-1].reason}. Is the storage still there?"
            )
        return unreadable[0]

    def __getitems__(self, keys: list[SampleKey | int]) -> ImageBatch:
        """A whole batch, as a DataLoader asks for it."""
        return batch_of((self[key] for key in keys), len(keys))

    def short_name(self, item: int, sample: Sample) -> str:
        return self.source.short_name(item)

    @property
    def root(self) -> str:
        """Where the images lie, for reports."""
        return self.source.place

    @property
    def preparation(self) -> str:
        """The preparation of an image, in words."""
        return str(self.transform)

    @cached_property
    def fingerprint(self) -> str | None:
        """Identifies these images: by their source, and the transform where that is a dataclass.

        None where the transform does not say what it does.
        """
        if not is_dataclass(self.transform):
            return None
        return hashlib.sha256(f"{self.source.fingerprint()} {self.transform!r}".encode()).hexdigest()

    def _read(self, item: int, key: SampleKey) -> Tensor:
        return self.transform(decode_image(self.source.read(item)), key.generator)


def key_of(key: SampleKey | int) -> SampleKey:
    """A plain number, such as samplers of others give, names an image of the first epoch: always the same crop."""
    return key if isinstance(key, SampleKey) else SampleKey(0, key)


def unreadable_line(name: str, error: BaseException) -> str:
    """The message for an image that cannot be decoded."""
    return (
        f"{name} cannot be read as an image: {error}. Remove or repair it, or set on_error to skip to leave such "
        "images out and count them."
    )


def unread_line(name: str, error: OSError) -> str:
    """The message for an I/O error, which is not the image's fault."""
    return f"{name} was not read: {error.strerror or error}. That is the system's fault, not the image's"
