"""The decoder: quantized latent → image (GSQ, arXiv 2412.02632, section 3)."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from gsq_lightning.networks.layers import (
    SILU_GAIN,
    AdaptiveGroupNorm,
    DepthToSpaceUpsample,
    NearestUpsample,
    convolution,
    group_norm,
    middle_blocks,
    residual_level,
)

Upsampling = Literal["depth_to_space", "nearest"]


class Decoder(nn.Module):
    """Convolution, middle blocks, levels of residual blocks with an upsampling between them, convolution to RGB.

    Args:
        latent_channels: channels D of the quantized latent.
        channel_multipliers: width of each level in units of `base_channels`, from the image inwards, as for the
            encoder: the decoder walks them backwards.
        base_channels: width of the last level's unit.
        blocks: residual blocks of each level, in the order of `channel_multipliers`, and last those in the middle:
            L + 1 numbers.
        adaptive_norm: adaptive group norm after the middle blocks and after every upsampling (AGN; Tables 3, 12).
        upsampling: "depth_to_space" (D2S; Tables 3, 12) or "nearest" (repeat, then convolve).
        middle_attention: self-attention between the middle blocks.
        attention_factors: self-attention after each residual block where the map is 1/f of the image; a list of f.
        dropout: probability in the residual blocks.
        residual_kernel_size, input_kernel_size, output_kernel_size: odd.
        norm_groups: groups of every GroupNorm; divides every width.
    """

    def __init__(
        self,
        latent_channels: int,
        channel_multipliers: Sequence[int],
        base_channels: int,
        blocks: Sequence[int],
        adaptive_norm: bool = True,
        upsampling: Upsampling = "depth_to_space",
        middle_attention: bool = False,
        attention_factors: Sequence[int] = (),
        dropout: float = 0.0,
        residual_kernel_size: int = 3,
        input_kernel_size: int = 3,
        output_kernel_size: int = 3,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        upsample = DepthToSpaceUpsample if upsampling == "depth_to_space" else NearestUpsample
        channels = base_channels * channel_multipliers[-1]
        self.conv_in = convolution(latent_channels, channels, input_kernel_size)
        layers = middle_blocks(
            channels,
            blocks[-1],
            attention=middle_attention,
            kernel_size=residual_kernel_size,
            dropout=dropout,
            norm_groups=norm_groups,
        )
        if adaptive_norm:
            layers.append(AdaptiveGroupNorm(channels, latent_channels, norm_groups))
        for level, multiplier in reversed(list(enumerate(channel_multipliers))):
            layers += residual_level(
                channels,
                base_channels * multiplier,
                blocks[level],
                attention=2**level in attention_factors,
                kernel_size=residual_kernel_size,
                dropout=dropout,
                norm_groups=norm_groups,
            )
            channels = base_channels * multiplier
            if level > 0:
                layers.append(upsample(channels))
                if adaptive_norm:
                    layers.append(AdaptiveGroupNorm(channels, latent_channels, norm_groups))
        self.blocks = nn.ModuleList(layers)
        self.final = nn.Sequential(
            group_norm(channels, norm_groups), nn.SiLU(), convolution(channels, 3, output_kernel_size, gain=SILU_GAIN)
        )

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the convolution to RGB, where the adaptive adversarial weight compares gradients."""
        weight = self.final[-1].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) → image (B, 3, f·h, f·w), unclamped, trained to lie in [-1, 1]."""
        x = self.conv_in(quantized)
        for block in self.blocks:
            x = block(x, quantized) if isinstance(block, AdaptiveGroupNorm) else block(x)
        return self.final(x)
