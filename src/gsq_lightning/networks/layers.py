"""Building blocks of the encoder and the decoder (GSQ, arXiv 2412.02632, section 3; MAGVIT-2 style).

Shapes: B batch, C channels, H and W height and width of the map at hand, D channels of the quantized latent.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.networks.shape import NetworkShape

ADAPTIVE_NORM_EPS = 1e-6  # of attention and adaptive group norm; the others have 1e-5, as PyTorch's
SILU_GAIN = 1.6761  # keeps unit variance through a SiLU
RESIDUAL_GAIN = 0.70711  # 1/√2: the sum of the two branches keeps unit variance


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, gain: float = 1.0
) -> nn.Conv2d:
    """A convolution that keeps the map's size (or divides it by `stride`).

    Its weights start as N(0, gain² / fan_in), Kaiming normal with linear gain; its biases as PyTorch's, uniform in
    ±1/√fan_in.
    """
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    with torch.no_grad():
        layer.weight.mul_(gain)
    return layer


class ResidualBlock(nn.Module):
    """GroupNorm → SiLU → conv → GroupNorm → SiLU → dropout → conv, plus the input.

    Where the width changes the input passes a 1×1 convolution first.

    Args:
        in_channels, out_channels: widths, multiples of `norm_groups`.
        kernel_size: odd; of both convolutions.
        dropout: probability in [0, 1) with which a whole channel is dropped.
        norm_groups: groups of the GroupNorms.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, dropout: float = 0.0, norm_groups: int = 32
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.GroupNorm(norm_groups, in_channels),
            nn.SiLU(),
            convolution(in_channels, out_channels, kernel_size, gain=SILU_GAIN),
            nn.GroupNorm(norm_groups, out_channels),
            nn.SiLU(),
            nn.Dropout2d(dropout),
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
        self.norm = nn.GroupNorm(norm_groups, channels, eps=ADAPTIVE_NORM_EPS)
        self.query_key_value = convolution(channels, 3 * channels, 1)
        self.projection = convolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        query, key, value = rearrange(self.query_key_value(self.norm(x)), "b (n c) h w -> n b 1 (h w) c", n=3)
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.projection(rearrange(attended, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halves height and width with a strided 3×3 convolution, padding 1.

    Args:
        channels: width C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = convolution(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H/2, W/2), H and W even."""
        return self.conv(x)


class NearestUpsample(nn.Module):
    """Doubles height and width by repeating each position, then a 3×3 convolution.

    Both at once are a transposed convolution of stride 2, whose 4×4 kernel sums the weights that meet copies of one
    position: 16 multiplications for each position and pair of channels in place of 36, and the backward pass needs no
    map of the doubled size.

    Args:
        channels: width C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = convolution(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2H, 2W)."""
        kernel = self.conv.weight
        kernel = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))  # (C, C, 3, 4)
        kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))  # (C, C, 4, 4)
        # a transposed convolution has its kernel upside down, and channels the other way round
        kernel = kernel.flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


class DepthToSpaceUpsample(nn.Module):
    """Doubles height and width by moving channels to positions, in depth-column-row order.

    A 3×3 convolution makes 4·C channels, read as (row, column, channel): the first C channels become the upper left
    pixel of each 2×2 block. (`torch.nn.PixelShuffle` reads them as (channel, row, column).) It starts as PyTorch's
    convolutions do, with 1/√3 of the other ones' spread.

    Args:
        channels: width C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2H, 2W)."""
        return rearrange(self.conv(x), "b (row column c) h w -> b c (h row) (w column)", row=2, column=2)


class AdaptiveGroupNorm(nn.Module):
    """Normalizes a map and gives it a scale and a bias computed from the quantized latent (AGN).

    scale = Linear(standard deviation of the latent over space), bias = Linear(its mean over space), one value per
    channel and image. The standard deviation is the square root of the unbiased variance plus `ADAPTIVE_NORM_EPS`.

    Args:
        channels: width C of the map.
        latent_channels: D.
        norm_groups: groups of the normalization, which has no weights of its own.
    """

    def __init__(self, channels: int, latent_channels: int, norm_groups: int = 32) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=ADAPTIVE_NORM_EPS, affine=False)
        self.scale = nn.Linear(latent_channels, channels)
        self.bias = nn.Linear(latent_channels, channels)

    def forward(self, x: Tensor, quantized: Tensor) -> Tensor:
        """(B, C, H, W) and (B, D, h, w) → (B, C, H, W)."""
        positions = quantized.shape[2] * quantized.shape[3]
        # a map of one position has no spread; the unbiased variance would be 0/0 there
        correction = 1 if positions > 1 else 0
        values = quantized if quantized.dtype == torch.float64 else quantized.float()
        variance, mean = torch.var_mean(values, dim=(2, 3), correction=correction)
        scale = self.scale((variance + ADAPTIVE_NORM_EPS).sqrt().to(quantized.dtype))
        bias = self.bias(mean.to(quantized.dtype))
        return self.norm(x) * scale[:, :, None, None] + bias[:, :, None, None]


def residual_level(in_channels: int, level: int, blocks: int, shape: NetworkShape) -> list[nn.Module]:
    """The residual blocks of one level: one that changes the width where it changes, then the level's own.

    Attention, where the level has it, stands after each of the level's own.
    """
    width = shape.width(level)
    layers: list[nn.Module] = []
    if in_channels != width:
        layers.append(_residual_block(in_channels, width, shape))
    for _ in range(blocks):
        layers.append(_residual_block(width, width, shape))
        if 2**level in shape.attention_factors:
            layers.append(SelfAttention(width, shape.norm_groups))
    return layers


def middle_blocks(channels: int, blocks: int, shape: NetworkShape) -> list[nn.Module]:
    """The residual blocks at the lowest resolution, with self-attention after each but the last if asked for."""
    layers: list[nn.Module] = []
    for block in range(blocks):
        if shape.middle_attention and block > 0:
            layers.append(SelfAttention(channels, shape.norm_groups))
        layers.append(_residual_block(channels, channels, shape))
    return layers


def _residual_block(in_channels: int, out_channels: int, shape: NetworkShape) -> ResidualBlock:
    return ResidualBlock(in_channels, out_channels, shape.residual_kernel_size, shape.dropout, shape.norm_groups)
