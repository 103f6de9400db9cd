"""Building blocks of the encoder and the decoder (GSQ, arXiv 2412.02632, section 3; MAGVIT-2 style).

Shapes: B batch, C channels, H and W height and width of the map at hand, D channels of the quantized latent.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

GROUP_NORM_EPS = 1e-6
SILU_GAIN = 1.6761  # keeps unit variance through a SiLU
RESIDUAL_GAIN = 0.70711  # 1/√2: the sum of the two branches keeps unit variance


def initialize_convolution(convolution: nn.Conv2d, gain: float = 1.0) -> None:
    """Kaiming normal initialization with linear gain: weights ~ N(0, gain² / fan_in), biases 0."""
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="linear")
    with torch.no_grad():
        convolution.weight.mul_(gain)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, gain: float = 1.0
) -> nn.Conv2d:
    """A convolution that keeps the map's size (or divides it by `stride`), initialized with `gain`."""
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)
    initialize_convolution(layer, gain)
    return layer


def group_norm(channels: int, groups: int, *, affine: bool = True) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=GROUP_NORM_EPS, affine=affine)


class ResidualBlock(nn.Module):
    """GroupNorm → SiLU → conv → GroupNorm → SiLU → dropout → conv, plus the input.

    Where the width changes the input passes a 1×1 convolution first.

    Args:
        in_channels, out_channels: widths, multiples of `norm_groups`.
        kernel_size: odd; of both convolutions.
        dropout: probability in [0, 1).
        norm_groups: groups of the GroupNorms.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, dropout: float = 0.0, norm_groups: int = 32
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            group_norm(in_channels, norm_groups),
            nn.SiLU(),
            convolution(in_channels, out_channels, kernel_size, gain=SILU_GAIN),
            group_norm(out_channels, norm_groups),
            nn.SiLU(),
            nn.Dropout(dropout),
            convolution(out_channels, out_channels, kernel_size, gain=SILU_GAIN * RESIDUAL_GAIN),
        )
        self.skip: nn.Module = (
            nn.Identity() if in_channels == out_channels else convolution(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, H, W)."""
        return self.skip(x) + self.net(x)


class SelfAttention(nn.Module):
    """One-headed self-attention over all positions of the map, with a residual connection.

    Args:
        channels: width C, a multiple of `norm_groups`.
        norm_groups: groups of the GroupNorm before it.
    """

    def __init__(self, channels: int, norm_groups: int = 32) -> None:
        super().__init__()
        self.norm = group_norm(channels, norm_groups)
        self.query_key_value = convolution(channels, 3 * channels, 1)
        self.projection = convolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        query, key, value = rearrange(self.query_key_value(self.norm(x)), "b (n c) h w -> n b 1 (h w) c", n=3)
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.projection(rearrange(attended, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halves height and width with a strided convolution (padding 1 for the 3×3 kernel).

    Args:
        channels: width C.
        kernel_size: odd.
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = convolution(channels, channels, kernel_size, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H/2, W/2), H and W even."""
        return self.conv(x)


class NearestUpsample(nn.Module):
    """Doubles height and width by repeating each position, then a convolution.

    Args:
        channels: width C.
        kernel_size: odd.
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = convolution(channels, channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DepthToSpaceUpsample(nn.Module):
    """Doubles height and width by moving channels to positions, in depth-column-row order.

    A convolution makes 4·C channels, read as (row, column, channel): the first C channels become the upper left
    pixel of each 2×2 block. (`torch.nn.PixelShuffle` reads them as (channel, row, column).)

    Args:
        channels: width C.
        kernel_size: odd.
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = convolution(channels, 4 * channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2H, 2W)."""
        return rearrange(self.conv(x), "b (row column c) h w -> b c (h row) (w column)", row=2, column=2)


class AdaptiveGroupNorm(nn.Module):
    """Normalizes a map and gives it a scale and a bias told by the quantized latent (AGN).

    scale = Linear(standard deviation of the latent over space), bias = Linear(its mean over space), one value per
    channel and image. The standard deviation is the square root of the unbiased variance plus `GROUP_NORM_EPS`.

    Args:
        channels: width C of the map.
        latent_channels: D.
        norm_groups: groups of the normalization, which has no weights of its own.
    """

    def __init__(self, channels: int, latent_channels: int, norm_groups: int = 32) -> None:
        super().__init__()
        self.norm = group_norm(channels, norm_groups, affine=False)
        self.scale = nn.Linear(latent_channels, channels)
        self.bias = nn.Linear(latent_channels, channels)

    def forward(self, x: Tensor, quantized: Tensor) -> Tensor:
        """(B, C, H, W) and (B, D, h, w) → (B, C, H, W)."""
        positions = quantized.shape[2] * quantized.shape[3]
        # a map of one position has no spread; the unbiased variance would be 0/0 there
        correction = 1 if positions > 1 else 0
        variance, mean = torch.var_mean(quantized.float(), dim=(2, 3), correction=correction)
        scale = self.scale((variance + GROUP_NORM_EPS).sqrt().to(quantized.dtype))
        bias = self.bias(mean.to(quantized.dtype))
        return self.norm(x) * scale[:, :, None, None] + bias[:, :, None, None]


def residual_level(
    in_channels: int,
    out_channels: int,
    blocks: int,
    *,
    attention: bool,
    kernel_size: int,
    dropout: float,
    norm_groups: int,
) -> list[nn.Module]:
    """The residual blocks of one level: one that changes the width where it changes, then the level's own."""
    widths = [out_channels] * blocks
    if in_channels != out_channels:
        widths.insert(0, out_channels)
    layers: list[nn.Module] = []
    channels = in_channels
    for width in widths:
        layers.append(ResidualBlock(channels, width, kernel_size, dropout, norm_groups))
        if attention:
            layers.append(SelfAttention(width, norm_groups))
        channels = width
    return layers


def middle_blocks(
    channels: int, blocks: int, *, attention: bool, kernel_size: int, dropout: float, norm_groups: int
) -> list[nn.Module]:
    """The residual blocks at the lowest resolution, with self-attention between them if asked for."""
    layers: list[nn.Module] = []
    for block in range(blocks):
        if attention and block > 0:
            layers.append(SelfAttention(channels, norm_groups))
        layers.append(ResidualBlock(channels, channels, kernel_size, dropout, norm_groups))
    return layers
