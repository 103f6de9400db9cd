"""The shape of a tokenizer's networks, which encoder and decoder share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gsq_lightning.errors import require

Upsampling = Literal["depth_to_space", "nearest"]

MAX_CHANNELS = 2**15  # of a convolution: one of 3×3 then has 38 GB


@dataclass(frozen=True)
class NetworkShape:
    """Sizes of encoder and decoder, checked once for both.

    Attributes:
        latent_channels: D.
        channel_multipliers: width of each of L levels in units of `base_channels`, from the image inwards.
        base_channels: width of the first level's unit.
        encoder_blocks, decoder_blocks: residual blocks per level, one number for all or L + 1 numbers in the order of
            `channel_multipliers`, the middle's last.
        adaptive_norm: adaptive group norm in the decoder.
        upsampling: "depth_to_space" or "nearest".
        middle_attention: self-attention after every middle block but the last.
        attention_factors: self-attention after a level's own residual blocks where the map is 1/f of the image.
        dropout: probability of a channel in the residual blocks, in [0, 1).
        residual_kernel_size: kernel of residual blocks and of the decoder's first convolution; odd, as are the others.
        input_kernel_size: kernel of the encoder's first convolution.
        output_kernel_size: kernel of the decoder's last convolution.
        norm_groups: groups of every GroupNorm; divides every width.

    Raises:
        InputError: for sizes that do not fit each other.
    """

    latent_channels: int
    channel_multipliers: Sequence[int] = (1, 2, 2, 4)
    base_channels: int = 128
    encoder_blocks: int | Sequence[int] = 2
    decoder_blocks: int | Sequence[int] = 2
    adaptive_norm: bool = True
    upsampling: Upsampling = "depth_to_space"
    middle_attention: bool = False
    attention_factors: Sequence[int] = ()
    dropout: float = 0.0
    residual_kernel_size: int = 3
    input_kernel_size: int = 3
    output_kernel_size: int = 3
    norm_groups: int = 32

    @property
    def downsample_factor(self) -> int:
        """f: the latent is 1/f as high and wide as the image."""
        return 2 ** (len(self.channel_multipliers) - 1)

    def width(self, level: int) -> int:
        """Channels of a level, 0 being the image's own resolution."""
        return self.base_channels * self.channel_multipliers[level]

    def blocks_per_level(self, blocks: int | Sequence[int]) -> list[int]:
        """`encoder_blocks` or `decoder_blocks` as L + 1 numbers."""
        return list(blocks) if isinstance(blocks, Iterable) else [blocks] * (len(self.channel_multipliers) + 1)

    def __post_init__(self) -> None:
        multipliers = list(self.channel_multipliers)
        require(
            len(multipliers) > 0 and min(multipliers) >= 1,
            f"channel_multipliers is {multipliers}; it takes one number of at least 1 per level",
        )
        require(self.norm_groups >= 1, f"norm_groups is {self.norm_groups}; it must be at least 1")
        widest = self.base_channels * max(multipliers)
        require(
            widest <= MAX_CHANNELS,
            f"base_channels {self.base_channels} times {max(multipliers)} of channel_multipliers is {widest} channels; "
            f"at most {MAX_CHANNELS} are possible",
        )
        require(
            self.base_channels >= 1 and self.base_channels % self.norm_groups == 0,
            f"base_channels {self.base_channels} is not a multiple of norm_groups {self.norm_groups}: every GroupNorm "
            "splits its channels into that many groups",
        )
        for name in ("encoder_blocks", "decoder_blocks"):
            blocks = self.blocks_per_level(getattr(self, name))
            require(
                len(blocks) == len(multipliers) + 1 and min(blocks) >= 0,
                f"{name} is {getattr(self, name)}; it takes one number for all, or {len(multipliers) + 1} of at least "
                "0: one per level of channel_multipliers and one for the middle",
            )
        for name in ("residual_kernel_size", "input_kernel_size", "output_kernel_size"):
            size = getattr(self, name)
            require(size >= 1 and size % 2 == 1, f"{name} is {size}; it must be odd, so that maps keep their size")
        require(0.0 <= self.dropout < 1.0, f"dropout is {self.dropout}; it must be at least 0 and below 1")
        factors = [2**level for level in range(len(multipliers))]
        unknown = [factor for factor in self.attention_factors if factor not in factors]
        require(not unknown, f"attention_factors {unknown} do not occur in this network; its maps are at {factors}")
