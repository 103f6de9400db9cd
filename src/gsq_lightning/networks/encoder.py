"""The encoder: image → latent (GSQ, arXiv 2412.02632, section 3)."""

from torch import Tensor, nn

from gsq_lightning.networks.layers import (
    SILU_GAIN,
    Downsample,
    convolution,
    middle_blocks,
    residual_level,
)
from gsq_lightning.networks.shape import NetworkShape


class Encoder(nn.Module):
    """Convolution, levels of residual blocks with a downsampling between them, middle blocks, 1×1 convolution to D."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        blocks = shape.blocks_per_level(shape.encoder_blocks)
        channels = shape.base_channels
        self.conv_in = convolution(3, channels, shape.input_kernel_size)
        layers: list[nn.Module] = []
        for level in range(len(shape.channel_multipliers)):
            if level > 0:
                layers.append(Downsample(channels))
            layers += residual_level(channels, level, blocks[level], shape)
            channels = shape.width(level)
        layers += middle_blocks(channels, blocks[-1], shape)
        self.blocks = nn.ModuleList(layers)
        self.final = nn.Sequential(
            nn.GroupNorm(shape.norm_groups, channels),
            nn.SiLU(),
            convolution(channels, shape.latent_channels, 1, gain=SILU_GAIN),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → latent (B, D, H/f, W/f)."""
        x = self.conv_in(image)
        for block in self.blocks:
            x = block(x)
        return self.final(x)
