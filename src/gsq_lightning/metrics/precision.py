"""The arithmetic of the metrics: full float32 whatever the surrounding training uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within it, no autocast, and no TensorFloat-32, whose 10 bits of mantissa move a Fréchet distance."""
    with torch.autocast(device.type, enabled=False), _no_tensor_float() if device.type == "cuda" else _nothing():
        yield


@contextmanager
def _no_tensor_float() -> Iterator[None]:
    convolutions: Any = getattr(torch.backends.cudnn, "conv", None)
    products: Any = torch.backends.cuda.matmul
    # the names of torch 2.9 and later, which refuses to mix them with those before
    places = (
        [(convolutions, "fp32_precision", "ieee"), (products, "fp32_precision", "ieee")]
        if convolutions is not None
        else [(torch.backends.cudnn, "allow_tf32", False), (products, "allow_tf32", False)]
    )
    before = [getattr(place, name) for place, name, _ in places]
    try:
        for place, name, value in places:
            setattr(place, name, value)
        yield
    finally:
        for (place, name, _), value in zip(places, before, strict=True):
            setattr(place, name, value)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
