"""A perceptual loss that needs no download: distances in EfficientNet-Lite0, whose weights come with pip."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gsq_lightning.errors import require
from gsq_lightning.losses.perceptual import FrozenNetworkLoss
from gsq_lightning.pretrained.efficientnet import DEPTHS, EfficientNetFeatures, load_efficientnet_lite0

SMALLEST_SIDE = 32  # of which the deepest map has one position


class EfficientNetLoss(FrozenNetworkLoss):
    """LPIPS before its calibration (arXiv 1801.03924, section 3) over EfficientNet-Lite0 in place of VGG16.

    Σ_depth weight · mean over space of ‖φ(x)/‖φ(x)‖ - φ(y)/‖φ(y)‖‖², where φ are the maps at the network's five
    resolutions, 1/2 to 1/32 of the image. It computes in float32 whatever the autocast state.

    Args:
        weights: "pretrained", a path (see `load_efficientnet_lite0`), or "random" (tests).
        depth_weights: weights of the five terms, from the finest map to the coarsest; not negative, not all 0.

    Raises:
        InputError: for other depth weights; from `forward`, for images of less than 32 pixels each way; from `load`,
            where the weights cannot be had.
    """

    def __init__(self, weights: str = "pretrained", depth_weights: Sequence[float] = (1.0,) * len(DEPTHS)) -> None:
        super().__init__()
        require(
            len(depth_weights) == len(DEPTHS) and min(depth_weights) >= 0 and max(depth_weights) > 0,
            f"depth_weights is {list(depth_weights)}; it takes {len(DEPTHS)} numbers, none negative, not all 0",
        )
        self.weights = weights
        self.depth_weights = list(depth_weights)

    def make_network(self) -> EfficientNetFeatures:
        return EfficientNetFeatures(load_efficientnet_lite0(self.weights))

    @property
    def features(self) -> EfficientNetFeatures:
        """The network, once it is loaded."""
        assert self.network is not None
        assert isinstance(self.network.network, EfficientNetFeatures)
        return self.network.network

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Two times (B, 3, H, W) in [-1, 1] → scalar."""
        height, width = image.shape[-2:]
        require(
            min(height, width) >= SMALLEST_SIDE,
            f"EfficientNetLoss needs images of at least {SMALLEST_SIDE} pixels each way, these have {height}×{width}",
        )
        network = self.network_on(image.device)
        with torch.autocast(image.device.type, enabled=False):
            with torch.no_grad():
                targets = network(image.float())
            maps = network(reconstruction.float())
            terms = [
                weight * (F.normalize(x) - F.normalize(target)).square().sum(dim=1).mean()
                for weight, x, target in zip(self.depth_weights, maps, targets, strict=True)
            ]
            return torch.stack(terms).sum()
