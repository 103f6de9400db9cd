"""A batch of images with labels and paths."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from gsq_lightning.errors import InputError

NO_LABEL = -1


class UnreadableImage(NamedTuple):
    """An image that could not be decoded, and why."""

    path: str
    reason: str


class Sample(NamedTuple):
    """One image.

    Attributes:
        pixels: (3, H, W) uint8.
        label: its class, or NO_LABEL.
        path: where it lies.
        unreadable: images that should have stood in its place.
    """

    pixels: Tensor
    label: int
    path: str
    unreadable: tuple[UnreadableImage, ...] = ()


class ImageBatch(NamedTuple):
    """B images.

    Attributes:
        image: (B, 3, H, W), uint8 pixels as loaded, float32 in [-1, 1] once on the device.
        label: (B,) int64, NO_LABEL where there is none.
        path: B file names.
        unreadable: images that belong here but could not be decoded.
    """

    image: Tensor
    label: Tensor
    path: list[str]
    unreadable: list[UnreadableImage]


def collate(samples: "Iterable[Sample | UnreadableImage] | ImageBatch") -> ImageBatch:
    """A batch of the samples that could be read, of none with B = 0. What is a batch already stays as it is."""
    if isinstance(samples, ImageBatch):
        return samples
    samples = list(samples)
    return batch_of(samples, len(samples))


def batch_of(samples: Iterable[Sample | UnreadableImage], most: int) -> ImageBatch:
    """Copies each sample into the batch as it arrives, while it is still in the processor's cache.

    Args:
        samples: of one size.
        most: how many there are.
    """
    pixels = torch.empty(0, 0, 0, 3, dtype=torch.uint8)  # colors next to each other, as decoders leave them
    labels: list[int] = []
    paths: list[str] = []
    unreadable: list[UnreadableImage] = []
    for sample in samples:
        if isinstance(sample, UnreadableImage):
            unreadable.append(sample)
            continue
        if not paths:
            pixels = torch.empty(most, *sample.pixels.shape[1:], 3, dtype=torch.uint8)
        pixels[len(paths)].copy_(sample.pixels.permute(1, 2, 0))
        labels.append(sample.label)
        paths.append(sample.path)
        unreadable += sample.unreadable
    image = pixels[: len(paths)].permute(0, 3, 1, 2)
    return ImageBatch(image, torch.tensor(labels, dtype=torch.int64), paths, unreadable)


def per_device_batch_size(global_batch_size: int, world_size: int, accumulate_batches: int) -> int:
    """Images per device and forward pass, so that one optimizer step sees `global_batch_size` images.

    Raises:
        InputError: where devices × accumulation does not divide the global batch size.
    """
    share = world_size * accumulate_batches
    if global_batch_size < 1 or global_batch_size % share:
        lower = global_batch_size // share * share
        sizes = f"{lower} or {lower + share}" if lower > 0 else f"{share}"
        raise InputError(
            f"global_batch_size {global_batch_size} does not divide over {world_size} device(s) × "
            f"{accumulate_batches} accumulated batch(es); use {sizes}, or change their number"
        )
    return global_batch_size // share
