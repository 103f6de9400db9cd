"""A frozen network: neither trained nor saved. Features that it made are kept within a training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from gsq_lightning.precision import keep_precision


class CachedFeatures(NamedTuple):
    """What a frozen network made of an image, kept within a training step.

    Attributes:
        image: (B, 3, H, W), without gradient, in the memory where it was.
        features: maps or tokens at several depths, each (B, ...).
    """

    image: Tensor
    features: list[Tensor]


class FrozenNetwork(nn.Module):
    """Hides a network from training: always in eval mode and float32, without parameters or buffers to the outside.

    What walks over the parameters, buffers or state of a module (optimizers, checkpoints, averaging, distributed
    wrappers) does not see it; moving the holder to a device moves it.

    Args:
        network: taken over as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._held = (network.eval().requires_grad_(False).float(),)  # a tuple hides it from nn.Module

    @property
    def network(self) -> nn.Module:
        return self._held[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenNetwork":
        super()._apply(fn, recurse)
        self.network._apply(keep_precision(fn, widen=False), recurse)
        return self

    def forward(self, *inputs: Tensor) -> Any:
        return self.network(*inputs)
