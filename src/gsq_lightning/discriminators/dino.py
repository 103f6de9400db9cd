"""DINO discriminator ("DD" in the GSQ paper): small heads on the tokens of a frozen DINOv2, after StyleGAN-T,
arXiv 2301.09515, section 3.2. The defaults are those of the GSQ paper's reference (arXiv 2412.02632).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from gsq_lightning.discriminators.augmentation import DifferentiableAugmentation
from gsq_lightning.discriminators.trunk import TrunkDiscriminator, TrunkDtype
from gsq_lightning.errors import look_up, require
from gsq_lightning.pretrained.backbones import (
    DINOV2_BLOCKS,
    DINOV2_CHANNELS,
    DINOV2_PATCH_SIZE,
    DINOV2_PREFIX_TOKENS,
    ImageNetInput,
    load_dinov2,
    require_dinov2_size,
)

Tap = int | Literal["embedding"]
Norm = Literal["batch", "local_batch", "none"]

LEAK = 0.2
VIRTUAL_BATCH = 8  # images


class DINODiscriminator(TrunkDiscriminator):
    """A frozen DINOv2 ViT-S/14 with registers, and at each of several depths a head that judges every token.

    Args:
        weights: those of the trunk: "pretrained", a path (see `load_dinov2`), or "random" (tests).
        input_size: height and width that images are resized to, a multiple of 14: 518 as in the reference, or 224 as
            in StyleGAN-T and VAR, at a seventh of the cost.
        taps: inputs of the heads: the output of a block of the trunk, 0 to 11, or "embedding", the input of block 0.
        kernel_size: tokens that a head's second convolution sees, odd.
        norm: normalization in the heads: "batch" as in the reference; "local_batch" as in StyleGAN-T, over 8 images at
            a time and without running averages; or "none".
        spectral_norm: whether the heads' convolutions have spectral norm 1, as in StyleGAN-T.
        prefix_tokens: whether class and register tokens are judged too, as in the reference.
        augmentation: what is done to all images before the trunk, in training.
        trunk_dtype: see `TrunkDiscriminator`.

    Raises:
        InputError: for options that make no sense; from `load`, where the weights cannot be had.
    """

    supports_gradient_penalty: ClassVar[bool] = False  # fused attention has no second derivative

    def __init__(
        self,
        weights: str = "pretrained",
        input_size: int = 518,
        taps: Sequence[Tap] = ("embedding", 2, 5, 8, 11),
        kernel_size: int = 9,
        norm: Norm = "batch",
        spectral_norm: bool = False,
        prefix_tokens: bool = True,
        augmentation: DifferentiableAugmentation | None = None,
        trunk_dtype: TrunkDtype = "bfloat16",
    ) -> None:
        require_dinov2_size(input_size)
        possible = {"embedding", *range(DINOV2_BLOCKS)}
        require(
            0 < len(taps) == len(set(taps)) and possible.issuperset(taps),
            f'taps is {list(taps)}; it takes one or more of the blocks 0 to {DINOV2_BLOCKS - 1} and "embedding"',
        )
        tokens = (input_size // DINOV2_PATCH_SIZE) ** 2 + (DINOV2_PREFIX_TOKENS if prefix_tokens else 0)
        require(
            kernel_size >= 1 and kernel_size % 2 == 1 and kernel_size // 2 <= tokens,
            f"kernel_size is {kernel_size}; it must be odd and at most {2 * tokens + 1}",
        )
        super().__init__(
            {str(tap): TokenHead(kernel_size, norm, spectral_norm) for tap in taps}, augmentation, trunk_dtype
        )
        self.weights = weights
        self.input_size = input_size
        self.taps = tuple(taps)
        self.prefix_tokens = prefix_tokens

    def make_trunk(self) -> nn.Module:
        network = load_dinov2(self.weights, self.input_size)
        return TappedTrunk(network, self.input_size, self.taps, self.prefix_tokens)


class TappedTrunk(nn.Module):
    """The token sequences at several depths of a vision transformer.

    Args:
        transformer: timm's VisionTransformer; blocks after the last tap do not run.
        input_size: height and width of its input.
        taps: block indices, or "embedding".
        prefix_tokens: whether class and register tokens, which come first, stay in the sequences.
    """

    def __init__(self, transformer: Any, input_size: int, taps: Sequence[Tap], prefix_tokens: bool) -> None:
        super().__init__()
        self.input = ImageNetInput(input_size)
        self.transformer = transformer
        self.taps = tuple(taps)
        self.num_blocks = 1 + max((tap for tap in self.taps if tap != "embedding"), default=-1)
        self.first_token = 0 if prefix_tokens else transformer.num_prefix_tokens

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] → (B, tokens, channels) for each tap, in the order of `taps`."""
        transformer = self.transformer
        x = transformer.norm_pre(transformer._pos_embed(transformer.patch_embed(self.input(image))))
        sequences: dict[Tap, Tensor] = {"embedding": x}
        for index in range(self.num_blocks):
            x = transformer.blocks[index](x)
            sequences[index] = x
        return [sequences[tap][:, self.first_token :] for tap in self.taps]


class TokenHead(nn.Module):
    """One logit for each token: a convolution of one token, a residual one of several, and one to the logit.

    Args:
        kernel_size: tokens that the residual convolution sees; the sequence is padded circularly.
        norm: see `DINODiscriminator`.
        spectral_norm: of the weights of all three convolutions.
    """

    def __init__(self, kernel_size: int, norm: Norm, spectral_norm: bool) -> None:
        super().__init__()

        def layer(kernel_size: int) -> nn.Sequential:
            # a bias before a batch norm would be subtracted again
            convolution = _convolution(DINOV2_CHANNELS, kernel_size, norm == "none", spectral_norm)
            return nn.Sequential(convolution, *look_up("norm", norm, NORMS)(), nn.LeakyReLU(LEAK))

        self.first = layer(kernel_size=1)
        self.residual = layer(kernel_size)
        self.last = _convolution(1, kernel_size=1, bias=True, spectral_norm=spectral_norm)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, tokens, 384) → logits (B, tokens)."""
        x = self.first(tokens.transpose(1, 2))
        x = (self.residual(x) + x) / math.sqrt(2)
        return self.last(x).squeeze(1)


class LocalBatchNorm(nn.Module):
    """Batch norm over a few images at a time, the same in training and evaluation (StyleGAN-T).

    A batch is cut into groups of at most 8 images, as equal as can be.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, tokens) → the same shape; each group and channel normalized over images and tokens."""
        groups = x.tensor_split(math.ceil(len(x) / VIRTUAL_BATCH))
        return torch.cat([F.batch_norm(group, None, None, self.weight, self.bias, training=True) for group in groups])


NORMS: dict[Norm, Callable[[], list[nn.Module]]] = {
    "batch": lambda: [nn.BatchNorm1d(DINOV2_CHANNELS, track_running_stats=False)],
    "local_batch": lambda: [LocalBatchNorm(DINOV2_CHANNELS)],
    "none": list,
}


def _convolution(out_channels: int, kernel_size: int, bias: bool, spectral_norm: bool) -> nn.Module:
    convolution = nn.Conv1d(
        DINOV2_CHANNELS, out_channels, kernel_size, padding=kernel_size // 2, padding_mode="circular", bias=bias
    )
    return parametrizations.spectral_norm(convolution) if spectral_norm else convolution
