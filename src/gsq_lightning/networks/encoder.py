"""The encoder: image → latent (GSQ, arXiv 2412.02632, section 3)."""

from collections.abc import Sequence

from torch import Tensor, nn

from gsq_lightning.networks.layers import (
    SILU_GAIN,
    Downsample,
    convolution,
    group_norm,
    middle_blocks,
    residual_level,
)


class Encoder(nn.Module):
    """Convolution, levels of residual blocks with a downsampling between them, middle blocks, projection.

    Args:
        latent_channels: channels D of the latent.
        channel_multipliers: width of each level in units of `base_channels`, from the image inwards. L levels
            divide height and width by 2^(L-1).
        base_channels: width of the first convolution.
        blocks: residual blocks of each level, in the order of `channel_multipliers`, and last those in the middle:
            L + 1 numbers.
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
        middle_attention: bool = False,
        attention_factors: Sequence[int] = (),
        dropout: float = 0.0,
        residual_kernel_size: int = 3,
        input_kernel_size: int = 3,
        output_kernel_size: int = 1,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        self.conv_in = convolution(3, base_channels, input_kernel_size)
        layers: list[nn.Module] = []
        channels = base_channels
        for level, multiplier in enumerate(channel_multipliers):
            if level > 0:
                layers.append(Downsample(channels))
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
        layers += middle_blocks(
            channels,
            blocks[-1],
            attention=middle_attention,
            kernel_size=residual_kernel_size,
            dropout=dropout,
            norm_groups=norm_groups,
        )
        self.blocks = nn.ModuleList(layers)
        self.final = nn.Sequential(
            group_norm(channels, norm_groups),
            nn.SiLU(),
            convolution(channels, latent_channels, output_kernel_size, gain=SILU_GAIN),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → latent (B, D, H/f, W/f)."""
        x = self.conv_in(image)
        for block in self.blocks:
            x = block(x)
        return self.final(x)
