"""Images for training and validation, and tokens. They know nothing of what is trained on them."""

from gsq_lightning.data.batch import ImageBatch
from gsq_lightning.data.image_datamodule import ImageDataModule
from gsq_lightning.data.images import ImageNetDataModule
from gsq_lightning.data.photographs import PhotographsDataModule
from gsq_lightning.data.token_datamodule import TokenDataModule
from gsq_lightning.data.token_dataset import TokenDataset

__all__ = [
    "ImageBatch",
    "ImageDataModule",
    "ImageNetDataModule",
    "PhotographsDataModule",
    "TokenDataModule",
    "TokenDataset",
]
