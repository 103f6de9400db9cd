"""Scores x·c − |c|²/2 as one product of TF32 matrices, for tensor cores, and a bound on how far they err.

The nearest code has the highest score. A number is split into two that TF32 holds exactly, a = a₀ + a₁ + rest, by
rounding to 11 bits of mantissa here, so that no hardware rounds an input:

    x·c − |c|²/2 ≈ [x₀ x₀ x₁ 1 1 1] · [c₀ c₁ c₀ s₀ s₁ s₂],   s = −|c|²/2 in three such numbers.

Bound, with δ = 2⁻¹¹ (1 + 2⁻¹⁰), r ≥ |c| for all codes, K = 3d + 3 products:

- what the splits leave out is x₁·c₁ and the products of the rests, at most 3 δ² |x| r (1 + 2⁻⁹) in all
  (Cauchy-Schwarz; |a₁| ≤ δ |a|, |rest| ≤ δ² |a|), and δ³ r²/2 of s: together less than 6.4 · 2⁻²³ (|x| r + r²/2);
- products of two 11-bit numbers are exact in float32. Tensor cores add them in blocks, to an accumulator: addends are
  aligned to the largest exponent and cut there, and so is the sum, each by less than 2⁻²³ of the largest magnitude
  (https://doi.org/10.7717/peerj-cs.330 measures that from V100 to A100). None exceeds S = Σ |products| ≤
  (1 + 2⁻⁸) (|x| r + r²/2). There are K products that are not zero and at most K blocks of four, each with an
  accumulator and a sum, so less than 3 K · 2⁻²³ S in all. Ordinary float32 sums in any order err less: K · 2⁻²⁴ S.

So each score is within (3K + 7) · 2⁻²³ · 1.01 (|x| r + r²/2) of the true one.

A second bound is of the float64 search that a result has to equal: what it rounds itself, and loses to underflow.
"""

import torch
from torch import Tensor

from gsq_lightning.quantizers.lookup.arithmetic import FLOAT64_ROUNDING

FAR = 2.0**64  # beyond it float64 can hardly tell codes apart, and float32 might overflow
LARGE = 2.0**500  # beyond it squares may leave float64, where the search finds all codes equally far
NEVER = -(2.0**100)  # score of codes that are not finite, far below all others


class SplitCodes:
    """A codebook, ready for products with points.

    Codes are shifted to their mean, so that r is small where most have gathered, and scaled by a power of two to
    r ≤ 1, so that nothing overflows. Nothing here waits for the device.

    Args:
        codes: (V, d) float64.

    Attributes:
        matrix: (V, K') float32, of TF32 numbers; K' is K, filled with zeros to a multiple of `chunk`.
        chunk: a power of two, at least 16.
        scale: of scores, squared: they are those of points and codes in units of 1/scale.
    """

    def __init__(self, codes: Tensor) -> None:
        dimension = codes.shape[1]
        finite = codes.isfinite().all(dim=1, keepdim=True)
        codes = torch.where(finite, codes, 0.0)
        self._extent = codes.abs().amax()
        first = _power_of_two(self._extent)
        scaled = codes * first
        center = torch.where(finite, scaled, 0.0).mean(dim=0)
        centered = torch.where(finite, scaled - center, 0.0)
        second = _power_of_two(centered.abs().amax() * dimension**0.5)
        self._first, self._second, self._center = first, second, center
        self.scale = first * second
        centered = centered * second
        self._radius = torch.linalg.vector_norm(centered, dim=1).amax()
        # of codes and center before the shift, in units after it
        self._offset = (self._extent * first + center.abs().amax()) * second * dimension**0.5
        bias = torch.where(finite, centered.square().sum(dim=1, keepdim=True) / -2, NEVER)
        high, low = _split(centered, 2)
        self.chunk = _chunk(3 * dimension + 3)
        self.matrix = _fill([high, low, high, *_split(bias, 3)], self.chunk)

    def split(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points, and how much higher the best score must be than the next for the best to be the nearest.

        Args:
            points: (n, d) float64, finite.

        Returns:
            (n, K') float32, and (n,) float64, infinite where a point lies too far out to be told anything of.
        """
        dimension = points.shape[1]
        shifted = (points * self._first - self._center) * self._second
        norm = torch.linalg.vector_norm(shifted, dim=1)
        # rounding of the float64 search at these magnitudes, and its underflow
        slack = (dimension + 8) * 4 * FLOAT64_ROUNDING * (norm + self._offset + 3).square()
        slack = slack + dimension * (self.scale * 2.0**-535).square() + 2.0**-100
        near = (slack < FAR) & (points.abs().amax(dim=1) + self._extent < LARGE)
        shifted = torch.where(near[:, None], shifted, 0.0)
        high, low = _split(shifted, 2)
        one = torch.ones_like(high[:, :1])
        count = 3 * dimension + 3
        error = (3 * count + 7) * 2.0**-23 * 1.01 * (norm + self._radius / 2) * self._radius
        margin = torch.where(near, 2 * (error + slack), torch.inf)
        return _fill([high, high, low, one, one, one], self.chunk), margin


def _split(values: Tensor, parts: int) -> list[Tensor]:
    """float64 → float32 numbers of 11 bits of mantissa, whose sum is within δ^parts of the value."""
    found = []
    for _ in range(parts):
        bits = values.float().view(torch.int32)
        part = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)  # to the nearest, ties away from zero
        found.append(part)
        values = values - part  # exact
    return found


def _power_of_two(largest: Tensor) -> Tensor:
    """The factor that takes a magnitude to [0.5, 1)."""
    return torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent)


def _chunk(count: int) -> int:
    """Up to 64 numbers are multiplied at once, more in steps of 32."""
    return next((size for size in (16, 32, 64) if count <= size), 32)


def _fill(columns: list[Tensor], chunk: int) -> Tensor:
    matrix = torch.cat(columns, dim=1)
    return torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % chunk)).contiguous()
