"""Perceptual losses: the distance of two images in the features of a frozen network."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from gsq_lightning.errors import look_up
from gsq_lightning.pretrained.backbones import load_lpips
from gsq_lightning.pretrained.frozen import FrozenNetwork

InputRange = Literal["symmetric", "unit"]

# factor and offset that take [-1, 1] there
INPUT_RANGES: dict[InputRange, tuple[float, float]] = {"symmetric": (1.0, 0.0), "unit": (0.5, 0.5)}


class PerceptualLoss(nn.Module, ABC):
    """Distance of reconstruction and image. A subclass implements `forward`, and `load` where there is what to load."""

    @abstractmethod
    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Two times (B, 3, H, W) in [-1, 1] → scalar."""

    def load(self) -> None:
        """Gets pretrained parts ready before their first use: missing weights are known when training starts."""


class FrozenNetworkLoss(PerceptualLoss):
    """A loss through a frozen network, loaded at first use. A subclass implements `make_network` and `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.network: FrozenNetwork | None = None

    @abstractmethod
    def make_network(self) -> nn.Module:
        """The network, on the CPU. Raises InputError where its weights cannot be had."""

    def load(self) -> None:
        if self.network is None:
            self.network = FrozenNetwork(self.make_network())

    def network_on(self, device: torch.device) -> FrozenNetwork:
        """The network; loaded now, onto this device, unless `load` did before."""
        if self.network is None:
            self.network = FrozenNetwork(self.make_network()).to(device)
        return self.network


class LPIPS(FrozenNetworkLoss):
    """Learned Perceptual Image Patch Similarity with VGG16 (arXiv 1801.03924), version 0.1 of the lpips package.

    The network's calibration comes with the package; the VGG16 trunk is torchvision's.

    Args:
        weights: those of VGG16: "pretrained", the path of vgg16-397923af.pth, or "random" (tests).
        input_range: what the network is fed: "symmetric", [-1, 1], which it is made for, or "unit", [0, 1], which
            the GSQ paper's reference feeds it.

    Raises:
        InputError: for another word.
    """

    def __init__(self, weights: str = "pretrained", input_range: InputRange = "symmetric") -> None:
        super().__init__()
        self.weights = weights
        self.input_range = input_range
        self._scale, self._shift = look_up("input_range", input_range, INPUT_RANGES)

    def make_network(self) -> nn.Module:
        return load_lpips("vgg", self.weights)

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        pair = (x.float() * self._scale + self._shift for x in (reconstruction, image))
        return self.network_on(image.device)(*pair).float().mean()
