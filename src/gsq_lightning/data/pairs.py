"""Images of one place, and reconstructions with their originals at two, file by file."""

import hashlib
import io
import os
import unicodedata
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gsq_lightning.data.dataset import unread_line
from gsq_lightning.data.decoding import decode_image
from gsq_lightning.data.sources import ImageSource
from gsq_lightning.data.sources.classes import common_depth, parts_of
from gsq_lightning.data.sources.locate import open_images
from gsq_lightning.data.transforms import ResizeAndCrop
from gsq_lightning.errors import InputError, first_few
from gsq_lightning.pictures import picture_formats

SHOWN = 3  # names in a message


class LoadedImage(NamedTuple):
    """An image as it is compared.

    Attributes:
        pixels: (3, H, W) uint8.
        content: of its file.
    """

    pixels: Tensor
    content: bytes


class Pair(NamedTuple):
    """An original and its reconstruction.

    Attributes:
        original, reconstruction: (3, H, W) uint8 each.
        turned: how many of the originals have an EXIF orientation.
    """

    original: Tensor
    reconstruction: Tensor
    turned: int


class EvaluatedImages(Dataset[Tensor]):
    """The images of a folder, an archive, a list or a Parquet file, (3, H, W) uint8 each.

    Args:
        place: a folder with images, at any depth, or a file of them, as `data.val` takes it: of one that holds
            splits the images of validation.
        transform: what is done to them, or nothing.

    Raises:
        InputError: where there are no images; when asked for one, where it cannot be read or is too narrow.
    """

    def __init__(self, place: Path, transform: ResizeAndCrop | None = None) -> None:
        self.source = _source_at(place)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source.names)

    def __getitem__(self, item: int) -> Tensor:
        return self.load(item).pixels

    def load(self, item: int) -> LoadedImage:
        """An image with the bytes of its file."""
        name = self.source.name(item)
        try:
            content = self.source.read(item)
            pixels = decode_image(content)
        except OSError as error:
            raise InputError(unread_line(name, error)) from error
        except ValueError as error:
            raise InputError(f"{name} cannot be read as an image: {error}") from error
        if self.transform is None:
            return LoadedImage(pixels, content)
        try:
            return LoadedImage(self.transform(pixels, torch.Generator), content)
        except ValueError as error:
            raise InputError(f"{name} cannot be resized: {error}") from error

    @property
    def fingerprint(self) -> str:
        """Identifies the images: a hash of names, sizes, modification times, and preparation."""
        return hashlib.sha256(f"{self.source.fingerprint()} {self.transform!r}".encode()).hexdigest()

    def loader(self, batch_size: int, num_workers: int) -> DataLoader:
        """Lists of batches (B, 3, H, W): neighbors of equal size in one."""
        return DataLoader(self, batch_size, num_workers=num_workers, collate_fn=_stacked_images)


class ImagePairs(Dataset[Pair]):
    """Images at two places that have the same path there, without suffix and, if need be, without folders around all.

    Args:
        real: place of the originals, see `EvaluatedImages`.
        fake: place of the reconstructions.
        transform: what is done to the originals first, or nothing.

    Raises:
        InputError: where a file has no partner; when asked for a pair, where it cannot be read or sizes differ.
    """

    def __init__(self, real: Path, fake: Path, transform: ResizeAndCrop | None) -> None:
        self.real = EvaluatedImages(real, transform)
        self.fake = EvaluatedImages(fake)
        originals, reconstructions = _by_stem(self.real.source), _by_stem(self.fake.source)
        if originals.keys() != reconstructions.keys():  # names in an archive have folders that those in a folder lack
            inner = _without_outer_folders(originals), _without_outer_folders(reconstructions)
            if inner[0].keys() == inner[1].keys():
                originals, reconstructions = inner
        for folder, missing in (
            (fake, originals.keys() - reconstructions.keys()),
            (real, reconstructions.keys() - originals.keys()),
        ):
            if missing:
                names = sorted(missing)
                raise InputError(
                    f"{len(names)} of {len(originals.keys() | reconstructions.keys())} images have no partner in "
                    f"{folder}: {first_few(names, SHOWN)}; "
                    "files belong together that have the same path, without suffix"
                )
        self.items = [(originals[stem], reconstructions[stem]) for stem in sorted(originals)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> Pair:
        original, reconstruction = self.items[item]
        pixels, content = self.real.load(original)
        is_turned = has_orientation(content)
        pair = Pair(pixels, self.fake[reconstruction], int(is_turned))
        if pair.original.shape != pair.reconstruction.shape:
            raise InputError(
                f"{self.fake.source.name(reconstruction)} has {_size(pair.reconstruction)} pixels, its original "
                f"{_size(pair.original)}"
                + (", and an EXIF orientation, which is ignored" if is_turned else "")
                + "; image_size N resizes and crops originals to N×N as validation does"
            )
        return pair

    @property
    def fingerprint(self) -> str:
        """Of the originals, see `EvaluatedImages`."""
        return self.real.fingerprint

    def loader(self, batch_size: int, num_workers: int) -> DataLoader:
        """Lists of batches: neighbors of equal size in one `Pair` of (B, 3, H, W) each."""
        return DataLoader(self, batch_size, num_workers=num_workers, collate_fn=_stacked)


def has_orientation(content: bytes) -> bool:
    """Whether an image file asks viewers to turn it."""
    try:
        with Image.open(io.BytesIO(content), formats=picture_formats()) as image:
            exif = Image.Image.getexif(image)  # that of PNG files decodes the picture
            return exif.get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # Pillow's readers of damaged EXIF; the pixels were read
        return False


def _source_at(place: Path) -> ImageSource:
    """The images of a folder or of a file of images. Raises InputError where there are none."""
    if not place.exists():
        raise InputError(f"there is no file or folder {place}")
    source = open_images(str(place), "auto", "val")
    assert isinstance(source, ImageSource)  # only what is remote is streamed
    return source


def _by_stem(source: ImageSource) -> dict[str, int]:
    """Numbers of images by their path without suffix."""
    items: dict[str, int] = {}
    for item, path in enumerate(source.names):
        stem = unicodedata.normalize("NFC", os.path.splitext(path)[0])  # letters and accents in one, or apart
        if stem in items:
            raise InputError(f"{source.place} holds both {source.names[items[stem]]} and {path}; which one is meant?")
        items[stem] = item
    return items


def _without_outer_folders(items: dict[str, int]) -> dict[str, int]:
    parts = {stem: parts_of(stem) for stem in items}
    depth = common_depth(path[:-1] for path in parts.values())
    return {os.sep.join(path[depth:]): items[stem] for stem, path in parts.items()}


def _stacked(batch: list[Pair]) -> list[Pair]:
    """Neighbors of equal size in one: each tensor takes a file descriptor on its way from a worker."""
    groups = groupby(batch, key=lambda pair: pair.original.shape)
    stacked = []
    for _, members in groups:
        originals, reconstructions, turned = zip(*members, strict=True)
        stacked.append(Pair(torch.stack(originals), torch.stack(reconstructions), sum(turned)))
    return stacked


def _stacked_images(batch: list[Tensor]) -> list[Tensor]:
    return [torch.stack(list(members)) for _, members in groupby(batch, key=lambda image: image.shape)]


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[-2]}×{pixels.shape[-1]}"
