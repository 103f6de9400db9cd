"""Perceptual losses: the distance of two images in the features of a frozen network."""

from typing import Literal

from torch import Tensor, nn

from gsq_lightning.pretrained.backbones import load_lpips
from gsq_lightning.pretrained.frozen import FrozenNetwork


class PerceptualLoss(nn.Module):
    """Distance of reconstruction and image. A subclass implements `load` and `forward`."""

    def load(self) -> None:
        """Gets the network ready; called once when training starts, never for validation or prediction."""

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Two times (B, 3, H, W) in [-1, 1] → scalar."""
        raise NotImplementedError


class LPIPS(PerceptualLoss):
    """Learned Perceptual Image Patch Similarity with VGG16 (arXiv 1801.03924), version 0.1 of the lpips package.

    The network's calibration comes with the package; the VGG16 trunk is torchvision's.

    Args:
        weights: of VGG16: "pretrained", the path of vgg16-397923af.pth, or "random" (tests).
        input_range: what the network is fed: "symmetric", [-1, 1], which it is made for, or "unit", [0, 1], which
            the GSQ paper's reference feeds it.
    """

    def __init__(self, weights: str = "pretrained", input_range: Literal["symmetric", "unit"] = "symmetric") -> None:
        super().__init__()
        self.weights = weights
        self.input_range = input_range
        self.network: FrozenNetwork | None = None

    def load(self) -> None:
        if self.network is None:
            self.network = FrozenNetwork(load_lpips("vgg", self.weights))

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        assert self.network is not None, "call load() first"
        if self.input_range == "unit":
            reconstruction, image = (reconstruction + 1) / 2, (image + 1) / 2
        return self.network(reconstruction, image).float().mean()
