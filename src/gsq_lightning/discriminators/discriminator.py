"""The interface of discriminators."""

from torch import Tensor, nn


class Discriminator(nn.Module):
    """Image → logits that are high for real images. A subclass implements `forward`."""

    def load(self) -> None:
        """Gets pretrained parts ready; called once when training starts, never for validation or prediction."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → logits, any shape that starts with B."""
        raise NotImplementedError
