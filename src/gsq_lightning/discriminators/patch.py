"""PatchGAN discriminator ("NLD" in the GSQ paper): pix2pix, arXiv 1611.07004, section 3.2.2; VQGAN's settings."""

from typing import Literal

from torch import Tensor, nn

from gsq_lightning.discriminators.interface import Discriminator
from gsq_lightning.errors import InputError

MAX_LAYERS = 10  # which need images of 2048 pixels
KERNEL_SIZE = 4
LEAK = 0.2
MAX_MULTIPLIER = 8


class PatchDiscriminator(Discriminator):
    """Convolutions of stride 2, then two of stride 1; each logit judges one patch (70×70 pixels with 3 layers).

    Args:
        channels: width of the first layer; it doubles from layer to layer, up to 8 times.
        num_layers: layers of stride 2, at least 1; the image needs 2^(num_layers + 1) + 2^num_layers pixels or more
            each way.
        norm: "batch" as in the reference, or "none".
    """

    def __init__(self, channels: int = 64, num_layers: int = 3, norm: Literal["batch", "none"] = "batch") -> None:
        super().__init__()
        if channels < 1 or not 1 <= num_layers <= MAX_LAYERS:
            raise InputError(
                f"channels {channels} must be at least 1, and num_layers {num_layers} from 1 to {MAX_LAYERS}"
            )
        self.channels = channels
        self.num_layers = num_layers
        self.norm = norm
        layers: list[nn.Module] = [nn.Conv2d(3, channels, KERNEL_SIZE, stride=2, padding=1), nn.LeakyReLU(LEAK)]
        width = channels
        for layer in range(1, num_layers + 1):
            out_width = channels * min(2**layer, MAX_MULTIPLIER)
            stride = 2 if layer < num_layers else 1
            # a bias before a batch norm would be subtracted again
            layers.append(nn.Conv2d(width, out_width, KERNEL_SIZE, stride, padding=1, bias=norm == "none"))
            if norm == "batch":  # without running averages: a discriminator only ever judges in training
                layers.append(nn.BatchNorm2d(out_width, track_running_stats=False))
            layers.append(nn.LeakyReLU(LEAK))
            width = out_width
        layers.append(nn.Conv2d(width, 1, KERNEL_SIZE, stride=1, padding=1))
        self.net = nn.Sequential(*layers)
        self.apply(_initialize)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → logits (B, 1, H', W'); H' = H/8 - 2 with three layers."""
        smallest = 2 ** (self.num_layers + 1)
        if min(image.shape[-2:]) < smallest:
            raise InputError(
                f"the patch discriminator with num_layers {self.num_layers} needs images of at least {smallest} pixels "
                f"each way, these have {image.shape[-2]}×{image.shape[-1]}; lower num_layers"
            )
        return self.net(image)


def _initialize(module: nn.Module) -> None:
    """pix2pix: convolutions ~ N(0, 0.02²), norm weights ~ N(1, 0.02²), biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
