"""StyleGAN discriminator ("SGD" in the GSQ paper): the residual one of StyleGAN2 (arXiv 1912.04958) for single images,
as in MAGVIT (arXiv 2212.05199) or as in the GSQ paper's reference (arXiv 2412.02632).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.discriminators.interface import Discriminator
from gsq_lightning.errors import look_up, require

Form = Literal["magvit", "gsq"]

BLUR_FILTER = (1.0, 3.0, 3.0, 1.0)  # in one dimension, as in both StyleGAN2 and MAGVIT


class FormDetails(NamedTuple):
    """The differences between the two forms.

    Attributes:
        leak: slope of the activations below 0.
        widens_first: whether the number of channels changes in a block's first convolution, before the blur, or in its
            second.
        skip_bias: whether the 1×1 convolution of the skip has a bias.
        scale: of the sum of residual and skip.
        head_size: height and width of the feature map before the linear layers, by adaptive average pooling.
        border: what the blur sees beyond the border, a mode of `F.pad`: zeros ("constant"), or "reflect".
        glorot: initialize weights by Glorot's uniform distribution and biases with 0, or as PyTorch's layers do.
    """

    leak: float
    widens_first: bool
    skip_bias: bool
    scale: float
    head_size: int
    border: Literal["constant", "reflect"]
    glorot: bool


class StyleGANDiscriminator(Discriminator):
    """Residual blocks that halve height and width, then two linear layers to one logit per image.

    Adaptive average pooling before the linear layers, to 4×4 in MAGVIT's form and 1×1 in that of the GSQ paper's
    reference, makes the same weights fit images of several sizes. With five blocks, pooling to 4×4 changes nothing at
    128², where the paper ran it (Table 7); at 256² MAGVIT would flatten 8×8, with four times the weights in the first
    linear layer.

    Args:
        channels: width of the first convolution.
        multipliers: width of each block's output, as a multiple of `channels`. n blocks need images whose sides are
            multiples of 2^n, and in MAGVIT's form at least 4·2^n: 128, 160, … with five.
        form: "magvit", or "gsq" as the reference: 22,163,201 weights by default, trained for 1,000 steps in Table 7
            before NaN. See `FormDetails`.

    Raises:
        InputError: for options that make no sense; from `forward`, for image sizes that do not fit.
    """

    def __init__(
        self, channels: int = 128, multipliers: Sequence[int] = (2, 4, 4, 4, 4), form: Form = "magvit"
    ) -> None:
        super().__init__()
        require(
            channels >= 1 and len(multipliers) > 0 and min(multipliers) >= 1,
            f"channels {channels} and multipliers {list(multipliers)} must be at least 1, and one or more",
        )
        details = look_up("form", form, FORMS)
        widths = [channels, *(channels * multiplier for multiplier in multipliers)]
        self.form: Form = form
        self.num_blocks = len(multipliers)
        self.head_size = details.head_size
        self.net = nn.Sequential(
            nn.Conv2d(3, channels, kernel_size=3, padding=1),
            nn.LeakyReLU(details.leak),
            *(DownBlock(inputs, outputs, details) for inputs, outputs in pairwise(widths)),
            nn.Conv2d(widths[-1], widths[-1], kernel_size=3, padding=1),
            nn.LeakyReLU(details.leak),
            nn.AdaptiveAvgPool2d(details.head_size),
            nn.Flatten(),
            nn.Linear(widths[-1] * details.head_size**2, widths[-1]),
            nn.LeakyReLU(details.leak),
            nn.Linear(widths[-1], 1),
        )
        if details.glorot:
            self.apply(_initialize)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → logits (B, 1)."""
        factor = 2**self.num_blocks
        smallest = self.head_size * factor
        height, width = image.shape[-2:]
        require(
            height % factor == 0 and width % factor == 0 and min(height, width) >= smallest,
            f"a StyleGAN discriminator with {self.num_blocks} blocks needs images whose sides are multiples of "
            f"{factor} and at least {smallest}, and got {height}×{width}; change the image size, or give fewer or more "
            "multipliers",
        )
        return self.net(image)


class DownBlock(nn.Module):
    """Residual block that halves height and width: both branches are blurred before every second pixel is taken.

    Args:
        in_channels, out_channels: widths.
        details: which of the two networks is built.
    """

    def __init__(self, in_channels: int, out_channels: int, details: FormDetails) -> None:
        super().__init__()
        between = out_channels if details.widens_first else in_channels
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, between, kernel_size=3, padding=1),
            nn.LeakyReLU(details.leak),
            BlurPool(between, details.border),
            nn.Conv2d(between, out_channels, kernel_size=3, padding=1),
            nn.LeakyReLU(details.leak),
        )
        self.skip = nn.Sequential(
            BlurPool(in_channels, details.border),
            nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=details.skip_bias),
        )
        self.scale = details.scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H/2, W/2)."""
        return (self.residual(x) + self.skip(x)) * self.scale


class BlurPool(nn.Module):
    """Low-pass filter, then every second pixel (arXiv 1904.11486).

    Args:
        channels: each is filtered on its own.
        border: what lies beyond the border, see `FormDetails`.
    """

    kernel: Tensor

    def __init__(self, channels: int, border: Literal["constant", "reflect"]) -> None:
        super().__init__()
        taps = torch.tensor(BLUR_FILTER) / sum(BLUR_FILTER)
        kernel = torch.outer(taps, taps).expand(channels, 1, -1, -1).clone()
        self.register_buffer("kernel", kernel, persistent=False)
        self.channels = channels
        self.border = border

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), H and W even → (B, C, H/2, W/2)."""
        padded = F.pad(x, (1, 1, 1, 1), mode=self.border)
        return F.conv2d(padded, self.kernel, stride=2, groups=self.channels)


FORMS = {
    "magvit": FormDetails(
        leak=0.2,
        widens_first=False,
        skip_bias=False,
        scale=1 / math.sqrt(2),
        head_size=4,
        border="constant",
        glorot=True,
    ),
    "gsq": FormDetails(
        leak=0.01, widens_first=True, skip_bias=True, scale=1.0, head_size=1, border="reflect", glorot=False
    ),
}


def _initialize(module: nn.Module) -> None:
    """MAGVIT's initialization: Glorot uniform weights, biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
