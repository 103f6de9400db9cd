"""The Trainer of the command: its options, and its further arguments."""

import ctypes
import platform
from datetime import timedelta
from inspect import signature
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch.nn.parallel import DistributedDataParallel

from gsq_lightning.cli.messages import INSTEAD
from gsq_lightning.errors import InputError, require
from gsq_lightning.training import PRECISIONS

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
PROCESS_TIMEOUT = timedelta(minutes=15)  # that processes wait for each other before they give up
# Lightning's annotations let Python's cache of types put float before int, so that "1", one batch, is read as "all"
LIMITS = {
    "limit_train_batches": "Training batches of an epoch: a number of them, or a share such as 0.1.",
    "limit_val_batches": "Validation batches: a number of them, or a share; 0 trains without validation.",
    "limit_test_batches": "Test batches: a number of them, or a share.",
    "limit_predict_batches": "Batches to predict: a number of them, or a share.",
    "val_check_interval": "Training batches between two validations: a number of them, or a share of the epoch.",
}


def add_trainer_options(parser: LightningArgumentParser) -> None:
    """Adds the Trainer's options but those that two optimizers rule out."""
    refused = {name.removeprefix("trainer.") for name in INSTEAD if name.startswith("trainer.")}
    parser.add_class_arguments(
        Trainer, "trainer", instantiate=False, fail_untyped=False, sub_configs=True, skip={*refused, *LIMITS}
    )
    for name, text in LIMITS.items():
        parser.add_argument(f"--trainer.{name}", type=int | float | None, default=None, help=text)


def make_trainer(options: dict[str, Any], callbacks: list[Callback]) -> Trainer:
    """Makes the Trainer. Raises InputError for options that it refuses, or that do not work with two optimizers.

    Args:
        options: of the section `trainer`.
        callbacks: all there are.
    """
    _check(options)
    # "auto" is "ddp" with several devices. Validation batches differ in number between ranks, so that buffers must not
    # be exchanged in each forward pass; newer versions of torch have another name for it
    newer = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    StrategyRegistry.register(
        "ddp",
        DDPStrategy,
        override=True,
        **{"forward_sync_buffers" if newer else "broadcast_buffers": False},  # type: ignore[arg-type]
        timeout=PROCESS_TIMEOUT,
    )
    try:
        trainer = Trainer(**{**options, "callbacks": callbacks, "enable_autolog_hparams": False})
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the Trainer refuses this config: {error}") from error
    if isinstance(trainer.accelerator, CPUAccelerator):
        keep_freed_memory()
    return trainer


def _check(options: dict[str, Any]) -> None:
    """Raises InputError for options that do not work with two optimizers."""
    every = options["check_val_every_n_epoch"]
    require(every is None or every >= 1, f"trainer.check_val_every_n_epoch is {every}; it must be at least 1, or null")
    interval = options["val_check_interval"]
    require(interval is None or interval > 0, f"trainer.val_check_interval is {interval}; it must be above 0, or null")
    # refused here: on a CPU Lightning would take bf16-mixed instead, and the module would not see the difference
    precision = options["precision"]
    require(
        str(precision) not in ("16", "16-mixed"),
        f"trainer.precision {precision} is not supported; use {' or '.join(PRECISIONS)}",
    )
    require(
        "spawn" not in str(options["strategy"]) and "fork" not in str(options["strategy"]),
        f"trainer.strategy {options['strategy']} cannot be used: each process runs the command here; use ddp",
    )


def keep_freed_memory() -> None:
    """Makes this process keep the memory that tensors on the CPU free, where the C library is glibc.

    Else blocks above 32 MiB go back to the kernel at once, and each new one costs a page fault for every 4 KiB.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
