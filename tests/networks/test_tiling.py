from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

from gsq_lightning.networks.tiling import blend_tiles


@pytest.mark.parametrize(("height", "width"), [(40, 56), (16, 60), (8, 8), (33 * 4, 17 * 4)])
def test_tiles_of_a_local_network_make_the_whole(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)

    def halve(part: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(part, 4)

    def double(part: torch.Tensor) -> torch.Tensor:
        return F.interpolate(part, scale_factor=2.0)

    torch.testing.assert_close(blend_tiles(halve, x, 16, 4, Fraction(1, 4)), halve(x))
    torch.testing.assert_close(blend_tiles(double, x, 16, 4, Fraction(2)), double(x))


def test_seams_are_ramps_and_no_step() -> None:
    """Tiles that disagree by 1 meet in a ramp over the overlap, as a picture without visible seams needs."""
    calls: list[int] = []

    def constant(part: torch.Tensor) -> torch.Tensor:
        calls.append(part.shape[-1])
        return torch.full_like(part, float(len(calls)))

    row = blend_tiles(constant, torch.zeros(1, 1, 16, 28), 16, 4, Fraction(1))[0, 0, 0]
    assert calls == [16, 16]
    expected = torch.cat([torch.ones(12), 1 + torch.arange(1, 5) / 5, torch.full((12,), 2.0)])
    torch.testing.assert_close(row, expected)
