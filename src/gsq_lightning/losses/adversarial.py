"""GAN losses (GSQ, arXiv 2412.02632, appendix E.3). σ is the logistic function.

| name           | generator            | discriminator                                          |
|----------------|----------------------|--------------------------------------------------------|
| vanilla        | mean(-log σ(fake))   | ½ · mean(-log σ(real)) + ½ · mean(-log(1 - σ(fake)))   |
| hinge          | -mean(fake)          | ½ · mean(max(0, 1 - real)) + ½ · mean(max(0, 1 + fake))|
| non_saturating | mean(-log σ(fake))   | as vanilla                                             |

Vanilla and hinge average over all logits; the non-saturating pair first averages the logits of each image. The
vanilla generator's loss is eq. 18, mean log(1 + exp(-fake)), not the saturating log(1 - σ(fake)). All compute in
float32.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from gsq_lightning.errors import look_up

AdversarialLoss = Literal["vanilla", "hinge", "non_saturating"]


def generator_loss(fake_logits: Tensor, kind: AdversarialLoss) -> Tensor:
    """Scalar loss of the generator.

    Args:
        fake_logits: (B, ...), the discriminator's logits of reconstructions.
        kind: see the table above.

    Raises:
        InputError: for another word.
    """
    return look_up("adversarial_loss", kind, GENERATOR_LOSSES)(fake_logits.float())


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: AdversarialLoss) -> Tensor:
    """Scalar loss of the discriminator, halved.

    Args:
        real_logits, fake_logits: (B, ...), logits of images and of reconstructions.
        kind: see the table above.

    Raises:
        InputError: for another word.
    """
    return 0.5 * look_up("discriminator_loss", kind, DISCRIMINATOR_LOSSES)(real_logits.float(), fake_logits.float())


def _real(logits: Tensor) -> Tensor:
    """Mean -log σ, of logits that ought to be high."""
    return F.softplus(-logits).mean()


def _fake(logits: Tensor) -> Tensor:
    """Mean -log(1 - σ), of logits that ought to be low."""
    return F.softplus(logits).mean()


def _per_image(logits: Tensor) -> Tensor:
    """(B, ...) → (B,)."""
    return logits.flatten(1).mean(dim=1)


GENERATOR_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "vanilla": _real,
    "hinge": lambda fake: -fake.mean(),
    "non_saturating": lambda fake: _real(_per_image(fake)),
}

DISCRIMINATOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "vanilla": lambda real, fake: _real(real) + _fake(fake),
    "hinge": lambda real, fake: F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean(),
    "non_saturating": lambda real, fake: _real(_per_image(real)) + _fake(_per_image(fake)),
}
