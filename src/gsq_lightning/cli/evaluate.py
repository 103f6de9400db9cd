"""Metrics of reconstructions that lie in a folder, against their originals: the same yardstick for any tokenizer."""

import hashlib
import math
import os
import unicodedata
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gsq_lightning.data.dataset import unread_line
from gsq_lightning.data.decoding import UNREADABLE, ImageDecoder
from gsq_lightning.data.sources import FolderSource, ImageSource
from gsq_lightning.data.transforms import MAX_IMAGE_SIZE, ResizeAndCrop, short_side_for
from gsq_lightning.errors import InputError
from gsq_lightning.metrics import MetricName, OriginalImages, ReconstructionMetrics
from gsq_lightning.pixels import pixels_to_image
from gsq_lightning.reports import EvaluationReport

DEFAULT_METRICS: tuple[MetricName, ...] = ("psnr", "psnr_set", "ssim", "rfid")
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
                f"{_size(pixels)}; --image_size N resizes and crops originals to N×N as validation does"
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
    def originals(self) -> OriginalImages:
        """Tells the originals from others: names, sizes, times of change, and what is done to them."""
        fingerprint = f"{self.real.fingerprint()} {self.transform!r}"
        return OriginalImages(hashlib.sha256(fingerprint.encode()).hexdigest(), len(self))


def evaluate_folders(
    real: Path,
    fake: Path,
    metrics: list[str] | None = None,
    image_size: int | None = None,
    crop_ratio: float = 1.0,
    bits_per_image: float | None = None,
    name: str | None = None,
    batch_size: int = 32,
    num_workers: int = 4,
    device: str = "auto",
    antialias: bool = True,
    inception_weights: str = "pretrained",
    alexnet_weights: str = "pretrained",
    vgg16_weights: str = "pretrained",
    dinov2_weights: str = "pretrained",
    show_progress: bool = False,
) -> EvaluationReport:
    """Computes the metrics of a folder of reconstructions.

    Args:
        real: folder of originals.
        fake: folder of reconstructions, as files that lose nothing, such as PNG.
        metrics: names, as in `ReconstructionMetrics`, all but "codebook".
        image_size: originals are first resized to a short side of image_size / crop_ratio and center-cropped to this
            square, as in validation; None leaves them as they are.
        crop_ratio: in (0, 1].
        bits_per_image: of the tokens behind the reconstructions, for comparisons.
        name: what the tokenizer is called; by default the name of the folder.
        batch_size: images at a time; those of other sizes than their neighbors go alone.
        num_workers: loading processes.
        device: "auto" takes a GPU where there is one.
        antialias, inception_weights, alexnet_weights, vgg16_weights, dinov2_weights: as in `ReconstructionMetrics`.
        show_progress: draw a bar in the terminal.

    Raises:
        InputError: where files have no partner or differ in size, for unknown metrics, or without weights.
    """
    names = _checked_names(metrics)
    if bits_per_image is not None and not 0 < bits_per_image < math.inf:
        raise InputError(f"bits_per_image is {bits_per_image}; it must be above 0")
    if batch_size < 1 or num_workers < 0:
        raise InputError(f"batch_size {batch_size} must be at least 1, num_workers {num_workers} at least 0")
    pairs = FolderPairs(real.expanduser(), fake.expanduser(), _transform(image_size, crop_ratio))
    computed = ReconstructionMetrics(
        names, inception_weights, alexnet_weights, vgg16_weights, dinov2_weights, antialias
    )
    computed.load()
    place = _device(device)
    computed.to(place)
    computed.start(pairs.originals)
    loader = DataLoader(pairs, batch_size, num_workers=num_workers, collate_fn=_stacked)
    for batch in tqdm(loader, "images", disable=not show_progress, unit="batch"):
        for part in batch:
            computed.update(pixels_to_image(part.original.to(place)), pixels_to_image(part.reconstruction.to(place)))
    values = computed.compute()
    seen = computed.seen
    assert seen is not None
    if bits_per_image is not None:
        values["bits_per_image"] = bits_per_image
        if seen.size is not None:
            values["bits_per_pixel"] = bits_per_image / math.prod(seen.size)
    return EvaluationReport(
        name=name or Path(os.path.abspath(fake)).name,
        metrics=values,
        notes=list(computed.notes),
        checkpoint=None,
        data=str(real),
        originals=seen.hash_in_words,
        image_size=seen.size_in_words,
        preparation="as they are" if pairs.transform is None else str(pairs.transform),
        extractors=computed.description,
        antialias=antialias,
        precision=f"images in {fake}",
    )


def _checked_names(names: list[str] | None) -> tuple[MetricName, ...]:
    known = [name for name in get_args(MetricName) if name != "codebook"]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InputError(f"metrics {', '.join(unknown)} cannot be computed of images; known are: {', '.join(known)}")
    return cast(tuple[MetricName, ...], tuple(names)) if names else DEFAULT_METRICS


def _transform(image_size: int | None, crop_ratio: float) -> ResizeAndCrop | None:
    if image_size is None:
        return None
    if not 1 <= image_size <= MAX_IMAGE_SIZE or not 0.0 < crop_ratio <= 1.0:
        raise InputError(
            f"image_size is {image_size} and crop_ratio {crop_ratio}; the first must be from 1 to {MAX_IMAGE_SIZE}, "
            "the second above 0 and at most 1"
        )
    return ResizeAndCrop(image_size, short_side_for(image_size, crop_ratio))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).cpu()  # the meta device makes tensors, but has no values
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


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
    """Neighbors of equal size in one: each tensor takes a file descriptor on its way from a loading process."""
    groups = groupby(batch, key=lambda pair: pair.original.shape)
    return [Pair(*(torch.stack(part) for part in zip(*members, strict=True))) for _, members in groups]


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[-2]}×{pixels.shape[-1]}"
