import numpy as np
import pytest
import torch

from gsq_lightning import InputError
from gsq_lightning.quantizers import regularizers
from gsq_lightning.quantizers.regularizers import coding_rate_loss, entropy_loss


def naive_entropy_loss(points: torch.Tensor, codes: torch.Tensor, temperature: float) -> torch.Tensor:
    distance = (points[:, None] - codes).square().sum(-1)
    assignment = torch.softmax(-distance / temperature, dim=1)
    mean = assignment.mean(0)
    return -(assignment * assignment.log()).sum(1).mean() + (mean * mean.log()).sum()


@pytest.mark.parametrize("block", [7, 60, 2**24])
def test_entropy_loss_in_blocks_equals_the_whole_with_its_gradients(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(regularizers, "BLOCK_ELEMENTS", block)
    inputs = [torch.randn(size, 3, dtype=torch.float64, requires_grad=True) for size in (11, 7)]
    loss, expected = entropy_loss(*inputs, temperature=0.7), naive_entropy_loss(*inputs, temperature=0.7)
    torch.testing.assert_close(loss, expected)
    for got, want in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_entropy_loss_has_the_temperature_of_maskgit() -> None:
    points, codes = 0.1 * torch.randn(9, 3, dtype=torch.float64), 0.1 * torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(entropy_loss(points, codes), naive_entropy_loss(points, codes, temperature=0.01))


def test_entropy_loss_is_least_for_sure_and_even_assignments() -> None:
    codes = torch.eye(4)
    assert entropy_loss(codes, codes).item() == pytest.approx(-np.log(4), abs=1e-4)
    assert entropy_loss(codes[:1].expand(4, 4), codes).item() == pytest.approx(0.0, abs=1e-4)


def test_entropy_loss_refuses_what_no_machine_could_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regularizers, "LARGEST_SEARCH", 11)
    with pytest.raises(InputError, match=r"4 latents with 3 codes, 1.2e\+01 pairs.*set entropy_weight to 0"):
        entropy_loss(torch.randn(4, 2), torch.randn(3, 2))


def test_coding_rate_by_hand() -> None:
    points = torch.randn(9, 3, dtype=torch.float64)
    z = points.numpy()
    expected = -0.5 * np.log(np.linalg.det(np.eye(3) + 3 / (9 * 0.2) * z.T @ z))
    assert coding_rate_loss(points).item() == pytest.approx(expected)


def test_coding_rate_prefers_points_that_fill_all_dimensions() -> None:
    spread = torch.eye(4).repeat(3, 1)
    assert coding_rate_loss(spread) < coding_rate_loss(torch.eye(4)[:1].expand(12, 4)) < 0
