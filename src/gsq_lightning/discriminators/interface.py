"""The interface of discriminators."""

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


class Discriminator(nn.Module):
    """Image → logits that are high for real images. A subclass implements `forward`."""

    supports_gradient_penalty: ClassVar[bool] = True

    def load(self) -> None:
        """Gets pretrained parts ready; called once when training starts, never for validation or prediction."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → logits, any shape that starts with B."""
        raise NotImplementedError

    def forward_pair(self, image: Tensor, reconstruction: Tensor) -> LogitPair:
        """Logits of images and of reconstructions, as two calls of `forward` give them; perhaps with less work."""
        return LogitPair(self(image), self(reconstruction))

    def within_step(self) -> AbstractContextManager[None]:
        """Surrounds all calls of one training step, for what should be drawn at random only once in it."""
        return nullcontext()
