"""Photographs that scikit-image ships: real images to try things on, without a download."""

import hashlib
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from gsq_lightning.data.batch import NO_LABEL, Sample
from gsq_lightning.data.datamodule import ImageDataModule, ImageDataset
from gsq_lightning.data.decoding import read_image
from gsq_lightning.data.sampler import SampleKey, sample_generator
from gsq_lightning.data.transforms import random_crop
from gsq_lightning.errors import InputError

SMALLEST_SIDE = 300  # of a photograph, in pixels
TRAIN_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
VAL_PHOTOGRAPHS = ("chelsea.png", "coffee.png")


class PhotographsDataModule(ImageDataModule):
    """Random crops of photographs for training, two others cut into tiles for validation.

    Args:
        image_size: side of the crops and tiles, in pixels, at most 300.
        crops_per_epoch: length of an epoch; crops are never drawn twice the same.
        short_side: photographs are first shrunk to this short side, in pixels, so that a crop shows a thing rather
            than a texture; at least `image_size`.
        global_batch_size: crops per training step over all devices and accumulated batches.
        val_batch_size: tiles per device and step in validation, test and prediction.
        flip: mirror left and right with probability ½ in training.
        shuffle_colors: swap red, green and blue at random in training: few photographs have few colors.
        num_workers: loading processes per device.
        seed: of order, crops and flips.
    """

    def __init__(
        self,
        image_size: int = 64,
        crops_per_epoch: int = 6400,
        short_side: int = 300,
        global_batch_size: int = 32,
        val_batch_size: int = 32,
        flip: bool = True,
        shuffle_colors: bool = True,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(global_batch_size, val_batch_size, num_workers, seed)
        if not 1 <= image_size <= short_side:
            raise InputError(f"image_size is {image_size}; it must be from 1 to short_side, {short_side}")
        if image_size > SMALLEST_SIDE:
            raise InputError(f"image_size is {image_size}; the photographs have crops of at most {SMALLEST_SIDE}")
        if crops_per_epoch < 1:
            raise InputError(f"crops_per_epoch is {crops_per_epoch}; it must be at least 1")
        self.save_hyperparameters()
        self.image_size = image_size
        self.crops_per_epoch = crops_per_epoch
        self.short_side = short_side
        self.flip = flip
        self.shuffle_colors = shuffle_colors

    def make_train_dataset(self) -> ImageDataset:
        photographs = [load_photograph(name, self.short_side) for name in TRAIN_PHOTOGRAPHS]
        return RandomCrops(
            photographs, self.image_size, self.crops_per_epoch, self.flip, self.shuffle_colors, self.seed
        )

    def make_val_dataset(self) -> ImageDataset:
        return Tiles({name: load_photograph(name, self.short_side) for name in VAL_PHOTOGRAPHS}, self.image_size)


class RandomCrops(Dataset[Sample]):
    """Square crops at random places of some photographs.

    Args:
        photographs: each (3, H, W) uint8, at least size × size.
        size: side of a crop, in pixels.
        length: crops in an epoch.
        flip: mirror left and right with probability ½.
        shuffle_colors: swap the channels at random.
        seed: crop i of epoch e depends on (seed, e, i) alone.
    """

    def __init__(
        self, photographs: list[Tensor], size: int, length: int, flip: bool, shuffle_colors: bool, seed: int
    ) -> None:
        self.photographs = photographs
        self.size = size
        self.length = length
        self.flip = flip
        self.shuffle_colors = shuffle_colors
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> Sample:
        generator = sample_generator(self.seed, key)
        which = int(torch.randint(len(self.photographs), (), generator=generator))
        pixels = random_crop(self.photographs[which], self.size, generator, self.flip)
        if self.shuffle_colors:
            pixels = pixels[torch.randperm(3, generator=generator)]
        return Sample(pixels, NO_LABEL, f"crop {key.item} of epoch {key.epoch}")


class Tiles(Dataset[Sample]):
    """Photographs cut into squares without overlap, from the upper left; what does not fill a square is left out.

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

    def __getitem__(self, key: SampleKey) -> Sample:
        return self.tiles[key.item]

    @cached_property
    def fingerprint(self) -> str:
        """Tells these images from others: a hash of their pixels."""
        digest = hashlib.sha256()
        for tile in self.tiles:
            digest.update(tile.pixels.contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_photograph(name: str, short_side: int) -> Tensor:
    """A photograph of scikit-image's wheel, its short side shrunk to `short_side` pixels: (3, H, W) uint8."""
    try:
        import skimage
    except ModuleNotFoundError as error:
        raise InputError("the bundled photographs come with scikit-image: pip install scikit-image") from error
    image = read_image(Path(skimage.__file__).parent / "data" / name)
    if min(image.size) > short_side:
        image = F.resize(image, [short_side], F.InterpolationMode.BILINEAR)
    return F.pil_to_tensor(image)
