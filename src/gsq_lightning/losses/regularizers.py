"""Regularizers of a GAN's losses and the adaptive weight. All compute in float32."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.distributed import mean_over_ranks
from gsq_lightning.errors import look_up, require

GradientPenalty = Literal["r1", "wgan_gp"]
Judge = Callable[[Tensor], Tensor]

ADAPTIVE_WEIGHT_MAXIMUM = 1e4
SMALLEST_ADVERSARIAL_GRADIENT = 1e-3  # below it the ratio is mostly rounding error; the GSQ reference's bound


def adaptive_weight(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor, maximum: float = ADAPTIVE_WEIGHT_MAXIMUM
) -> Tensor:
    """Factor that gives the adversarial loss as much pull on the decoder's last layer as the reconstruction loss has.

    ‖∇ L_rec‖ / max(‖∇ L_adv‖, 1e-3), VQGAN, arXiv 2012.09841, eq. 7, with the bounds of the GSQ paper's reference; ∇ is
    the gradient in the last layer. The graphs of both losses are kept. A gradient that is not finite makes the factor
    so. Over several ranks it is that of all their images together, the same on all.

    Args:
        reconstruction_loss: scalar, the perceptual part included.
        adversarial_loss: scalar.
        last_layer: weight of the decoder's last layer, which both losses depend on.
        maximum: upper bound of the factor; the reference has 1e4, and 1e3 with the DINO discriminator.

    Returns:
        Scalar in [0, maximum], without gradient.
    """
    with torch.autocast(last_layer.device.type, enabled=False):  # as the backward pass of the step
        gradients = torch.stack(
            [
                torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float()
                for loss in (reconstruction_loss, adversarial_loss)
            ]
        )
    reconstruction, adversarial = (gradient.norm() for gradient in mean_over_ranks(gradients))
    return (reconstruction / adversarial.clamp(min=SMALLEST_ADVERSARIAL_GRADIENT)).clamp(max=maximum)


def gradient_penalty(
    discriminator: Judge, image: Tensor, reconstruction: Tensor, kind: GradientPenalty = "r1"
) -> Tensor:
    """Penalty on the discriminator's slopes, to be multiplied by 10 (Table 11).

    - "r1": mean ‖∇D‖² at the images, over pixels in [0, 1], arXiv 1801.04406, eq. 9. The GSQ paper's reference
      does this, though the paper cites WGAN-GP.
    - "wgan_gp": mean (‖∇D‖ - 1)² at x = ε · image + (1 - ε) · reconstruction, over pixels in [-1, 1], ε uniform in
      [0, 1], one for each image; arXiv 1704.00028, eq. 3.

    Where D has several logits for an image, their sum counts, as is usual for PatchGAN. The discriminator runs without
    autocast; it must have second derivatives.

    Args:
        discriminator: (B, 3, H, W) → logits (B, ...).
        image, reconstruction: (B, 3, H, W) in [-1, 1]; no gradient flows to them.
        kind: see above.

    Raises:
        InputError: for another word.
    """
    return look_up("gradient_penalty", kind, GRADIENT_PENALTIES)(
        discriminator, image.detach().float(), reconstruction.detach().float()
    )


def _r1(discriminator: Judge, image: Tensor, reconstruction: Tensor) -> Tensor:
    # a pixel in [0, 1] moves twice as far in [-1, 1]
    return (2.0 * _gradients(discriminator, image)).square().sum(dim=1).mean()


def _wgan_gp(discriminator: Judge, image: Tensor, reconstruction: Tensor) -> Tensor:
    epsilon = torch.rand(len(image), 1, 1, 1, device=image.device)
    between = epsilon * image + (1 - epsilon) * reconstruction
    return (_gradients(discriminator, between).norm(dim=1) - 1).square().mean()


def _gradients(discriminator: Judge, x: Tensor) -> Tensor:
    """∇D at (B, 3, H, W), without gradient → (B, 3·H·W), which can be differentiated."""
    x = x.requires_grad_()
    with torch.autocast(x.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return gradient.flatten(1)


GRADIENT_PENALTIES = {"r1": _r1, "wgan_gp": _wgan_gp}


class LeCamRegularizer(nn.Module):
    """LeCam regularization, to be multiplied by 0.001 and added to the discriminator's loss (arXiv 2104.03310, eq. 4).

    mean(max(0, real - α_fake)²) + mean(max(0, α_real - fake)²), where α are running averages of the mean logits of
    earlier steps, from 0 on. The max is not in the paper's equation but in its authors' code, for the time when real
    logits are not yet above fake ones (github.com/google/lecam-gan, issue 1).

    Args:
        decay: of the averages, in [0, 1).

    Attributes:
        real_average, fake_average: α, scalars.

    Raises:
        InputError: for a decay outside [0, 1).
    """

    real_average: Tensor
    fake_average: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        require(0.0 <= decay < 1.0, f"the LeCam decay is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self.register_buffer("real_average", torch.zeros(()))
        self.register_buffer("fake_average", torch.zeros(()))

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Logits (B, ...) of images and of reconstructions → scalar."""
        real, fake = real_logits.float(), fake_logits.float()
        return F.relu(real - self.fake_average).square().mean() + F.relu(self.real_average - fake).square().mean()

    @torch.no_grad()
    def update(self, real_mean: Tensor, fake_mean: Tensor) -> None:
        """Takes the mean logits of a step into α, once per step, the same on all ranks."""
        for average, mean in ((self.real_average, real_mean), (self.fake_average, fake_mean)):
            # a step that diverges is skipped, and must not stay in the average
            kept = torch.where(mean.isfinite(), mean, average)
            average.copy_(torch.lerp(kept, average, self.decay))
