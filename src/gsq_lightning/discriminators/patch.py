"""PatchGAN discriminator ("NLD" in the GSQ paper): pix2pix, arXiv 1611.07004, section 3.2.2; VQGAN's settings, and
the start of the GSQ paper's reference (arXiv 2412.02632).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from gsq_lightning.discriminators.interface import Discriminator
from gsq_lightning.errors import look_up, require

Norm = Literal["batch", "none"]

MAX_LAYERS = 10  # which need images of 3072 pixels
KERNEL_SIZE = 4
LEAK = 0.2
MAX_MULTIPLIER = 8
LAST_SCALE = 0.1  # logits begin near 0: of standard deviation 0.06, where pix2pix's start gives 1.15


class PatchDiscriminator(Discriminator):
    """Convolutions of stride 2, then two of stride 1; each logit judges one patch (70×70 pixels with 3 layers).

    Weights begin as N(0, 1/fan_in) (Kaiming's for a linear layer), a tenth of that in the last layer, which has no
    bias; with three layers and 64 channels they are 2,765,632.

    Args:
        channels: width of the first layer; it doubles from layer to layer, up to 8 times.
        num_layers: layers of stride 2, at least 1; the image needs 3 · 2^num_layers pixels or more each way.
        norm: "batch" as in the reference, or "none".

    Raises:
        InputError: for options that make no sense; from `forward`, for images that are too small.
    """

    def __init__(self, channels: int = 64, num_layers: int = 3, norm: Norm = "batch") -> None:
        super().__init__()
        require(
            channels >= 1 and 1 <= num_layers <= MAX_LAYERS,
            f"channels {channels} must be at least 1, and num_layers {num_layers} from 1 to {MAX_LAYERS}",
        )
        make_norm = look_up("norm", norm, NORMS)
        self.channels = channels
        self.num_layers = num_layers
        self.norm: Norm = norm
        layers: list[nn.Module] = [nn.Conv2d(3, channels, KERNEL_SIZE, stride=2, padding=1), nn.LeakyReLU(LEAK)]
        width = channels
        for number in range(1, num_layers + 1):
            out_width = channels * min(2**number, MAX_MULTIPLIER)
            stride = 2 if number < num_layers else 1
            # a bias before a batch norm would be subtracted again
            layers.append(nn.Conv2d(width, out_width, KERNEL_SIZE, stride, padding=1, bias=norm == "none"))
            layers += [*make_norm(out_width), nn.LeakyReLU(LEAK)]
            width = out_width
        last = nn.Conv2d(width, 1, KERNEL_SIZE, stride=1, padding=1, bias=False)
        self.net = nn.Sequential(*layers, last)
        for layer in self.net:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        with torch.no_grad():
            last.weight.mul_(LAST_SCALE)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → logits (B, 1, H', W'); H' = H/8 - 2 with three layers."""
        smallest = 3 * 2**self.num_layers
        require(
            min(image.shape[-2:]) >= smallest,
            f"the patch discriminator with num_layers {self.num_layers} needs images of at least {smallest} pixels "
            f"each way, these have {image.shape[-2]}×{image.shape[-1]}; lower num_layers",
        )
        return self.net(image)


NORMS = {
    # without running averages: a discriminator only ever judges in training
    "batch": lambda channels: [nn.BatchNorm2d(channels, track_running_stats=False)],
    "none": lambda channels: [],
}
