"""Fréchet distance of reconstructions to originals: rFID over Inception v3, and its stand-in over random features.

The distance itself is torchmetrics' FrechetInceptionDistance (arXiv 1706.08500), over uint8 images.
"""

import itertools
import tempfile

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from gsq_lightning.pretrained import FrozenNetwork, fixed_random_weights, read_weights

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_FEATURES = 2048


class FrechetDistance(FrechetInceptionDistance):
    """Fréchet distance over the features of any frozen network, in float32 whatever the autocast state.

    Args:
        extractor: (B, 3, H, W) uint8 → features (B, F).
        num_features: F.
    """

    def __init__(self, extractor: nn.Module, num_features: int) -> None:
        frozen = FrozenNetwork(extractor)
        frozen.num_features = num_features  # type: ignore[assignment]
        super().__init__(feature=frozen)

    def update(self, imgs: Tensor, real: bool) -> None:
        """Adds images.

        Args:
            imgs: (B, 3, H, W) uint8.
            real: whether they are originals, or reconstructions.
        """
        with torch.autocast(imgs.device.type, enabled=False):
            super().update(imgs, real)


def rfid(weights: str = "pretrained") -> FrechetDistance:
    """rFID: over the 2048 pooled features of the Inception v3 that FID is defined by, images resized to 299².

    Args:
        weights: "pretrained", the path of weights-inception-2015-12-05-6726825d.pth, or "random" (tests).
    """
    return FrechetDistance(load_inception(weights), INCEPTION_FEATURES)


def rfd_random() -> FrechetDistance:
    """The distance over random features: comparable between runs of this library, and with nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        extractor = RandomFeatures()
    return FrechetDistance(extractor, extractor.num_features)


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


def load_inception(weights: str) -> nn.Module:
    """Inception v3 with the weights of the original FID. Raises InputError where they cannot be had."""
    if weights == "random":
        with fixed_random_weights("Inception v3"):
            return _UnloadedInception()
    state = read_weights(weights, INCEPTION_URL, "rFID", "model.metrics.inception_weights")
    network = _UnloadedInception()
    nn.Module.load_state_dict(network, state)
    return network


class _UnloadedInception(NoTrainInceptionV3):
    """torchmetrics' Inception without its own reading of a file, which would unpickle anything."""

    def __init__(self) -> None:
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            torch.save({}, file.name)
            super().__init__("inception-v3-compat", [str(INCEPTION_FEATURES)], file.name)

    def load_state_dict(self, *_: object) -> None:
        """The constructor calls this with what it read from the file: nothing."""
