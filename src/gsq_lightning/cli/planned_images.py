"""How many images a planned training has: those of its data where it is at hand, else ImageNet's."""

from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gsq_lightning.data.datamodule import ResumableDataModule
from gsq_lightning.data.dataset import ImageDataset, SourceImages
from gsq_lightning.data.images import NoImagesNamed

IMAGENET_TRAIN, IMAGENET_VAL = 1_281_167, 50_000
IMAGENET_BYTES = 147_897_477_120 / IMAGENET_TRAIN  # of an image: ILSVRC2012_img_train.tar
SAMPLED = 64  # files whose sizes are averaged


@dataclass(frozen=True)
class PlannedImages:
    """The images of a training.

    Attributes:
        train: of an epoch.
        val: of a validation.
        file_bytes: mean of a training image's file; None where nothing is read in training, or it is not known.
        origin: where the number of training images is from, in at most 37 characters: a column of the table.
    """

    train: int
    val: int
    file_bytes: float | None
    origin: str


def planned_images(data: Any, train: int | None, val: int | None) -> PlannedImages:
    """Counts what is not given. Raises InputError where the data that options name is not there.

    Args:
        data: the data module.
        train, val: as the options of `gsq plan` say.
    """
    counted = PlannedImages(IMAGENET_TRAIN, IMAGENET_VAL, IMAGENET_BYTES, "ImageNet's: no --data.root is given")
    if (train is None or val is None) and isinstance(data, ResumableDataModule):
        with suppress(NoImagesNamed):
            data.setup("fit")
        found, validation = data.datasets
        if found is not None:
            counted = _counted(found, validation if val is None else None)
    if train is None:
        train, origin = counted.train, counted.origin
    else:
        origin = "as --train_images says"
    return PlannedImages(train, counted.val if val is None else val, counted.file_bytes, origin)


def _counted(train: ImageDataset, val: ImageDataset | None) -> PlannedImages:
    file_bytes = None
    if isinstance(train, SourceImages):
        source = train.source
        some = range(0, len(source), max(1, len(source) // SAMPLED))
        file_bytes = fmean(len(source.read(item)) for item in some)
    return PlannedImages(train.count(), 0 if val is None else val.count(), file_bytes, "in the data")
