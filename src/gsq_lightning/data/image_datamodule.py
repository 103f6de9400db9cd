"""What the data modules of images share besides: pixels to [-1, 1], and counting of unreadable images."""

import logging

from gsq_lightning.data.batch import ImageBatch
from gsq_lightning.data.datamodule import ResumableDataModule
from gsq_lightning.pixels import pixels_to_image

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

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
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
