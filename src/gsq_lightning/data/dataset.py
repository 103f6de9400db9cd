"""A source of images as a dataset: read, decoded, transformed; what cannot be decoded is named, or replaced."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gsq_lightning.data.batch import ImageBatch, Sample, UnreadableImage, batch_of
from gsq_lightning.data.decoding import UNREADABLE, ImageDecoder
from gsq_lightning.data.sampler import SampleKey, sample_generator
from gsq_lightning.data.sources.interface import ImageSource
from gsq_lightning.errors import InputError

OnError = Literal["raise", "skip"]
Transform = Callable[[Tensor, Callable[[], torch.Generator]], Tensor]

MOST_SUBSTITUTES = 1000  # unreadable images in a row that end a run: then it is not the images


class SourceImages(Dataset[Sample | UnreadableImage]):
    """The images of a source, by `SampleKey`.

    Args:
        source: where they come from.
        transform: (3, H, W) uint8, and a function that makes the random stream of this image → (3, h, w) uint8.
        seed: of the random streams.
        on_error: what an image that cannot be decoded does: "raise" InputError with its name, or "skip".
        substitute: what takes the place of a skipped image: with True a readable one from elsewhere in the source,
            the same for the same image, so that batches keep their size (training); with False nothing, so that no
            image counts twice (evaluation).
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        seed: int = 0,
        on_error: OnError = "raise",
        substitute: bool = False,
    ) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.on_error = on_error
        self.substitute = substitute
        self._decoder = ImageDecoder()
        # steps of this width visit every image once, and leave a folder that is gone at the first
        self._stride = next(
            step
            for step in range(max(1, round(0.618 * len(source))), len(source) + 2)
            if math.gcd(step, len(source)) == 1
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Sample | UnreadableImage:
        unreadable: list[UnreadableImage] = []
        tries = min(len(self), MOST_SUBSTITUTES) if self.substitute else 1
        for attempt in range(tries):
            item = (key.item + attempt * self._stride) % len(self)
            try:
                pixels = self._read(item, key)
                return Sample(pixels, int(self.source.labels[item]), self.source.name(item), tuple(unreadable))
            except OSError as error:
                raise InputError(unread_line(self.source.name(item), error)) from error
            except UNREADABLE as error:
                if self.on_error == "raise":
                    raise InputError(unreadable_line(self.source.name(item), error)) from error
                unreadable.append(UnreadableImage(self.source.name(item), str(error)))
        if self.substitute:
            raise InputError(
                f"none of {tries} images of {self.source.place} can be read, the last {unreadable[-1].path}: "
                f"{unreadable[-1].reason}. Is the storage still there?"
            )
        return unreadable[0]

    def __getitems__(self, keys: list[SampleKey]) -> ImageBatch:
        """A whole batch, as a DataLoader asks for it."""
        return batch_of((self[key] for key in keys), len(keys))

    @property
    def root(self) -> str:
        """Where the images lie, for reports."""
        return self.source.place

    @property
    def preparation(self) -> str:
        """What is done to an image, in words."""
        return str(self.transform)

    @cached_property
    def fingerprint(self) -> str | None:
        """Tells these images from others: by their source, and the transform where that is a dataclass.

        None where the transform does not say what it does.
        """
        if not is_dataclass(self.transform):
            return None
        return hashlib.sha256(f"{self.source.fingerprint()} {self.transform!r}".encode()).hexdigest()

    def _read(self, item: int, key: SampleKey) -> Tensor:
        pixels = self._decoder.decode(self.source.read(item))
        pixels = self.transform(pixels, lambda: sample_generator(self.seed, key))
        return pixels.clone() if self._decoder.owns(pixels) else pixels


def unreadable_line(name: str, error: BaseException) -> str:
    """What is said of an image that cannot be decoded."""
    return (
        f"{name} cannot be read as an image: {error}. Remove or repair it, or set on_error to skip to leave such "
        "images out and count them."
    )


def unread_line(name: str, error: OSError) -> str:
    """What is said where the system did not deliver an image, which says nothing of the image."""
    return f"{name} was not read: {error.strerror or error}. That is the system's fault, not the image's"
