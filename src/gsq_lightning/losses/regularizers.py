"""What is added to a GAN's losses, or scales them, to keep training steady. All compute in float32."""

from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from gsq_lightning.errors import InputError

ADAPTIVE_WEIGHT_EPSILON = 1e-6


def adaptive_weight(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor, maximum: float = 1e4
) -> Tensor:
    """Factor that gives the adversarial loss as much pull on the decoder's last layer as the reconstruction loss has.

    ‖∇ L_rec‖ / (‖∇ L_adv‖ + 1e-6), VQGAN, arXiv 2012.09841, eq. 7; ∇ is the gradient in the last layer. The graphs of
    both losses are kept. A gradient that is not finite makes the factor so. With several processes it is that of all
    their images together, the same on all.

    Args:
        reconstruction_loss: scalar, the perceptual part included.
        adversarial_loss: scalar.
        last_layer: weight of the decoder's last layer, which both losses depend on.
        maximum: upper bound of the factor.

    Returns:
        Scalar in [0, maximum], without gradient.
    """
    gradients = torch.stack(
        [
            torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float()
            for loss in (reconstruction_loss, adversarial_loss)
        ]
    )
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(gradients)
        gradients = gradients / distributed.get_world_size()
    reconstruction, adversarial = (gradient.norm() for gradient in gradients)
    return (reconstruction / (adversarial + ADAPTIVE_WEIGHT_EPSILON)).clamp(max=maximum)


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], image: Tensor, reconstruction: Tensor) -> Tensor:
    """Penalty on slopes other than 1 between an image and its reconstruction, to be multiplied by 10.

    mean((‖∇D(x)‖ - 1)²) with x = ε · image + (1 - ε) · reconstruction, ε uniform in [0, 1], one for each image;
    WGAN-GP, arXiv 1704.00028, eq. 3. Where D has several logits for an image, their sum counts, as is usual for
    PatchGAN. The discriminator runs without autocast; it must have second derivatives.

    Args:
        discriminator: (B, 3, H, W) → logits (B, ...).
        image, reconstruction: (B, 3, H, W) in [-1, 1]; no gradient flows to them.
    """
    real, fake = image.detach().float(), reconstruction.detach().float()
    epsilon = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = (epsilon * real + (1 - epsilon) * fake).requires_grad_()
    with torch.autocast(between.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


class LeCamRegularizer(nn.Module):
    """LeCam regularization, to be multiplied by 0.001 and added to the discriminator's loss (arXiv 2104.03310, eq. 4).

    mean(max(0, real - α_fake)²) + mean(max(0, α_real - fake)²), where α are running averages of the mean logits of
    earlier steps, from 0 on. The max is not in the paper's equation but in its authors' code, for the time when real
    logits are not yet above fake ones (github.com/google/lecam-gan, issue 1).

    Args:
        decay: of the averages, in [0, 1).

    Attributes:
        real_average, fake_average: α, scalars, the same on all processes.
    """

    real_average: Tensor
    fake_average: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise InputError(f"the LeCam decay is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self.register_buffer("real_average", torch.zeros(()))
        self.register_buffer("fake_average", torch.zeros(()))

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Logits (B, ...) of images and of reconstructions → scalar; in training mode then takes them into α."""
        real, fake = real_logits.float(), fake_logits.float()
        loss = F.relu(real - self.fake_average).square().mean() + F.relu(self.real_average - fake).square().mean()
        if self.training:
            self._update(torch.stack([real.detach().mean(), fake.detach().mean()]))
        return loss

    def _update(self, means: Tensor) -> None:
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(means)
            means = means / distributed.get_world_size()
        for average, mean in zip((self.real_average, self.fake_average), means, strict=True):
            # a step that diverges is skipped, and must not stay in the average
            kept = torch.where(mean.isfinite(), mean, average)
            average.copy_(torch.lerp(kept, average, self.decay))
