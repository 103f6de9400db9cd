"""What the data modules hand to training: one batch of images and where they came from."""

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


def collate(samples: list[Sample | UnreadableImage]) -> ImageBatch:
    """Stacks the samples that could be read; a batch of none has B = 0."""
    readable = [sample for sample in samples if isinstance(sample, Sample)]
    unreadable = [sample for sample in samples if isinstance(sample, UnreadableImage)]
    return ImageBatch(
        image=torch.stack([sample.pixels for sample in readable]) if readable else torch.empty(0, 3, 0, 0).byte(),
        label=torch.tensor([sample.label for sample in readable], dtype=torch.int64),
        path=[sample.path for sample in readable],
        unreadable=unreadable + [image for sample in readable for image in sample.unreadable],
    )


def pixels_to_image(pixels: Tensor) -> Tensor:
    """uint8 in [0, 255] → float32 in [-1, 1]; `image_to_pixels` of it gives the same pixels back."""
    return pixels.float() / 127.5 - 1.0


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
