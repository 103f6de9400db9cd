"""What all data modules of this library share: batch sizes, order, resuming, loaders, counting of unreadable images."""

import atexit
import logging
import multiprocessing
import signal
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from gsq_lightning.data.batch import (
    ImageBatch,
    Sample,
    UnreadableImage,
    collate,
    per_device_batch_size,
)
from gsq_lightning.data.sampler import EpochSampler
from gsq_lightning.data.stream import StreamedShards
from gsq_lightning.errors import InputError
from gsq_lightning.pixels import pixels_to_image

logger = logging.getLogger(__name__)

ImageDataset = Dataset[Sample | UnreadableImage]


class ImageDataModule(LightningDataModule):
    """Batches of images in an order that (seed, epoch) decides, resumed where a checkpoint left off.

    A subclass makes the two datasets; they are indexed by `SampleKey`.

    Args:
        global_batch_size: images per training step over all devices, nodes and accumulated batches.
        val_batch_size: images per device and step in validation, test and prediction.
        num_workers: loading processes per device.
        seed: of order, crops and flips.
    """

    def __init__(self, global_batch_size: int, val_batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        if val_batch_size < 1:
            raise InputError(f"val_batch_size is {val_batch_size}; it must be at least 1")
        if num_workers < 0:
            raise InputError(f"num_workers is {num_workers}; it must be at least 0")
        if seed < 0:
            raise InputError(f"seed is {seed}; it must be at least 0")
        per_device_batch_size(global_batch_size, 1, 1)
        self.global_batch_size = global_batch_size
        self.val_batch_size = val_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.unreadable: dict[str, str] = {}
        self._train: ImageDataset | None = None
        self._val: ImageDataset | None = None
        self._training_images: int | None = None
        self._images_before = 0  # training images that the runs before this one consumed, over all devices
        self._batches_before = 0  # and their batches on this device

    @abstractmethod
    def make_train_dataset(self) -> ImageDataset: ...

    @abstractmethod
    def make_val_dataset(self) -> ImageDataset: ...

    def count(self, dataset: ImageDataset) -> int:
        """Images in a dataset."""
        return len(dataset)  # type: ignore[arg-type]

    def setup(self, stage: str) -> None:
        if stage == "fit" and self._train is None:
            self._train = self.make_train_dataset()
            self._report_size("training", self._train)
        if self._val is None:
            self._val = self.make_val_dataset()
            self._report_size("validation", self._val)

    def train_dataloader(self) -> DataLoader:
        assert self._train is not None
        size = self._count_training_images()
        if size < self.global_batch_size:
            raise InputError(
                f"there are {size} training images, fewer than global_batch_size {self.global_batch_size}; "
                "lower it or add images"
            )
        self._batches_before = self._batches_processed()
        if isinstance(self._train, StreamedShards):
            device_batch = self._train_batch_size * self._world_size
            epoch_size = size // self.global_batch_size * self.global_batch_size
            self._train.deal(self._world_size, self._rank).train(
                self._train_batch_size, epoch_size // device_batch, self._images_before // device_batch
            )
            return self._loader(self._train, None, self._train_batch_size)
        sampler = self._sampler(self._train, shuffle=True, multiple_of=self.global_batch_size)
        sampler.follow(self._images_consumed)
        return self._loader(self._train, sampler, self._train_batch_size)

    def _count_training_images(self) -> int:
        """Asked once: shards that are streamed may be away later."""
        assert self._train is not None
        if self._training_images is None:
            self._training_images = self.count(self._train)
        return self._training_images

    def val_dataloader(self) -> DataLoader:
        assert self._val is not None
        if isinstance(self._val, StreamedShards):
            return self._loader(self._val.deal(self._world_size, self._rank), None, self.val_batch_size)
        sampler = self._sampler(self._val)
        if len(sampler) == 0:
            # fewer images than devices: a batch of none, as Lightning lets no device wait for the others without one
            return DataLoader(NoImages(), sampler=EpochSampler(NoImages()), collate_fn=collate)
        return self._loader(self._val, sampler, self.val_batch_size)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        """Pixels to [-1, 1], on the device: uint8 crosses the bus at a quarter of the cost."""
        for path, reason in batch.unreadable:
            if path not in self.unreadable:
                self.unreadable[path] = reason
                logger.warning("skipped unreadable image %d, %s: %s", len(self.unreadable), path, reason)
        return batch._replace(image=pixels_to_image(batch.image))

    def teardown(self, stage: str) -> None:
        if self.unreadable:
            logger.warning("%d image(s) could not be read and were skipped", len(self.unreadable))

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, in images, so that it holds for another number of devices too."""
        return {
            "images_consumed": self._images_consumed(),
            "training_images": self._training_images,
            "global_batch_size": self.global_batch_size,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up the place of a checkpoint; over another number of training images it means nothing: that is said."""
        if self._train is None:  # validation has no use for it
            return
        before, found = state_dict.get("training_images"), self._count_training_images()
        if before is not None and found != before:
            logger.warning(
                "the checkpoint was trained on %d images, and here are %d: training goes on with the first epoch of "
                "these",
                before,
                found,
            )
            return
        consumed = state_dict["images_consumed"]
        # in the midst of a step whose batches had another size that step begins anew, as the module does
        since_step = consumed % state_dict.get("global_batch_size", self.global_batch_size)
        fits = since_step % (self._train_batch_size * self._world_size) == 0
        self._images_before = consumed if fits else consumed - since_step

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def _train_batch_size(self) -> int:
        module = self.trainer.lightning_module if self.trainer is not None else None
        return per_device_batch_size(self.global_batch_size, self._world_size, getattr(module, "accumulate_batches", 1))

    def _report_size(self, split: str, dataset: ImageDataset) -> None:
        found = (
            f"{len(dataset.urls)} shards" if isinstance(dataset, StreamedShards) else f"{self.count(dataset)} images"
        )
        place = getattr(dataset, "root", None)
        rank_zero_info(f"{split}: {found}" + (f" in {place}" if place else ""))

    def _images_consumed(self) -> int:
        batches = self._batches_processed() - self._batches_before
        return self._images_before + batches * self._train_batch_size * self._world_size

    def _batches_processed(self) -> int:
        """Training batches of this device so far, those of the runs before this one included."""
        if self.trainer is None:
            return 0
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(total.processed)

    def _sampler(self, dataset: ImageDataset, shuffle: bool = False, multiple_of: int = 1) -> EpochSampler:
        return EpochSampler(dataset, self._world_size, self._rank, shuffle, self.seed, multiple_of)

    def _loader(self, dataset: ImageDataset, sampler: EpochSampler | None, batch_size: int) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=outlive_a_signal,
        )


def outlive_a_signal(worker: int) -> None:
    """Lets a loading process live on when all processes of a job are asked to stop: the last step may still need it.

    The main process tells it when to end, or kills it at its own end; where that is killed, torch's workers notice.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@atexit.register  # before multiprocessing's own, which would send SIGTERM and wait
def kill_loading_processes() -> None:
    """Ends what ignores SIGTERM."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class NoImages(Dataset[ImageBatch]):
    """Makes one batch, of none."""

    def __len__(self) -> int:
        return 1

    def __getitems__(self, keys: list[Any]) -> ImageBatch:
        return collate([])
