"""Base of the data modules of images: pixels to [-1, 1], and counting of unreadable images."""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from gsq_lightning.data.copies import COPIES, side_before
from gsq_lightning.data.datamodule import ResumableDataModule, log_split
from gsq_lightning.data.dataset import ImageDataset
from gsq_lightning.data.image_shards import Cut, ImageShards
from gsq_lightning.data.sources.splits import Split
from gsq_lightning.errors import InputError, look_up, one_of
from gsq_lightning.pixels import pixels_to_image
from gsq_lightning.tokens.facts import Augmentation, PredictedSplit

logger = logging.getLogger(__name__)


class ImageDataModule(ResumableDataModule):
    """Batches of images in an order that (seed, epoch) decides, resumed where a checkpoint left off.

    A subclass makes the data sets of both splits.

    Args:
        global_batch_size: images per training step over all devices, nodes and accumulated batches.
        val_batch_size: images per device and step in validation, test and prediction.
        num_workers: worker processes per device that load images; by default its share of the machine's cores, at
            most 8.
        seed: of order, crops and flips; by default that of `seed_everything`, else torch's initial seed.
    """

    def __init__(
        self, global_batch_size: int, val_batch_size: int, num_workers: int | None = None, seed: int | None = None
    ) -> None:
        super().__init__(global_batch_size, val_batch_size, num_workers, seed)
        self.unreadable: dict[str, str] = {}
        self._predicted: list[DataLoader] | None = None

    @abstractmethod
    def make_predict_dataset(self, split: Split, side: int | None = None) -> ImageDataset | None:
        """The images of a split as they are evaluated, whole or as squares of another side; None where there are none.

        Args:
            split: which.
            side: in pixels; by default `predicted_size`.
        """

    @property
    @abstractmethod
    def predicted_size(self) -> int:
        """Side of the images that are evaluated, in pixels."""

    def predict_splits(self, split: PredictedSplit) -> list[Split]:
        """The splits that a word stands for: "all" leaves out a validation split that is not there."""
        one_of("split", split, PredictedSplit)
        return ["train", "val"] if split == "all" else [split]

    def in_shards(
        self, split: PredictedSplit, images_per_shard: int, augmentation: Augmentation
    ) -> dict[Split, ImageShards]:
        """The images of each split, in the shards that their tokens are written in.

        Args:
            split: which; or "all" there are.
            images_per_shard: of those that can be read in any order; streamed ones keep their shards.
            augmentation: which copies are made of each image.

        Raises:
            InputError: where there are no such images.
        """
        look_up("augment", augmentation, COPIES)
        cut = Cut(augmentation, self.predicted_size)
        side = side_before(augmentation, cut.size)
        found: dict[Split, ImageShards] = {}
        for name in self.predict_splits(split):
            images = self.make_predict_dataset(name, None if side == cut.size else side)
            if images is None:
                raise InputError(f"there are no images of the split {name}; {self.how_to_validate}")
            log_split("training" if name == "train" else "validation", images)
            found[name] = images.in_shards(cut, images_per_shard)
            found[name].class_names = getattr(self, "class_names", None)
        return found

    def predict_shards(self, chosen: Mapping[ImageShards, Sequence[int]]) -> None:
        """Has the next prediction go over these shards on this device, in place of the validation images."""
        self._predicted = [
            images.loader(numbers, self._loading(self.val_batch_size)) for images, numbers in chosen.items()
        ]

    def setup(self, stage: str) -> None:
        if stage != "predict":  # which images are predicted is not known yet
            super().setup(stage)

    def predict_dataloader(self) -> DataLoader | list[DataLoader]:
        if self._predicted is not None:
            return self._predicted
        super().setup("predict")
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Pixels to [-1, 1], on the device: uint8 crosses the bus at a quarter of the cost."""
        super().on_after_batch_transfer(batch, dataloader_idx)
        for path, reason in batch.unreadable:
            if path not in self.unreadable:
                self.unreadable[path] = reason
                logger.warning("skipped unreadable image %d, %s: %s", len(self.unreadable), path, reason)
        return batch._replace(image=pixels_to_image(batch.image))

    def teardown(self, stage: str) -> None:
        if self.unreadable:
            logger.warning("%d image(s) could not be read and were skipped", len(self.unreadable))
