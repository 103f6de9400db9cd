import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gsq_lightning.discriminators import Discriminator, PatchDiscriminator, StyleGANDiscriminator
from gsq_lightning.errors import InputError
from gsq_lightning.losses import GradientPenalty, LeCamRegularizer, adaptive_weight, gradient_penalty


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    """Gradients in the last layer: (6, 8), of norm 10, and (0, 5) times 0.4, of norm 2."""
    last_layer = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction_loss = (torch.tensor([6.0, 8.0]) * last_layer).sum()
    adversarial_loss = 0.4 * (torch.tensor([0.0, 5.0]) * last_layer).sum()
    weight = adaptive_weight(reconstruction_loss, adversarial_loss, last_layer)
    assert weight.item() == pytest.approx(10 / 2)
    assert not weight.requires_grad
    (reconstruction_loss + weight * adversarial_loss).backward()  # the graphs are still there
    assert last_layer.grad is not None
    assert last_layer.grad.tolist() == pytest.approx([6.0, 18.0], rel=1e-5)


def test_adaptive_weight_is_bounded() -> None:
    last_layer = torch.tensor([1.0], requires_grad=True)
    # an adversarial gradient below 1e-3 counts as 1e-3
    assert adaptive_weight(last_layer.sum(), 0.0 * last_layer.sum(), last_layer).item() == pytest.approx(1e3)
    assert adaptive_weight(last_layer.sum(), 1e-5 * last_layer.sum(), last_layer).item() == pytest.approx(1e3)
    assert adaptive_weight(100 * last_layer.sum(), 0.0 * last_layer.sum(), last_layer).item() == 1e4
    assert adaptive_weight(9 * last_layer.sum(), last_layer.sum(), last_layer, maximum=3.0).item() == 3.0


def test_adaptive_weight_shows_gradients_that_are_not_finite() -> None:
    last_layer = torch.tensor([1.0], requires_grad=True)
    assert not adaptive_weight(math.nan * last_layer.sum(), last_layer.sum(), last_layer).isfinite()


class Slope(nn.Module):
    """A linear discriminator: its gradient is its weight wherever one looks."""

    def __init__(self, norm: float, logits: int = 1) -> None:
        super().__init__()
        weight = torch.randn(3, 4, 4)
        self.weight = nn.Parameter(norm * weight / weight.norm())
        self.logits = logits

    def forward(self, image: Tensor) -> Tensor:
        return (image * self.weight).sum(dim=(1, 2, 3))[:, None].expand(-1, self.logits) / self.logits


@pytest.mark.parametrize("norm", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("logits", [1, 6])
def test_penalties_of_a_plane_follow_from_its_slope(norm: float, logits: int) -> None:
    """R1 is over pixels in [0, 1], where the slope is twice as steep."""
    image, reconstruction = torch.rand(2, 5, 3, 4, 4)
    wgan_gp, r1 = (
        gradient_penalty(Slope(norm, logits), image, reconstruction, kind).item() for kind in ("wgan_gp", "r1")
    )
    assert wgan_gp == pytest.approx((norm - 1) ** 2, abs=1e-5)
    assert r1 == pytest.approx((2 * norm) ** 2, abs=1e-5)


def test_r1_is_at_the_images_and_averages_over_them() -> None:
    """D = |x|²/2 has slope |x|: 4 |x|² over pixels in [0, 1], by numpy."""
    image, reconstruction = torch.rand(2, 5, 3, 4, 4) * 2 - 1
    penalty = gradient_penalty(lambda x: x.square().sum(dim=(1, 2, 3)) / 2, image, reconstruction)
    expected = (4 * image.double().numpy().reshape(5, -1) ** 2).sum(axis=1).mean()
    assert penalty.item() == pytest.approx(expected, rel=1e-5)


def test_an_unknown_penalty_is_refused() -> None:
    image = torch.rand(1, 3, 4, 4)
    with pytest.raises(InputError, match="gradient_penalty is 'R1'; it must be one of: r1, wgan_gp"):
        gradient_penalty(Slope(1.0), image, image, "R1")  # type: ignore[arg-type]


def test_penalty_looks_between_image_and_reconstruction() -> None:
    """D = |x|²/2 has slope |x|: with all pixels ε between 0 and 1, over 48 pixels, √48 · ε."""
    seen: list[Tensor] = []

    def discriminator(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.square().sum(dim=(1, 2, 3)) / 2

    penalty = gradient_penalty(discriminator, torch.ones(500, 3, 4, 4), torch.zeros(500, 3, 4, 4), "wgan_gp")
    epsilon = seen[0][:, 0, 0, 0]
    assert torch.equal(seen[0], epsilon.view(-1, 1, 1, 1).expand_as(seen[0]))  # one for each image
    assert epsilon.min() >= 0
    assert epsilon.max() <= 1
    assert float(epsilon.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(epsilon.std()) == pytest.approx(12**-0.5, abs=0.02)
    torch.testing.assert_close(penalty, (48**0.5 * epsilon - 1).square().mean())


@pytest.mark.parametrize(("kind", "pull"), [("wgan_gp", 2 * (3 - 1) / 3), ("r1", 8.0)])
def test_penalty_trains_the_discriminator_alone(kind: GradientPenalty, pull: float) -> None:
    """For weights w of norm n = 3: d(n - 1)²/dw = 2 (n - 1) w/n, and d4n²/dw = 8w."""
    slope = Slope(norm=3.0)
    image, reconstruction = (torch.rand(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    gradient_penalty(slope, image, reconstruction, kind).backward()
    assert slope.weight.grad is not None
    torch.testing.assert_close(slope.weight.grad, pull * slope.weight.detach())
    assert image.grad is None
    assert reconstruction.grad is None


@pytest.mark.parametrize(
    "build",
    [
        lambda: PatchDiscriminator(channels=4, num_layers=1),
        lambda: StyleGANDiscriminator(channels=4, multipliers=(1, 2)),
    ],
    ids=["NLD", "SGD"],
)
def test_penalty_pulls_the_slope_to_1(build: Callable[[], Discriminator]) -> None:
    discriminator = build()
    image, reconstruction = torch.rand(2, 4, 3, 16, 16)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=3e-3)
    penalties = []
    for _ in range(60):
        penalty = gradient_penalty(discriminator, image, reconstruction, "wgan_gp")
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(penalty.item())
    assert penalties[0] > 0.05
    assert penalties[-1] < 0.1 * penalties[0]


def test_penalty_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(channels=4, num_layers=1)
    image, reconstruction = torch.rand(2, 2, 3, 16, 16)
    penalties = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            penalties.append(gradient_penalty(discriminator, image.bfloat16(), reconstruction.bfloat16(), "wgan_gp"))
    torch.testing.assert_close(penalties[0], penalties[1], rtol=0, atol=0)


def test_lecam_in_numbers() -> None:
    regularizer = LeCamRegularizer(decay=0.5)
    real, fake = torch.tensor([[2.0, 4.0]]), torch.tensor([[-1.0, -3.0]])
    # averages 0: mean(2², 4²) + mean(1², 3²)
    assert regularizer(real, fake).item() == pytest.approx(10 + 5)
    assert regularizer(real, fake).item() == pytest.approx(10 + 5)  # only a step moves the averages
    regularizer.update(real.mean(), fake.mean())
    # averages 1.5 and -1: mean(3², 5²) + mean(2.5², 4.5²)
    assert (regularizer.real_average.item(), regularizer.fake_average.item()) == (1.5, -1.0)
    assert regularizer(real, fake).item() == pytest.approx(17 + 13.25)
    regularizer.update(real.mean(), fake.mean())
    assert (regularizer.real_average.item(), regularizer.fake_average.item()) == (2.25, -1.5)


def test_lecam_leaves_logits_on_the_wrong_side_alone() -> None:
    regularizer = LeCamRegularizer()
    real = torch.tensor([[-2.0, 1.0]], requires_grad=True)
    fake = torch.tensor([[2.0, -1.0]], requires_grad=True)
    regularizer(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert real.grad.tolist() == [[0.0, 1.0]]
    assert fake.grad.tolist() == [[0.0, -1.0]]


def test_lecam_averages_follow_slowly() -> None:
    regularizer = LeCamRegularizer()
    for _ in range(1000):
        regularizer.update(torch.tensor(5.0), torch.tensor(-4.0))
    assert regularizer.real_average.item() == pytest.approx(5 * (1 - 0.999**1000), rel=1e-3)
    assert regularizer.fake_average.item() == pytest.approx(-4 * (1 - 0.999**1000), rel=1e-3)
    restored = LeCamRegularizer()
    restored.load_state_dict(regularizer.state_dict())
    assert restored.real_average == regularizer.real_average


def test_lecam_forgets_a_step_that_diverged() -> None:
    regularizer = LeCamRegularizer(decay=0.5)
    regularizer.update(torch.tensor(4.0), torch.tensor(math.nan))
    assert (regularizer.real_average.item(), regularizer.fake_average.item()) == (2.0, 0.0)


def test_a_decay_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match="below 1"):
        LeCamRegularizer(decay=1.0)
