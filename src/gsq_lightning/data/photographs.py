"""Photographs that come with scikit-image: real images without a download."""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import skimage
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from gsq_lightning.data.batch import NO_LABEL, Sample
from gsq_lightning.data.dataset import ImageDataset, IndexedImages, OnError, SourceImages, key_of
from gsq_lightning.data.images import ImageNetDataModule
from gsq_lightning.data.sampler import SampleKey
from gsq_lightning.data.sources.splits import Split
from gsq_lightning.data.transforms import ResizeAndCrop, random_crop
from gsq_lightning.errors import require, whole_number
from gsq_lightning.pictures import read_rgb

SMALLEST_SIDE = 300  # of a photograph, in pixels
TRAIN_PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
    "color.png",  # a color wheel, as the photographs have little yellow and green
)
VAL_PHOTOGRAPHS = ("chelsea.png", "coffee.png")


class PhotographsDataModule(ImageNetDataModule):
    """Random crops of photographs: by default of those that scikit-image ships (and a color wheel), or of your own.

    Photographs are first shrunk to `short_side`, so that a crop shows objects rather than texture. Validation takes
    two other photographs of scikit-image, cut into tiles; of your own, center crops of the validation images.

    Args:
        image_size: side of the crops, in pixels.
        crops_per_epoch: length of an epoch; crops are drawn again in each epoch.
        short_side: what the short side of larger photographs is shrunk to, at least `image_size`. For those of
            scikit-image `image_size` and `val_image_size` are at most 300.
        global_batch_size: crops per training step over all devices and accumulated batches.
        val_batch_size: images per device and step in validation, test and prediction.
        flip: mirror left and right with probability ½ in training.
        num_workers: worker processes per device that load images; by default its share of the machine's cores, at
            most 8.
        seed: what order, crops and flips follow from; by default that of `seed_everything`, else torch's initial seed.
        root: a folder of photographs, or another source of images, as of `ImageNetDataModule`.
        train: photographs of the training split, if not in `root`.
        val: photographs of the validation split, if not in `root`.
        val_share: share of the photographs in `root`, in (0, 1), that is held out for validation where there is no
            validation split.
        on_error: what an unreadable image does: "raise" stops with its name; "skip" leaves it out and counts it.
        class_names: names of the classes, as of `ImageNetDataModule`.
        val_image_size: side of validation images and tiles, in pixels, at most `short_side`; by default `image_size`.
        trained_class_names: names of the classes of a training on other images, as of `ImageNetDataModule`.
    """

    def __init__(
        self,
        image_size: int = 64,
        crops_per_epoch: int = 6400,
        short_side: int = SMALLEST_SIDE,
        global_batch_size: int = 32,
        val_batch_size: int = 32,
        flip: bool = True,
        num_workers: int | None = None,
        seed: int | None = None,
        root: str | os.PathLike[str] | None = None,
        train: str | os.PathLike[str] | None = None,
        val: str | os.PathLike[str] | None = None,
        val_share: float | None = None,
        on_error: OnError = "raise",
        class_names: Sequence[str] | None = None,
        val_image_size: int | None = None,
        trained_class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            root,
            image_size,
            global_batch_size,
            val_batch_size,
            crop="random",
            flip=flip,
            num_workers=num_workers,
            on_error=on_error,
            seed=seed,
            train=train,
            val=val,
            val_share=val_share,
            class_names=class_names,
            val_image_size=val_image_size,
            trained_class_names=trained_class_names,
        )
        self.short_side = whole_number("short_side", short_side, 1)
        for name, size in (("image_size", image_size), ("val_image_size", self.predicted_size)):
            require(size <= short_side, f"{name} is {size}; it must be at most short_side, {short_side}")
            require(
                size <= SMALLEST_SIDE or not self._trains_on_bundled,
                f"{name} is {size}; scikit-image's photographs have crops of at most {SMALLEST_SIDE}",
            )
        self.crops_per_epoch = whole_number("crops_per_epoch", crops_per_epoch, 1)

    @property
    def _trains_on_bundled(self) -> bool:
        return self.root is None and self.train is None

    @cached_property
    def _bundled(self) -> list[Tensor]:
        return [load_photograph(name, self.short_side) for name in TRAIN_PHOTOGRAPHS]

    @property
    def settings(self) -> dict[str, Any]:
        others = ("source", "image_column", "label_column", "val_crop_ratio")
        known = {name: value for name, value in super().settings.items() if name not in others}
        return known | {"short_side": self.short_side}

    def make_train_dataset(self) -> ImageDataset:
        if self._trains_on_bundled:
            return RandomCrops(self._bundled, self.image_size, self.crops_per_epoch, self.flip)
        transform = ResizeAndCrop(self.image_size, self.short_side, self.crop, self.flip, enlarge=False)
        found = self._in_any_order(self._find_train(), "PhotographsDataModule takes")
        self._classes.number_training(found)
        return SourceImages(found, transform, self.on_error, substitute=True, epoch_images=self.crops_per_epoch)

    def make_predict_dataset(self, split: Split, side: int | None = None) -> ImageDataset | None:
        """Of scikit-image's photographs the crops of a first epoch, and tiles."""
        size = self.predicted_size if side is None else side
        if split == "train" and self._trains_on_bundled:
            return RandomCrops(self._bundled, size, self.crops_per_epoch, self.flip)
        if split == "val" and self._trains_on_bundled and self.val is None:
            return Tiles({name: load_photograph(name, self.short_side) for name in VAL_PHOTOGRAPHS}, size)
        short_side = self.short_side if side is None else max(side, self.short_side)
        return self._evaluated(ResizeAndCrop(size, short_side, enlarge=False), split)

    def _has_val_split(self) -> bool:
        return self._trains_on_bundled or super()._has_val_split()


class RandomCrops(IndexedImages):
    """Square crops at random places of some photographs.

    Args:
        photographs: each (3, H, W) uint8, at least size × size.
        size: side of a crop, in pixels.
        length: crops in an epoch.
        flip: mirror left and right with probability ½.
    """

    def __init__(self, photographs: list[Tensor], size: int, length: int, flip: bool) -> None:
        self.photographs = photographs
        self.size = size
        self.length = length
        self.flip = flip

    def __len__(self) -> int:
        return self.length

    @cached_property
    def fingerprint(self) -> str:
        """Identifies these crops: a hash of the photographs and their preparation."""
        digest = hashlib.sha256(f"{self.size} {self.length} {self.flip}".encode())
        for photograph in self.photographs:
            digest.update(photograph.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __str__(self) -> str:
        return f"{len(self)} crops of {len(self.photographs)} photographs"

    def __getitem__(self, key: SampleKey | int) -> Sample:
        key = key_of(key)
        generator = key.generator()
        which = int(torch.randint(len(self.photographs), (), generator=generator))
        pixels = random_crop(self.photographs[which], self.size, generator)
        if self.flip and torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(-1)
        return Sample(pixels, NO_LABEL, f"crop {key.item} of epoch {key.epoch}")


class Tiles(IndexedImages):
    """Photographs cut into squares without overlap, from the upper left; incomplete squares are left out.

    Args:
        photographs: (3, H, W) uint8 each, by name.
        size: side of a tile, in pixels.
    """

    def __init__(self, photographs: dict[str, Tensor], size: int) -> None:
        self.preparation = f"cut into tiles of {size}×{size}"
        self.tiles = [
            Sample(pixels[:, top : top + size, left : left + size], NO_LABEL, f"{name} at row {top} column {left}")
            for name, pixels in photographs.items()
            for top in range(0, pixels.shape[1] - size + 1, size)
            for left in range(0, pixels.shape[2] - size + 1, size)
        ]

    def __len__(self) -> int:
        return len(self.tiles)

    def __str__(self) -> str:
        return f"{len(self)} tiles of photographs"

    def __getitem__(self, key: SampleKey | int) -> Sample:
        return self.tiles[key_of(key).item]

    @cached_property
    def fingerprint(self) -> str:
        """Identifies these images: a hash of their pixels."""
        digest = hashlib.sha256()
        for tile in self.tiles:
            digest.update(tile.pixels.contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_photograph(name: str, short_side: int) -> Tensor:
    """A photograph that scikit-image ships, its short side shrunk to `short_side` pixels: (3, H, W) uint8."""
    image = read_rgb((Path(skimage.__file__).parent / "data" / name).read_bytes())
    if min(image.size) > short_side:
        image = F.resize(image, [short_side], F.InterpolationMode.BILINEAR)
    return F.pil_to_tensor(image)
