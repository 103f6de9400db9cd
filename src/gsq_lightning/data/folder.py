"""Folders of images as a dataset."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from gsq_lightning.data.batch import NO_LABEL, Sample, UnreadableImage
from gsq_lightning.data.sampler import SampleKey, sample_generator
from gsq_lightning.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif"})

# what Pillow raises for damaged files, files that are no images, and images of absurd size
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)

OnError = Literal["raise", "skip"]
Transform = Callable[[Image.Image, torch.Generator], Tensor]


class FolderImages(Dataset[Sample | UnreadableImage]):
    """All images below a folder, in the order of their names.

    Args:
        root: the folder. Where it has subfolders and no images of its own, each is a class, numbered in the order
            of their names.
        transform: RGB image and a random stream → (3, H, W) uint8 pixels.
        seed: of the random streams.
        on_error: what an image that cannot be decoded does: "raise" InputError with its name, or "skip".
        substitute: what takes the place of a skipped image: with True the next readable one, so that batches keep
            their size (training); with False nothing, so that no image counts twice (evaluation).

    Raises:
        InputError: where there is no such folder, or no image below it.
    """

    def __init__(
        self, root: Path, transform: Transform, seed: int = 0, on_error: OnError = "raise", substitute: bool = False
    ) -> None:
        self.root = root
        self.transform = transform
        self.seed = seed
        self.on_error = on_error
        self.substitute = substitute
        self.paths = find_images(root)
        classes = sorted({Path(path).parts[0] for path in self.paths if len(Path(path).parts) > 1})
        self.class_of = {name: number for number, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: SampleKey) -> Sample | UnreadableImage:
        unreadable: list[UnreadableImage] = []
        for step in range(len(self) if self.substitute else 1):
            relative = self.paths[(key.item + step) % len(self)]
            image = self._read(relative)
            if isinstance(image, Image.Image):
                pixels = self.transform(image, sample_generator(self.seed, key))
                label = self.class_of.get(Path(relative).parts[0], NO_LABEL)
                return Sample(pixels, label, str(self.root / relative), tuple(unreadable))
            unreadable.append(image)
        if self.substitute:
            raise InputError(f"none of the {len(self)} images below {self.root} can be read")
        return unreadable[0]

    @property
    def preparation(self) -> str:
        """What is done to an image, in words."""
        return str(self.transform)

    @cached_property
    def fingerprint(self) -> str | None:
        """See `fingerprint_of`."""
        return fingerprint_of(self.root, self.paths, self.transform)

    def _read(self, relative: str) -> Image.Image | UnreadableImage:
        path = self.root / relative
        try:
            return read_image(path)
        except UNREADABLE as error:
            if self.on_error == "raise":
                raise InputError(
                    f"{path} cannot be read as an image: {error}. Remove or repair it, or set on_error to skip to "
                    "leave such images out and count them."
                ) from error
            return UnreadableImage(str(path), str(error))


def fingerprint_of(root: Path, paths: list[str], transform: Transform | None) -> str | None:
    """Tells images from others: a hash of names, sizes, times of change, and of the transform.

    None where the transform does not say what it does, as a dataclass does, or a file is missing.
    """
    if transform is not None and not is_dataclass(transform):
        return None
    digest = hashlib.sha256(repr(transform).encode())
    try:
        for path in paths:
            file = (root / path).stat()
            digest.update(f"{path}\0{file.st_size}\0{file.st_mtime_ns}\0".encode())
    except OSError:  # reading it will tell
        return None
    return digest.hexdigest()


def find_images(root: Path) -> list[str]:
    """Paths of all images below `root`, relative to it, sorted. Raises InputError where there are none."""
    if not root.is_dir():
        raise InputError(f"there is no folder {root}")
    paths = [
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    ]
    if not paths:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"there are no images below {root}; names must end in one of: {suffixes}")
    return sorted(paths)


def read_image(path: Path) -> Image.Image:
    """The decoded image in RGB, by its content whatever its name; of an animation the first picture.

    Transparency is dropped and the EXIF orientation ignored, as ImageNet's users do; 16 bits become 8.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: where it is damaged, no image, or huge.
    """
    with Image.open(path) as image:
        if image.mode.startswith("I"):  # 16-bit gray, which Pillow would cut off at 255
            eight_bits = np.asarray(image).astype(np.int64) // 257
            return Image.fromarray(eight_bits.clip(0, 255).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")
