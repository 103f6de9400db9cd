import math

import numpy as np
import pytest
import torch

from gsq_lightning.errors import InputError
from gsq_lightning.losses import AdversarialLoss, discriminator_loss, generator_loss

REAL = [[2.0, -1.0], [0.5, 3.0]]  # two images of two logits
FAKE = [[-2.0, 0.5], [1.5, -0.5]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logits(values: list[list[float]]) -> torch.Tensor:
    return torch.tensor(values).view(2, 1, 1, 2)


def test_hinge_in_numbers() -> None:
    """1 - real: -1, 2, 0.5, -2; 1 + fake: -1, 1.5, 2.5, 0.5; what is negative counts as 0."""
    assert discriminator_loss(logits(REAL), logits(FAKE), "hinge").item() == pytest.approx(
        0.5 * (2.5 / 4 + 4.5 / 4), abs=1e-6
    )
    assert generator_loss(logits(FAKE), "hinge").item() == pytest.approx(0.5 / 4, abs=1e-6)


def test_vanilla_in_numbers() -> None:
    real = np.mean([-math.log(sigmoid(x)) for row in REAL for x in row])
    fake = np.mean([-math.log(1 - sigmoid(x)) for row in FAKE for x in row])
    assert discriminator_loss(logits(REAL), logits(FAKE), "vanilla").item() == pytest.approx(0.5 * (real + fake))
    # eq. 18: the generator raises log σ, over all logits; the saturating form would lower log(1 - σ)
    wanted = np.mean([math.log(1 + math.exp(-x)) for row in FAKE for x in row])
    assert generator_loss(logits(FAKE), "vanilla").item() == pytest.approx(wanted)


def test_non_saturating_averages_the_logits_of_an_image_first() -> None:
    """Means of the images' logits: real 0.5 and 1.75, fake -0.75 and 0.5."""
    real = np.mean([-math.log(sigmoid(x)) for x in (0.5, 1.75)])
    fake = np.mean([-math.log(1 - sigmoid(x)) for x in (-0.75, 0.5)])
    assert discriminator_loss(logits(REAL), logits(FAKE), "non_saturating").item() == pytest.approx(0.5 * (real + fake))
    expected = np.mean([-math.log(sigmoid(x)) for x in (-0.75, 0.5)])
    assert generator_loss(logits(FAKE), "non_saturating").item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["vanilla", "hinge", "non_saturating"])
def test_they_pull_the_logits_apart(kind: AdversarialLoss) -> None:
    real, fake = torch.zeros(2, 3, 4, requires_grad=True)
    real, fake = real.detach().requires_grad_(), fake.detach().requires_grad_()
    discriminator_loss(real, fake, kind).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    for_generator = torch.zeros(3, 4, requires_grad=True)
    generator_loss(for_generator, kind).backward()
    assert for_generator.grad is not None
    assert (for_generator.grad < 0).all()


@pytest.mark.parametrize("kind", ["vanilla", "hinge", "non_saturating"])
def test_they_are_finite_and_float32_for_huge_bfloat16_logits(kind: AdversarialLoss) -> None:
    for sign in (1, -1):
        huge = (sign * torch.full((2, 3), 1e4)).bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = [discriminator_loss(huge, -huge, kind), generator_loss(huge, kind)]
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses)


def test_the_vanilla_generator_still_learns_where_it_fools_nobody() -> None:
    """The saturating form's gradient, σ(fake), would be 5e-5 here."""
    fake = torch.full((1, 1), -10.0, requires_grad=True)
    generator_loss(fake, "vanilla").backward()
    assert fake.grad is not None
    assert fake.grad.item() == pytest.approx(-1.0, abs=1e-4)


def test_a_word_in_another_case_is_refused_with_the_right_ones() -> None:
    """A word that is not in the table used to mean non_saturating."""
    message = "is 'Hinge'; it must be one of: vanilla, hinge, non_saturating"
    with pytest.raises(InputError, match=f"adversarial_loss {message}"):
        generator_loss(torch.zeros(1, 1), "Hinge")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"discriminator_loss {message}"):
        discriminator_loss(torch.zeros(1, 1), torch.zeros(1, 1), "Hinge")  # type: ignore[arg-type]


def test_bfloat16_logits_are_not_averaged_in_bfloat16() -> None:
    many = torch.cat([torch.full((1, 1000), 1.0), torch.full((1, 24), 3.0)], dim=1).bfloat16()
    expected = -(1000 * 1.0 + 24 * 3.0) / 1024
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generator_loss(many, "hinge").item() == pytest.approx(expected, rel=1e-6)
