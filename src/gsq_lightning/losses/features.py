"""Perceptual losses of the GSQ paper's Table 4: mean squared error of what a frozen classifier or encoder makes of two
images.
"""

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.errors import one_of, require
from gsq_lightning.losses.perceptual import FrozenNetworkLoss
from gsq_lightning.pretrained.backbones import (
    ImageNetInput,
    load_dinov2,
    load_resnet50,
    load_vgg16,
    require_dinov2_size,
)

Output = Literal["logits", "features"]

INPUT_SIZE = 224
MIN_INPUT_SIZE = 32  # five halvings leave one pixel


class FeatureLoss(FrozenNetworkLoss):
    """Mean squared error of the features of two images. A subclass implements `load_features`.

    Args:
        weights: "pretrained", a path, or "random" (tests).
        input_size: height and width that images are resized to by area interpolation: in the reference
            224, for DINO 518.
    """

    def __init__(self, weights: str, input_size: int) -> None:
        super().__init__()
        self.weights = weights
        self.input_size = input_size

    @abstractmethod
    def load_features(self) -> nn.Module:
        """The network: (B, 3, input_size, input_size), normalized as ImageNet → features, (B, ...)."""

    def make_network(self) -> nn.Module:
        return nn.Sequential(ImageNetInput(self.input_size), self.load_features())

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        network = self.network_on(image.device)
        with torch.no_grad():
            target = network(image)
        return F.mse_loss(network(reconstruction).float(), target.float())


class DINOLoss(FeatureLoss):
    """DINOv2 ViT-S/14 with registers: its class token, 384 numbers after the last norm.

    Args:
        weights: "pretrained", a path (see `load_dinov2`), or "random" (tests).
        input_size: see `FeatureLoss`; a multiple of 14.
    """

    def __init__(self, weights: str = "pretrained", input_size: int = INPUT_SIZE) -> None:
        super().__init__(weights, input_size)
        require_dinov2_size(input_size)

    def load_features(self) -> nn.Module:
        return load_dinov2(self.weights, self.input_size)


class DINOPatchLoss(DINOLoss):
    """As `DINOLoss`, but over the tokens of all patches, so that positions count; not in the paper's table."""

    def load_features(self) -> nn.Module:
        return _PatchTokens(super().load_features())


class ClassifierLoss(FeatureLoss):
    """Over the logits of a classifier, or the features that they are made of. Args: see the subclasses."""

    def __init__(self, weights: str = "pretrained", output: Output = "logits", input_size: int = INPUT_SIZE) -> None:
        super().__init__(weights, input_size)
        require(
            input_size >= MIN_INPUT_SIZE,
            f"input_size is {input_size}; it must be at least {MIN_INPUT_SIZE}, {INPUT_SIZE} is usual",
        )
        self.output: Output = one_of("output", output, Output)


class ResNetLoss(ClassifierLoss):
    """ResNet-50, trained by recipe A1 (arXiv 2110.00476).

    Args:
        weights: "pretrained", the path of model.safetensors of timm/resnet50.a1_in1k, or "random" (tests).
        output: "logits", of 1000 classes, or "features", the 2048 averages over space that they are made of.
        input_size: see `FeatureLoss`.
    """

    def load_features(self) -> nn.Module:
        network = load_resnet50(self.weights)
        if self.output == "features":
            network.fc = nn.Identity()
        return network


class VGGLoss(ClassifierLoss):
    """VGG-16 (arXiv 1409.1556).

    Args:
        weights: "pretrained", the path of vgg16-397923af.pth, or "random" (tests).
        output: "logits", of 1000 classes, or "features", the last map of its convolutions, 512×7×7 at 224².
        input_size: see `FeatureLoss`.
    """

    def load_features(self) -> nn.Module:
        network = load_vgg16(self.weights)
        return network if self.output == "logits" else network.get_submodule("features")


class _PatchTokens(nn.Module):
    """Image → (B, patches, channels) after a vision transformer's last norm."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, image: Tensor) -> Tensor:
        return self.transformer.forward_features(image)[:, self.transformer.num_prefix_tokens :]
