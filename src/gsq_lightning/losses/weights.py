"""How much each loss term counts."""

from dataclasses import dataclass, fields

from gsq_lightning.errors import InputError


@dataclass(frozen=True)
class LossWeights:
    """Factors of the loss terms; 0 leaves a term out and skips its work. Defaults are the paper's (section 4).

    Args:
        reconstruction: of the mean squared error over pixels in [-1, 1] (λrec).
        perceptual: of the perceptual loss (λp).
        adversarial: of the generator's GAN loss (λadv).
        quantizer: of the quantizer's own loss.
        discriminator: of the discriminator's GAN loss (λdisc).
        lecam: of the LeCam regularizer in the discriminator's loss (0.001 in Table 11).
        gradient_penalty: of the gradient penalty in the discriminator's loss (10 in Table 11).
    """

    reconstruction: float = 1.0
    perceptual: float = 1.0
    adversarial: float = 0.1
    quantizer: float = 1.0
    discriminator: float = 1.0
    lecam: float = 0.0
    gradient_penalty: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 0:
                raise InputError(
                    f"loss_weights.{field.name} is {getattr(self, field.name)}; it must be at least 0 (0 leaves it out)"
                )
