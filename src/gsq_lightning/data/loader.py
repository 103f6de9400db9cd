"""DataLoaders, and the workers that fill them."""

import atexit
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from gsq_lightning.data.batch import collate

MOST_WORKERS = 8  # by default, for each device: more seldom help, and each takes memory


class Loading(NamedTuple):
    """How a device loads its share of the images.

    Attributes:
        rank, world_size: which device this is, and of how many.
        batch_size: images in a batch of this device.
        num_workers: worker processes of this device; 0 loads in the main process.
    """

    rank: int = 0
    world_size: int = 1
    batch_size: int = 1
    num_workers: int = 0


def make_loader(
    dataset: Dataset[Any],
    loading: Loading,
    sampler: Sampler | None = None,
    persistent: bool = True,
    collate_fn: Callable[[Any], Any] = collate,
) -> DataLoader:
    """A DataLoader of `ImageBatch`es, or what `collate_fn` makes; `persistent` workers stay alive between epochs."""
    with warnings.catch_warnings():
        # the data module says so itself, once, and what to do
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return DataLoader(
            dataset,
            batch_size=loading.batch_size,
            sampler=sampler,
            num_workers=loading.num_workers,
            collate_fn=collate_fn,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=persistent and loading.num_workers > 0,
            worker_init_fn=ignore_stop_signals,
        )


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of_each(devices: int) -> int:
    """CPU cores for each device of a machine: its share of those that this process may run on.

    All of them where SLURM has bound its tasks, one for each device, to cores of their own.
    """
    cores = usable_cores()
    is_task = os.environ.get("SLURM_NTASKS_PER_NODE") == str(devices)
    is_bound = is_task and cores <= int(os.environ.get("SLURM_CPUS_PER_TASK", 0))
    return cores if is_bound else cores // devices


def default_workers(devices: int) -> int:
    """Workers for each device of a machine: its share of the cores, from 1 to `MOST_WORKERS`."""
    return max(1, min(cores_of_each(devices), MOST_WORKERS))


def ignore_stop_signals(worker: int) -> None:
    """Keeps a worker running when the whole job gets a signal to stop: the main process finishes its step first.

    A cluster sends its signal to every process of a job. The main process ends its workers when it is done; where it is
    killed, torch's workers notice.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@atexit.register  # runs before multiprocessing's own handler, which would send SIGTERM and wait
def kill_workers() -> None:
    """Ends workers that are left when the interpreter exits, as they ignore SIGTERM."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else torch prints a traceback about their end
    for worker in workers:
        worker.kill()
