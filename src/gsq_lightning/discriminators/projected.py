"""Projected discriminator (Projected GANs, arXiv 2111.01007): heads on mixed features of a frozen EfficientNet-Lite0,
the paper's own trunk, whose weights come with pip.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from gsq_lightning.discriminators.augmentation import DifferentiableAugmentation
from gsq_lightning.discriminators.trunk import TrunkDiscriminator, TrunkDtype
from gsq_lightning.errors import require, require_at_least
from gsq_lightning.pretrained.efficientnet import DEPTHS, EfficientNetFeatures, load_efficientnet_lite0
from gsq_lightning.pretrained.frozen import FrozenNetwork

LEAK = 0.2
SMALLEST_SIDE = 32  # of which the coarsest map has one position
SCALES = DEPTHS[1:]  # 1/4 to 1/32 of the image, as in the paper
MIXED_CHANNELS = (64, 128, 256, 512)  # by mixing across channels, finest scale first (the authors' code)
HEAD_CHANNELS = (64, 64, 128, 256)  # after mixing across scales
PROJECTION_SEED = 0


class ProjectedDiscriminator(TrunkDiscriminator):
    """A frozen EfficientNet-Lite0, a fixed random projection of its maps at four scales, and a head for each.

    Each head judges every position of its map, which for reconstructions says more than the paper's 5×5 logits: 340
    logits where the trunk sees 64².

    With an `EfficientNetLoss` of the same weights, and without augmentation or `min_size`, training looks through the
    trunk once for both: on a GPU in the loss's float32, whatever `trunk_dtype` is.

    Args:
        weights: those of the trunk: "pretrained", a path (see `load_efficientnet_lite0`), or "random" (tests).
        head_channels: width of each head.
        augmentation: what is done to all images before, in training.
        trunk_dtype: see `TrunkDiscriminator`.
        min_size: images whose short side has fewer pixels are enlarged to it, bilinearly. The authors' code does so
            below 224, the size that the trunk was trained at; for 64² images it costs twelve times the work. None:
            every image is seen at its own size.

    Raises:
        InputError: for options that make no sense; from `load`, where the weights cannot be had; from `forward`, for
            images of less than 32 pixels each way.
    """

    def __init__(
        self,
        weights: str = "pretrained",
        head_channels: int = 64,
        augmentation: DifferentiableAugmentation | None = None,
        trunk_dtype: TrunkDtype = "bfloat16",
        min_size: int | None = None,
    ) -> None:
        require_at_least(1, head_channels=head_channels)
        require(
            min_size is None or min_size >= SMALLEST_SIDE,
            f"min_size is {min_size}; it must be at least {SMALLEST_SIDE}, or null",
        )
        heads = {
            f"stride_{scale.stride}": MapHead(channels, head_channels)
            for scale, channels in zip(SCALES, HEAD_CHANNELS, strict=True)
        }
        super().__init__(heads, augmentation, trunk_dtype)
        self.weights = weights
        self.head_channels = head_channels
        self.min_size = min_size

    def make_trunk(self) -> nn.Module:
        return ProjectedFeatures(EfficientNetFeatures(load_efficientnet_lite0(self.weights)))

    def share_trunk(self, features: EfficientNetFeatures) -> None:
        """Takes a trunk of the same weights that is loaded already, unless this has one."""
        if self.trunk is None:
            self.trunk = FrozenNetwork(ProjectedFeatures(features))

    def _augmented(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        require(
            min(height, width) >= SMALLEST_SIDE,
            f"ProjectedDiscriminator needs images of at least {SMALLEST_SIDE} pixels each way, these have "
            f"{height}×{width}",
        )
        image = super()._augmented(image)
        if self.min_size is None or min(height, width) >= self.min_size:
            return image
        size = [round(side * self.min_size / min(height, width)) for side in (height, width)]
        return F.interpolate(image, size, mode="bilinear")


class ProjectedFeatures(nn.Sequential):
    """The trunk: features, which a perceptual loss may share, and their projection."""

    def __init__(self, features: EfficientNetFeatures) -> None:
        super().__init__(features, RandomProjection([scale.channels for scale in SCALES]))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        for part in self:
            part.compile(*args, **kwargs)


class RandomProjection(nn.Module):
    """Mixes maps across channels, then from coarse to fine across scales, by fixed random 1×1 convolutions.

    Widths and 1×1 kernels are those of the authors' code (https://github.com/autonomousvision/projected-gan), where the
    paper (section 3.2) has 3×3 across scales. Left out are its biases and its doubling of every map at the end. The
    weights come from a seed.

    Args:
        channels: of the maps, finest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(PROJECTION_SEED)
            self.across_channels = nn.ModuleList(
                random_convolution(*widths) for widths in zip(channels, MIXED_CHANNELS, strict=True)
            )
            self.across_scales = nn.ModuleList(
                random_convolution(*widths) for widths in zip(MIXED_CHANNELS, HEAD_CHANNELS, strict=True)
            )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, h, w) each, finest first → the same sizes with `HEAD_CHANNELS`; maps that are finer are left out."""
        mixed: list[Tensor] = []
        layers = zip(maps[-len(self.across_channels) :], self.across_channels, self.across_scales, strict=True)
        for x, across_channels, across_scales in reversed(list(layers)):
            x = across_channels(x)
            if mixed:
                x = x + F.interpolate(mixed[-1], size=x.shape[-2:], mode="bilinear")
            mixed.append(across_scales(x))
        return mixed[::-1]


class MapHead(nn.Module):
    """One logit for each position of a map: two convolutions with spectral norm, a batch norm between them.

    Args:
        in_channels: of the map.
        channels: between the convolutions.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            parametrizations.spectral_norm(nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)),
            nn.BatchNorm2d(channels, track_running_stats=False),  # it only ever judges in training
            nn.LeakyReLU(LEAK),
            parametrizations.spectral_norm(nn.Conv2d(channels, 1, kernel_size=3, padding=1)),
            nn.Flatten(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → logits (B, h·w)."""
        return self.net(x)


def random_convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    """1×1 without bias, its weights normal, so that the variance of what goes through stays what it was."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="linear")
    return convolution
