"""Inception v3 as FID defines it (arXiv 1706.08500), and the preparations of images for it.

The usual programs prepare images differently, and so their distances differ:

| preparation | program | resize to 299² | scale |
|---|---|---|---|
| antialias | torchmetrics, with its default | bilinear, antialiased | (x − 128) / 128 |
| tensorflow | torch-fidelity; the original FID | bilinear of TensorFlow 1 | (x − 128) / 128 |
| pytorch_fid | pytorch-fid | bilinear | x / 127.5 − 1 |
| clean_fid | clean-fid (arXiv 2104.11222) | bicubic, antialiased | (x − 128) / 128 |
"""

import tempfile
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchmetrics.image.fid import NoTrainInceptionV3

from gsq_lightning.metrics.features import FeatureExtractor, Features
from gsq_lightning.pretrained.weights import PublishedWeights, fixed_random_weights, load_state, read_weights

INCEPTION = PublishedWeights(
    "inception",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
INCEPTION_FEATURES = 2048
INPUT_SIZE = (299, 299)

Preparation = Literal["antialias", "tensorflow", "pytorch_fid", "clean_fid"]


def inception_features(weights: str, preparation: Preparation, truncates: bool = False) -> FeatureExtractor:
    """The 2048 pooled features and the logits of Inception v3.

    Args:
        weights: "pretrained", the path of weights-inception-2015-12-05-6726825d.pth, or "random" (tests).
        preparation: how images get to 299² and to about [-1, 1]; see above.
        truncates: whether reconstructions are truncated to uint8, rather than rounded.

    Raises:
        InputError: where the weights cannot be had.
    """
    return FeatureExtractor(
        PreparedInception(load_inception(weights), preparation),
        f"Inception v3 of 2015-12-05, images prepared by {preparation}"
        + (", reconstructions truncated to uint8" if truncates else ""),
        random=weights == "random",
        truncates=truncates,
    )


class PreparedInception(nn.Module):
    """Prepares images and runs Inception.

    Args:
        network: made by `load_inception`.
        preparation: see above.
    """

    def __init__(self, network: nn.Module, preparation: Preparation) -> None:
        super().__init__()
        self.network = network
        self.preparation: Preparation = preparation

    def forward(self, pixels: Tensor) -> Features:
        """(B, 3, H, W) uint8 → `Features` with 2048 pooled and 1008 logits."""
        x = PREPARATIONS[self.preparation](pixels.float())
        *layers, classifier = self.network.children()  # in the order in which they are run
        for layer in layers:
            x = layer(x)
        pooled = x.flatten(1)
        assert isinstance(classifier, nn.Linear)
        return Features(pooled, F.linear(pooled, classifier.weight))


def load_inception(weights: str) -> nn.Module:
    """Inception v3 with the weights of the original FID. Raises InputError where they cannot be had."""
    if weights == "random":
        with fixed_random_weights("Inception v3"):
            network = _UnloadedInception()
            for module in network.modules():
                if isinstance(module, nn.Conv2d):  # torch's own start would let features fade to 1e-8
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            return network
    state = read_weights(weights, INCEPTION)
    return load_state(_UnloadedInception(), state, "Inception v3 of 2015-12-05")


def _antialias(x: Tensor) -> Tensor:
    x = F.interpolate(x, size=INPUT_SIZE, mode="bilinear", align_corners=False, antialias=True)
    return (x - 128.0) / 128.0


def _tensorflow(x: Tensor) -> Tensor:
    return (interpolate_bilinear_2d_like_tensorflow1x(x, size=INPUT_SIZE, align_corners=False) - 128.0) / 128.0


def _pytorch_fid(x: Tensor) -> Tensor:
    return F.interpolate(x / 255.0, size=INPUT_SIZE, mode="bilinear", align_corners=False) * 2.0 - 1.0


def _clean_fid(x: Tensor) -> Tensor:
    x = F.interpolate(x, size=INPUT_SIZE, mode="bicubic", align_corners=False, antialias=True)
    return (x.clamp(0.0, 255.0) - 128.0) / 128.0


PREPARATIONS: dict[Preparation, Callable[[Tensor], Tensor]] = {
    "antialias": _antialias,
    "tensorflow": _tensorflow,
    "pytorch_fid": _pytorch_fid,
    "clean_fid": _clean_fid,
}


class _UnloadedInception(NoTrainInceptionV3):
    """torchmetrics' Inception without its own reading of a file, which would unpickle anything."""

    def __init__(self) -> None:
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            torch.save({}, file.name)
            super().__init__("inception-v3-compat", [str(INCEPTION_FEATURES)], file.name)

    def load_state_dict(self, *_: object) -> None:
        """Does nothing: the constructor calls this with the empty state it read from the file."""
