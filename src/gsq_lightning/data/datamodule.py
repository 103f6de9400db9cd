"""Base of all data modules: batch sizes, order, resuming, loaders."""

import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from gsq_lightning.data.batch import per_device_batch_size
from gsq_lightning.data.dataset import ImageDataset
from gsq_lightning.data.loader import Loading, cores_of_each, default_workers, usable_cores
from gsq_lightning.data.sampler import DataPosition
from gsq_lightning.errors import how_many, require, whole_number

logger = logging.getLogger(__name__)


class ResumableDataModule(LightningDataModule):
    """Batches of a split in an order that (seed, epoch) decides, resumed where a checkpoint left off.

    A subclass makes the data sets of both splits.

    Attributes:
        how_to_validate: what the user can do where there are no validation images.

    Args:
        global_batch_size: images per training step over all devices, nodes and accumulated batches.
        val_batch_size: images per device and step in validation, test and prediction.
        num_workers: worker processes per device that load images; by default its share of the machine's cores, at
            most 8.
        seed: what order, crops and flips follow from; by default that of `seed_everything`, else torch's initial seed.
    """

    how_to_validate = "data.val names some, and data.val_share holds a share of the training images out"

    def __init__(
        self, global_batch_size: int, val_batch_size: int, num_workers: int | None = None, seed: int | None = None
    ) -> None:
        super().__init__()
        self.global_batch_size = whole_number("global_batch_size", global_batch_size, 1)
        self.val_batch_size = whole_number("val_batch_size", val_batch_size, 1)
        self.num_workers = None if num_workers is None else whole_number("num_workers", num_workers, 0)
        self.seed = None if seed is None else whole_number("seed", seed, 0)
        self._train: ImageDataset | None = None
        self._val: ImageDataset | None = None
        self._position: DataPosition | None = None
        self._train_batch_size = 0  # of this device
        self._pass_images = 0  # that training uses of an epoch, over all devices
        self._is_resumed = False  # from a checkpoint, and training has not begun

    @abstractmethod
    def make_train_dataset(self) -> ImageDataset: ...

    @abstractmethod
    def make_val_dataset(self) -> ImageDataset | None:
        """None where there are no validation images at all."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings that identify images and preparation, as plain data for checkpoints; "class" names the class."""

    @property
    def datasets(self) -> tuple[ImageDataset | None, ImageDataset | None]:
        """Those of training and validation that `setup` has made."""
        return self._train, self._val

    def setup(self, stage: str) -> None:
        if stage == "fit":
            if self._train is None:
                self._train = self.make_train_dataset()
                log_split("training", self._train)
            self._check_training(self._train)
            if self.trainer is not None and not self.trainer.enable_validation:
                return
        if self._val is None:
            self._val = self.make_val_dataset()
            if self._val is not None:
                log_split("validation", self._val)
        if self._val is None:
            require(stage == "fit", f"there are no validation images; {self.how_to_validate}")
            rank_zero_info(
                f"there are no validation images: training goes on without validation; {self.how_to_validate}"
            )
            if self.trainer is not None:
                self.trainer.limit_val_batches = 0

    def _check_training(self, dataset: ImageDataset) -> None:
        """Raises InputError for batches that do not fit the images, before the networks of training are loaded."""
        self._train_batch_size = per_device_batch_size(self.global_batch_size, self._world_size, self._accumulated)
        require(
            dataset.count() >= self.global_batch_size,
            f"training has {how_many(dataset.count(), 'image')}, fewer than global_batch_size "
            f"{self.global_batch_size}; lower it or add images",
        )
        require(
            dataset.has_random_access or not getattr(self.trainer, "overfit_batches", 0),
            "trainer.overfit_batches needs images that can be read in any order, and shards are streamed",
        )
        if self.num_workers is not None and self.num_workers > cores_of_each(self._devices):
            rank_zero_info(
                f"num_workers is {self.num_workers} for each of {self._devices} device(s), and this machine has "
                f"{usable_cores()} CPU core(s): more workers than cores only help where the storage is slow to answer"
            )

    def train_dataloader(self) -> DataLoader:
        assert self._train is not None
        if self._position is None:
            self._position = DataPosition(self._choose_seed(None))
        self._position.begin_pass()
        share = self._train_batch_size * self._world_size
        epoch_batches = self._train.count() // self.global_batch_size * (self.global_batch_size // share)
        pass_batches = limited(epoch_batches, None if self.trainer is None else self.trainer.limit_train_batches)
        self._pass_images = pass_batches * share
        if self._is_resumed:
            self._count_batches_behind(epoch_batches, pass_batches)
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")  # this data module is
            self._is_resumed = False
        return self._train.train_loader(self._position, self.global_batch_size, self._loading(self._train_batch_size))

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return [] if self._val is None else self._val.val_loader(self._loading(self.val_batch_size))

    test_dataloader = val_dataloader

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Counts what training uses."""
        if self.trainer is not None and self.trainer.training and self._position is not None:
            self._position.advance(self._train_batch_size * self._world_size, self._pass_images)
        return batch

    # ---------------------------------------------------------------------------------------- the position in the data

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, in images over all devices, so that it is valid for any number of devices."""
        position = self._position or DataPosition()
        return {
            "seed": position.seed if self._position is not None else None,
            "epoch": position.epoch,
            "images_consumed_in_epoch": position.consumed,
            "images_consumed": position.total,
            "training_images": None if self._train is None else self._train.count(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores the position of a checkpoint; ignored, with a warning, for another number of training images."""
        if self._train is None:  # validation has no use for it
            return
        before, found = state_dict["training_images"], self._train.count()
        seed = self._choose_seed(state_dict["seed"])
        self._position = DataPosition(seed, total=state_dict["images_consumed"])
        self._is_resumed = True
        if before != found:
            logger.warning(
                "the checkpoint was trained on %s images, and here are %d: training goes on with the first epoch of "
                "these",
                before,
                found,
            )
            return
        epoch, consumed = state_dict["epoch"], state_dict["images_consumed_in_epoch"]
        is_over = found - consumed < self.global_batch_size  # by batches that are larger than before
        self._position.epoch, self._position.consumed = (epoch + 1, 0) if is_over else (epoch, consumed)
        if self._position.consumed and seed != state_dict["seed"]:
            logger.warning(
                "the seed is %d, the checkpoint's was %d: what is left of this epoch is drawn from another order, so "
                "that some of its images come twice and some not at all",
                seed,
                state_dict["seed"],
            )

    def _choose_seed(self, resumed: int | None) -> int:
        """Seed of the order of images: flags, else the checkpoint, else torch's initial seed."""
        if self.seed is not None:
            return self.seed
        everything = os.environ.get("PL_GLOBAL_SEED")  # where `seed_everything` notes it, for all processes
        if everything is not None:
            return int(everything)
        if resumed is not None:
            return resumed
        seed = torch.initial_seed()
        return seed if self.trainer is None else int(self.trainer.strategy.broadcast(seed))

    def _count_batches_behind(self, epoch_batches: int, pass_batches: int) -> None:
        """Sets how many batches of its epoch Lightning takes as done: their size may have changed since the checkpoint.

        Args:
            epoch_batches: of a whole epoch, on this device.
            pass_batches: as many of these as training uses.
        """
        assert self._train is not None
        assert self._position is not None
        if self.trainer is None:
            return
        current: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        is_between_epochs = self._position.consumed == 0 and self._position.epoch > 0 and current.processed > 0
        steps_left = (self._train.count() - self._position.consumed) // self.global_batch_size
        left = steps_left * (self.global_batch_size // (self._train_batch_size * self._world_size))
        change = (pass_batches if is_between_epochs else epoch_batches - left) - current.processed
        current.ready += change
        current.started += change
        current.processed += change
        current.completed += change

    # --------------------------------------------------------------------------------------------------- this device

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def _devices(self) -> int:
        """Of this machine."""
        return self.trainer.num_devices if self.trainer is not None else 1

    @property
    def _accumulated(self) -> int:
        """Batches per optimizer step, by the module's own option or the Trainer's."""
        if self.trainer is None:
            return 1
        return getattr(self.trainer.lightning_module, "accumulate_batches", self.trainer.accumulate_grad_batches)

    def _loading(self, batch_size: int) -> Loading:
        workers = default_workers(self._devices) if self.num_workers is None else self.num_workers
        return Loading(self._rank, self._world_size, batch_size, workers)


def limited(batches: int, limit: int | float | None) -> int:
    """Batches that Lightning uses of an epoch, by the Trainer's `limit_train_batches`: a number, or a share."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))


def log_split(split: str, images: ImageDataset) -> None:
    """Logs a line on a split, and one for each note on it."""
    rank_zero_info(f"{split}: {images}")
    for note in images.notes:
        rank_zero_info(f"{split}: {note}")
