"""The decoder: quantized latent → image (GSQ, arXiv 2412.02632, section 3)."""

from torch import Tensor, nn

from gsq_lightning.errors import look_up
from gsq_lightning.networks.layers import (
    SILU_GAIN,
    AdaptiveGroupNorm,
    DepthToSpaceUpsample,
    NearestUpsample,
    convolution,
    middle_blocks,
    residual_level,
)
from gsq_lightning.networks.shape import NetworkShape, Upsampling

UPSAMPLINGS: dict[Upsampling, type[nn.Module]] = {
    "depth_to_space": DepthToSpaceUpsample,
    "nearest": NearestUpsample,
}


class Decoder(nn.Module):
    """Convolution, middle blocks, levels of residual blocks with an upsampling between them, convolution to RGB.

    The levels are walked from the latent outwards. With `adaptive_norm` an adaptive group norm stands after the middle
    blocks and after every upsampling.

    Raises:
        InputError: for an unknown upsampling.
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        upsample = look_up("upsampling", shape.upsampling, UPSAMPLINGS)
        blocks = shape.blocks_per_level(shape.decoder_blocks)
        last = len(shape.channel_multipliers) - 1
        channels = shape.width(last)
        self.conv_in = convolution(shape.latent_channels, channels, shape.residual_kernel_size)
        layers = middle_blocks(channels, blocks[-1], shape)
        for level in range(last, -1, -1):
            if shape.adaptive_norm:
                layers.append(AdaptiveGroupNorm(channels, shape.latent_channels, shape.norm_groups))
            layers += residual_level(channels, level, blocks[level], shape)
            channels = shape.width(level)
            if level > 0:
                layers.append(upsample(channels))
        self.blocks = nn.ModuleList(layers)
        self.final = nn.Sequential(
            nn.GroupNorm(shape.norm_groups, channels),
            nn.SiLU(),
            convolution(channels, 3, shape.output_kernel_size, gain=SILU_GAIN),
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
