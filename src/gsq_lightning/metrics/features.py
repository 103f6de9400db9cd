"""What a network sees in images, for the metrics that compare sets of images by it."""

import hashlib
import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.pretrained.backbones import DINOV2_CHANNELS, ImageNetInput, load_dinov2
from gsq_lightning.pretrained.frozen import FrozenNetwork

DINOV2_INPUT_SIZE = 224


class Features(NamedTuple):
    """Of a batch of images.

    Attributes:
        pooled: (B, F) float32.
        logits: (B, classes) float32 without bias, where the network has classes.
    """

    pooled: Tensor
    logits: Tensor | None = None


class FeatureExtractor(FrozenNetwork):
    """A frozen network: (B, 3, H, W) uint8 → `Features`.

    Args:
        network: what does it.
        num_features: F.
        description: network and preparation of images in words, for reports; the weights' hash is added to it.
        random: whether its weights are random.
    """

    def __init__(self, network: nn.Module, num_features: int, description: str, random: bool) -> None:
        super().__init__(network)
        self.num_features = num_features
        self.fingerprint = fingerprint_of(network)
        kind = "random weights" if random else "weights"
        self.description = f"{description}, {kind} {self.fingerprint[:8]}"

    def forward(self, *inputs: Tensor) -> Features:
        with torch.no_grad():
            features = super().forward(*inputs)
        return features if isinstance(features, Features) else Features(features)


def random_features() -> FeatureExtractor:
    """Random features from a fixed seed; the surrounding random stream is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = RandomFeatures()
    return FeatureExtractor(network, RandomFeatures.num_features, "three convolutions, seed 0", random=True)


def dinov2_features(weights: str) -> FeatureExtractor:
    """The class token of DINOv2 ViT-S/14 with registers, images resized to 224² by area.

    Args:
        weights: "pretrained", a path (see `load_dinov2`), or "random" (tests).

    Raises:
        InputError: where the weights cannot be had.
    """
    network = load_dinov2(weights, DINOV2_INPUT_SIZE)
    return FeatureExtractor(
        nn.Sequential(PixelsToImage(), ImageNetInput(DINOV2_INPUT_SIZE), network),
        DINOV2_CHANNELS,
        f"DINOv2 ViT-S/14 with registers at {DINOV2_INPUT_SIZE}²",
        random=weights == "random",
    )


class PixelsToImage(nn.Module):
    """uint8 → float32 in [-1, 1]."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.float() / 127.5 - 1.0


class RandomFeatures(nn.Module):
    """Three random convolutions and an average over space: features that need no download."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, self.num_features)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1)
            for inputs, outputs in itertools.pairwise(widths)
        )
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 → (B, 64)."""
        x = pixels.float() / 127.5 - 1.0
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return x.mean(dim=(2, 3))


def fingerprint_of(network: nn.Module) -> str:
    """Hash of all weights by name, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
