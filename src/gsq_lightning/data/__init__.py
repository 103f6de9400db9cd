"""Images for training and validation. They know nothing of what is trained on them."""

from gsq_lightning.data.batch import ImageBatch
from gsq_lightning.data.datamodule import ImageDataModule
from gsq_lightning.data.images import ImageNetDataModule
from gsq_lightning.data.photographs import PhotographsDataModule

__all__ = ["ImageBatch", "ImageDataModule", "ImageNetDataModule", "PhotographsDataModule"]
