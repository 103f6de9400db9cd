"""Features of a network, for the metrics that compare sets of images."""

import hashlib
import itertools
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.pixels import pixels_to_image
from gsq_lightning.pretrained.backbones import ImageNetInput, load_dinov2
from gsq_lightning.pretrained.efficientnet import fold_batch_norms, load_efficientnet_lite0
from gsq_lightning.pretrained.frozen import FrozenNetwork

ExtractorName = Literal["inception", "inception_pytorch_fid", "inception_clean_fid", "dinov2", "efficientnet", "random"]

INPUT_SIZE = 224  # of DINOv2 and EfficientNet
EFFICIENTNET_CHANNELS = 1280


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
        network: pixels → features.
        description: network and preparation of images in words, for reports; the weights' hash is added to it.
        random: whether its weights are random.
        truncates: whether it is given reconstructions truncated to uint8, rather than rounded.
    """

    def __init__(self, network: nn.Module, description: str, random: bool, truncates: bool = False) -> None:
        super().__init__(network)
        self.truncates = truncates
        self.fingerprint = fingerprint_of(network)
        kind = "random weights" if random else "weights"
        self.description = f"{description}, {kind} {self.fingerprint[:8]}"

    def forward(self, *inputs: Tensor) -> Features:
        with torch.no_grad():
            features = super().forward(*inputs)
        return features if isinstance(features, Features) else Features(features)


def random_features() -> FeatureExtractor:
    """Random features from a fixed seed; the global random state is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = RandomFeatures()
    return FeatureExtractor(network, "three convolutions, seed 0", random=True)


def dinov2_features(weights: str) -> FeatureExtractor:
    """The class token of DINOv2 ViT-S/14 with registers, images resized to 224² by area.

    Args:
        weights: "pretrained", a path (see `load_dinov2`), or "random" (tests).

    Raises:
        InputError: where the weights cannot be had.
    """
    network = load_dinov2(weights, INPUT_SIZE)
    return FeatureExtractor(
        nn.Sequential(PixelsToImage(), ImageNetInput(INPUT_SIZE), network),
        f"DINOv2 ViT-S/14 with registers at {INPUT_SIZE}²",
        random=weights == "random",
    )


def efficientnet_features(weights: str) -> FeatureExtractor:
    """The 1,280 pooled features of EfficientNet-Lite0, images resized to 224² antialiased.

    Args:
        weights: "pretrained", a path (see `load_efficientnet_lite0`), or "random" (tests).

    Raises:
        InputError: where the weights cannot be had.
    """
    network = load_efficientnet_lite0(weights)
    network.reset_classifier(0)
    return FeatureExtractor(
        nn.Sequential(EfficientNetInput(), PooledEfficientNet(network)),
        f"EfficientNet-Lite0 at {INPUT_SIZE}², antialiased",
        random=weights == "random",
    )


class PixelsToImage(nn.Module):
    """uint8 → float32 in [-1, 1]."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels_to_image(pixels)


class EfficientNetInput(nn.Module):
    """uint8 of any size → float32 at 224², (pixel - 127) / 128, as the network was trained."""

    def forward(self, pixels: Tensor) -> Tensor:
        resized = F.interpolate(
            pixels.float(), size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False, antialias=True
        )
        return (resized - 127.0) / 128.0


class PooledEfficientNet(nn.Module):
    """(B, 3, 224, 224) → (B, 1280): the network without its classifier, taken over and made faster.

    Args:
        network: timm's.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        fold_batch_norms(network.eval())
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        if image.device.type != "cpu":
            return self.network(image)
        # a CPU's cache holds the maps of one image, not those of a batch
        return torch.cat([self.network(one) for one in image.split(1)])


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
        x = pixels_to_image(pixels)
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
