"""The interface of discriminators."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class LogitPair(NamedTuple):
    """Logits of images and of their reconstructions, both of the shape that `Discriminator.forward` gives.

    Attributes:
        real: of the images.
        fake: of the reconstructions.
    """

    real: Tensor
    fake: Tensor


class Discriminator(nn.Module, ABC):
    """Image → logits that are high for real images. A subclass implements `forward`."""

    supports_gradient_penalty: ClassVar[bool] = True

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → logits, any shape that starts with B."""

    def load(self) -> None:
        """Loads pretrained parts before their first use, so that missing weights are an error when training starts."""

    def forward_pair(self, image: Tensor, reconstruction: Tensor) -> LogitPair:
        """Logits of images and of reconstructions, as from two calls of `forward`; a subclass may save work."""
        return LogitPair(self(image), self(reconstruction))

    def within_step(self) -> AbstractContextManager[None]:
        """A context around all calls of one training step, for random parameters that are drawn once per step."""
        return nullcontext()


class ModuleDiscriminator(Discriminator):
    """Any module as a discriminator.

    Args:
        network: (B, 3, H, W) in [-1, 1] → logits, any shape that starts with B.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image)
        return logits


def as_discriminator(network: nn.Module) -> Discriminator:
    """Returns a discriminator unchanged; wraps any other module in a `ModuleDiscriminator`."""
    return network if isinstance(network, Discriminator) else ModuleDiscriminator(network)
