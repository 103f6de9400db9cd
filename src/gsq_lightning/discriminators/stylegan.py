"""StyleGAN discriminator ("SGD" in the GSQ paper): StyleGAN2's residual one, arXiv 1912.04958, in MAGVIT's form,
arXiv 2212.05199, for single images.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.discriminators.interface import Discriminator
from gsq_lightning.errors import InputError

LEAK = 0.2
HEAD_SIZE = 4  # StyleGAN2 judges maps of 4×4 at every resolution


class StyleGANDiscriminator(Discriminator):
    """Residual blocks that halve the map, then two linear layers to one logit per image.

    The map that the blocks leave is averaged down to 4×4 before the linear layers, so that one set of weights takes
    images of any size that fits. With five blocks that changes nothing at 128², where the paper ran it (Table 7);
    at 256² MAGVIT would flatten 8×8, four times the weights in the first linear layer.

    Args:
        channels: width of the first convolution.
        multipliers: width of each block's output, as a multiple of `channels`. n blocks need images whose sides are
            multiples of 2^n, at least 4·2^n: 128, 160, … with five.
        blur_filter: the low-pass filter, in one dimension, before each halving; (1, 3, 3, 1) as in both papers.

    Raises:
        InputError: for options that make no sense; from `forward`, for image sizes that do not fit.
    """

    def __init__(
        self,
        channels: int = 128,
        multipliers: Sequence[int] = (2, 4, 4, 4, 4),
        blur_filter: Sequence[float] = (1, 3, 3, 1),
    ) -> None:
        super().__init__()
        if channels < 1 or not multipliers or min(multipliers) < 1:
            raise InputError(
                f"channels {channels} and multipliers {list(multipliers)} must be at least 1, and one or more"
            )
        if not sum(blur_filter) > 0:
            raise InputError(f"blur_filter {list(blur_filter)} must have a sum above 0; [1, 3, 3, 1] is usual")
        widths = [channels, *(channels * multiplier for multiplier in multipliers)]
        self.num_blocks = len(multipliers)
        self.net = nn.Sequential(
            nn.Conv2d(3, channels, kernel_size=3, padding=1),
            nn.LeakyReLU(LEAK),
            *(DownBlock(inputs, outputs, blur_filter) for inputs, outputs in pairwise(widths)),
            nn.Conv2d(widths[-1], widths[-1], kernel_size=3, padding=1),
            nn.LeakyReLU(LEAK),
            nn.AdaptiveAvgPool2d(HEAD_SIZE),
            nn.Flatten(),
            nn.Linear(widths[-1] * HEAD_SIZE**2, widths[-1]),
            nn.LeakyReLU(LEAK),
            nn.Linear(widths[-1], 1),
        )
        self.apply(_initialize)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → logits (B, 1)."""
        factor = 2**self.num_blocks
        height, width = image.shape[-2:]
        if height % factor or width % factor or min(height, width) < HEAD_SIZE * factor:
            raise InputError(
                f"a StyleGAN discriminator with {self.num_blocks} blocks needs images whose sides are multiples of "
                f"{factor} and at least {HEAD_SIZE * factor}, and got {height}×{width}; change the image size, or give "
                "fewer or more multipliers"
            )
        return self.net(image)


class DownBlock(nn.Module):
    """Residual block that halves height and width: both branches are blurred before every second pixel is taken.

    Args:
        in_channels, out_channels: widths.
        blur_filter: as in `BlurPool`.
    """

    def __init__(self, in_channels: int, out_channels: int, blur_filter: Sequence[float]) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1),
            nn.LeakyReLU(LEAK),
            BlurPool(in_channels, blur_filter),
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.LeakyReLU(LEAK),
        )
        self.skip = nn.Sequential(
            BlurPool(in_channels, blur_filter),
            nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H/2, W/2)."""
        return (self.residual(x) + self.skip(x)) / math.sqrt(2)


class BlurPool(nn.Module):
    """Low-pass filter, then every second pixel (arXiv 1904.11486); beyond the border lie zeros.

    Args:
        channels: each is filtered on its own.
        blur_filter: taps in one dimension, in both directions alike; scaled to a sum of 1.
    """

    kernel: Tensor

    def __init__(self, channels: int, blur_filter: Sequence[float]) -> None:
        super().__init__()
        taps = torch.tensor(blur_filter, dtype=torch.float32)
        taps = taps / taps.sum()
        kernel = torch.outer(taps, taps).expand(channels, 1, -1, -1).clone()
        self.register_buffer("kernel", kernel, persistent=False)
        self.channels = channels
        self.padding = (len(blur_filter) - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), H and W even → (B, C, H/2, W/2)."""
        return F.conv2d(x, self.kernel, stride=2, padding=self.padding, groups=self.channels)


def _initialize(module: nn.Module) -> None:
    """MAGVIT: weights uniform after Glorot, biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
