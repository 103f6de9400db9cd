"""Full float32 arithmetic within a training of lower precision, and float64 where there is any."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_lock = threading.Lock()
_depth = 0
_before: list[str] = []


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Without autocast, and without TF32 or bf16 inside float32 products and convolutions.

    TF32's 10 bits of mantissa move a Fréchet distance, and bf16 most nearest codes. Autocast is switched off for this
    thread; the backends' precision is global, so that it is restored when the last thread leaves.
    """
    with torch.autocast(device.type, enabled=False):
        _enter()
        try:
            yield
        finally:
            _leave()


def with_float64(device: torch.device) -> torch.device:
    """The device, or the CPU in place of one that has no float64, such as Apple's GPU."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def _enter() -> None:
    global _depth, _before
    with _lock:
        if _depth == 0:
            _before = [backend.fp32_precision for backend in _backends()]
            for backend in _backends():
                backend.fp32_precision = "ieee"
        _depth += 1


def _leave() -> None:
    global _depth
    with _lock:
        _depth -= 1
        if _depth == 0:
            for backend, value in zip(_backends(), _before, strict=True):
                backend.fp32_precision = value


def _backends() -> list[Any]:
    """Those with reduced precision for float32."""
    backends: Any = torch.backends
    return [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]


def keep_precision(fn: Callable[[Tensor], Tensor], widen: bool = True) -> Callable[[Tensor], Tensor]:
    """For a module's `_apply(fn)`: the same move to a device, without a cast to fewer bits.

    Args:
        fn: what `nn.Module.to`, `half` and the like apply to each tensor.
        widen: whether a cast to more bits is done.
    """

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        change = moved.dtype.itemsize - tensor.dtype.itemsize
        return tensor.to(moved.device) if change < 0 or (change > 0 and not widen) else moved

    return move
