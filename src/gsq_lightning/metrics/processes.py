"""What the processes of a run agree on, where there are several."""

from torch import distributed


def is_first_process() -> bool:
    return not _are_several() or distributed.get_rank() == 0


def as_first_process(flag: bool) -> bool:
    """The flag of the first process, on all of them; every process must call it."""
    if not _are_several():
        return flag
    flags = [flag]
    distributed.broadcast_object_list(flags, src=0)
    return flags[0]


def leave_group() -> None:
    """Ends the threads by which this process talks to the others, where there are any; to be called while Python lives.

    A thread of gloo that still holds a tensor when the interpreter goes down aborts the process
    (https://github.com/pytorch/pytorch/issues/190489).
    """
    if _are_several():
        distributed.destroy_process_group()


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
