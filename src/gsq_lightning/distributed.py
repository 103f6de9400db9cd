"""Ranks of a distributed run, and what they exchange; without a process group there is one."""

import atexit
import os
import time
from functools import cache
from typing import Any, TypeVar, cast

from torch import Tensor, distributed

Value = TypeVar("Value")

PAUSE = 0.02  # seconds: many times what a thread needs, little for the start of a worker


def world_size() -> int:
    """Ranks of this run: 1 where there is no process group."""
    return distributed.get_world_size() if _are_several() else 1


def is_rank_0() -> bool:
    return not _are_several() or distributed.get_rank() == 0


def from_rank_0(value: Value) -> Value:
    """The value that rank 0 has, on all ranks; every rank must call it."""
    if not _are_several():
        return value
    values = [value if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(values, src=0)
    return cast(Value, values[0])


class Tally:
    """A count over all ranks, to which each adds without waiting for the others.

    It is kept in the key-value store of the process group: no call is collective.

    Args:
        name: of this count alone.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # PyTorch offers the store of a process group under this name alone
        self._store = distributed.distributed_c10d._get_default_store() if _are_several() else None
        self._own = 0

    def add(self, number: int) -> int:
        """Adds to the count; what it is now, over all ranks."""
        self._own += number
        return self._own if self._store is None else int(self._store.add(f"gsq/{self._name}", number))


def gathered(value: Value) -> list[Value]:
    """The values of all ranks, on all ranks; every rank must call it."""
    if not _are_several():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean over all ranks; every rank must call it.

    Its gradient with respect to the value of this rank is 1: once DDP has averaged gradients over the ranks, they are
    those of the mean.
    """
    if not _are_several():
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return value + (total / distributed.get_world_size() - value.detach())


@cache
def settle_threads() -> None:
    """Keeps gloo's threads from working while the interpreter shuts down or the process forks.

    A thread of gloo frees a tensor some time after the collective call has returned, and needs the interpreter for it.
    While that shuts down, the process aborts (https://github.com/pytorch/pytorch/issues/190489). While the process
    forks a DataLoader worker, the worker may wait forever for a lock that the thread held (CPython before 3.12).
    """
    atexit.register(leave_group)
    os.register_at_fork(before=let_threads_end)


def leave_group() -> None:
    """Leaves the process group, which ends its threads."""
    if _are_several():
        distributed.destroy_process_group()


def let_threads_end() -> None:
    """Gives threads a moment to free their tensors."""
    if _are_several():
        time.sleep(PAUSE)


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
