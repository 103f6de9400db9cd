"""GAN losses (GSQ, arXiv 2412.02632, appendix E.3). σ is the logistic function.

| name           | generator            | discriminator                                          |
|----------------|----------------------|--------------------------------------------------------|
| vanilla        | mean log(1 - σ(fake))| ½ · mean(-log σ(real)) + ½ · mean(-log(1 - σ(fake)))   |
| hinge          | -mean(fake)          | ½ · mean(max(0, 1 - real)) + ½ · mean(max(0, 1 + fake))|
| non_saturating | mean(-log σ(fake))   | as vanilla                                             |

Vanilla and hinge average over all logits; the non-saturating pair first averages the logits of each image. All
compute in float32.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

AdversarialLoss = Literal["vanilla", "hinge", "non_saturating"]


def generator_loss(fake_logits: Tensor, kind: AdversarialLoss) -> Tensor:
    """Scalar loss of the generator.

    Args:
        fake_logits: (B, ...), the discriminator's logits of reconstructions.
        kind: see the table above.
    """
    fake = fake_logits.float()
    if kind == "hinge":
        return -fake.mean()
    if kind == "vanilla":
        return -F.softplus(fake).mean()
    return F.softplus(-_per_image(fake)).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: AdversarialLoss) -> Tensor:
    """Scalar loss of the discriminator, halved.

    Args:
        real_logits, fake_logits: (B, ...), logits of images and of reconstructions.
        kind: see the table above.
    """
    real, fake = real_logits.float(), fake_logits.float()
    if kind == "hinge":
        return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    if kind == "non_saturating":
        real, fake = _per_image(real), _per_image(fake)
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def _per_image(logits: Tensor) -> Tensor:
    """(B, ...) → (B,)."""
    return logits.flatten(1).mean(dim=1)
