"""What the processes of a run agree on, where there are several."""

import atexit
import os
import time
from functools import cache
from typing import TypeVar, cast

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


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean over all ranks; every rank must call it. Its gradient is that of the own rank's share, times the number
    of ranks: data-parallel training, which averages gradients, then has that of the mean."""
    if not _are_several():
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return value + (total / distributed.get_world_size() - value.detach())


@cache
def settle_threads() -> None:
    """Sees to it that threads by which this process talks to others meet neither its end nor a fork at work.

    A thread of gloo lets go of a tensor after those who waited for it have gone on, and needs Python for that. If the
    interpreter goes down meanwhile, the process aborts (https://github.com/pytorch/pytorch/issues/190489). If the
    process forks, to start a worker, the worker may wait forever for a lock, which CPython before 3.12 takes
    before it has reset it.
    """
    atexit.register(leave_group)
    os.register_at_fork(before=let_threads_end)


def leave_group() -> None:
    """Ends the threads by which this process talks to the others, where there are any."""
    if _are_several():
        distributed.destroy_process_group()


def let_threads_end() -> None:
    """Gives threads a moment to let go of what they have done."""
    if _are_several():
        time.sleep(PAUSE)


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
