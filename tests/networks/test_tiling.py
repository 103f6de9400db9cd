from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

from gsq_lightning.networks.tiling import blend_tiles


@pytest.mark.parametrize(("height", "width"), [(40, 56), (16, 60), (12, 60), (8, 8), (33 * 4, 17 * 4)])
def test_tiles_of_a_local_network_make_the_whole(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)

    def halve(part: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(part, 4)

    def double(part: torch.Tensor) -> torch.Tensor:
        return F.interpolate(part, scale_factor=2.0)

    torch.testing.assert_close(blend_tiles(halve, x, 16, 4, Fraction(1, 4)), halve(x))
    torch.testing.assert_close(blend_tiles(double, x, 16, 4, Fraction(2)), double(x))


@pytest.mark.parametrize("scale", [1, 2])
def test_seams_are_ramps_and_no_step(scale: int) -> None:
    """Tiles that disagree by 1 meet in a ramp over the overlap, as a picture without visible seams needs."""
    calls: list[int] = []

    def constant(part: torch.Tensor) -> torch.Tensor:
        calls.append(part.shape[-1])
        return torch.full((1, 1, 16 * scale, part.shape[-1] * scale), float(len(calls)))

    row = blend_tiles(constant, torch.zeros(1, 1, 16, 40), 16, 4, Fraction(scale))[0, 0, 0]
    assert calls == [16, 16, 16]
    ramp = torch.arange(1, 4 * scale + 1) / (4 * scale + 1)
    alone = [torch.full((width * scale,), float(number)) for number, width in ((1, 12), (2, 8), (3, 12))]
    torch.testing.assert_close(row, torch.cat([alone[0], 1 + ramp, alone[1], 2 + ramp, alone[2]]))
