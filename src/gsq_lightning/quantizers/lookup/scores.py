"""Scores x·c − |c|²/2 as one product of float16 matrices, for tensor cores, and a bound on how far they err.

The nearest code has the highest score. Codes are scaled to |c| ≤ r ≤ 1, points by a further β = 2⁻ᵏ to |x| ≤ 1, which
scales their scores alike. A number is split into two that float16 holds, a ≈ a₀ + a₁:

    x·c − β|c|²/2 ≈ [x₀ x₀ x₁ β β] · [c₀ c₁ c₀ s₀ s₁],   s = −|c|²/2.

Bound, with δ = 2⁻¹¹ (1 + 2⁻¹⁰), ε = 2⁻²⁵ (half of float16's least number), K = 3d + 2 products:

- a rounded number errs by δ |a| + ε at most, its two parts together by δ² |a| + (1 + δ) ε. What the product leaves
  out is x₁·c₁ and the products of the rests: less than 3.01 δ² |x| r + 1.05 ε √d (|x| + r) (Cauchy-Schwarz). Of the
  bias it is δ² β r²/2 + 1.01 ε, where β itself may be too small for float16. Together less than
  6.4 · 2⁻²³ B + 1.1 ε (√d (|x| + r) + 1), B = |x| r + β r²/2;
- products of two numbers of 11 bits are exact in float32. Tensor cores add them in blocks, to an accumulator: addends
  are aligned to the largest exponent and cut there, and so is the sum, each by less than 2⁻²³ of the largest magnitude
  (https://doi.org/10.7717/peerj-cs.330 measures that from V100 to A100). None exceeds S = Σ |products|, which is
  (1 + 2⁻⁸) B and less than is spared above. There are K products that are not zero and at most K blocks of four, each
  with an accumulator and a sum, so less than 3 K · 2⁻²³ S in all. Ordinary float32 sums in any order err less:
  K · 2⁻²⁴ S.

So each score is within (3K + 7) · 2⁻²³ · 1.01 B + 1.1 ε (√d (|x| + r) + 1) of the true one.

A second bound is of the float64 search that a result has to equal: what it rounds itself, and loses to underflow.
"""

import torch
from torch import Tensor

from gsq_lightning.quantizers.lookup.arithmetic import FLOAT64_ROUNDING

TENSOR_CORES_FROM = 4  # channels: below it differences take fewer instructions

FAR = 2.0**64  # in radii of the codebook: beyond it float64 cannot tell codes apart
LARGE = 2.0**500  # beyond it squares may leave float64, where the search finds all codes equally far
FLOAT16_ROUNDING = 2.0**-25  # of the numbers nearest to zero


class SplitCodes:
    """A codebook, ready for products with points.

    Codes are shifted to their mean, so that r is small where most have gathered, and scaled by a power of two to
    r ≤ 1. Those that are not finite are copies of one that is. Nothing here waits for the device.

    Args:
        codes: (V, d) float64.
        multiple: the matrix has a multiple of so many rows.

    Attributes:
        matrix: (V', K') float16; rows beyond V are copies of the last, columns beyond K zeros.
        chunk: what K' is a multiple of, a power of two, at least 16.
        scale: of scores, squared: they are those of points and codes in units of 1/scale.
    """

    def __init__(self, codes: Tensor, multiple: int = 1) -> None:
        dimension = codes.shape[1]
        finite = codes.isfinite().all(dim=1)
        codes = torch.where(finite[:, None], codes, 0.0)
        codes = torch.where(finite[:, None], codes, codes.index_select(0, finite.byte().argmax(dim=0, keepdim=True)))
        self._extent = codes.abs().amax()
        first = _power_of_two(self._extent)
        scaled = codes * first
        center = scaled.mean(dim=0)
        centered = scaled - center
        second = _power_of_two(centered.abs().amax() * dimension**0.5)
        self._first, self._second, self._center = first, second, center
        self.scale = first * second
        centered = centered * second
        self._radius = torch.linalg.vector_norm(centered, dim=1).amax()
        # of codes and center before the shift, in units after it
        self._offset = (self._extent * first + center.abs().amax()) * second * dimension**0.5
        bias = centered.square().sum(dim=1, keepdim=True) / -2
        high, low = _split(centered)
        self.chunk = _chunk(3 * dimension + 2)
        matrix = _fill([high, low, high, *_split(bias)], self.chunk)
        self.matrix = torch.cat([matrix, matrix[-1:].expand(-len(matrix) % multiple, -1)])

    def split(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points, and how much higher the best score must be than the next for the best to be the nearest.

        Args:
            points: (n, d) float64, finite.

        Returns:
            (n, K') float16, and (n,) float64, infinite where a point lies too far out to be told anything of.
        """
        dimension = points.shape[1]
        shifted = (points * self._first - self._center) * self._second
        norm = torch.linalg.vector_norm(shifted, dim=1)
        near = (norm < FAR) & (points.abs().amax(dim=1) + self._extent < LARGE)
        norm = torch.where(near, norm, 0.0)
        beta = _power_of_two(norm).clamp(max=1.0)
        # rounding of the float64 search at these magnitudes, and its underflow
        slack = (dimension + 8) * 4 * FLOAT64_ROUNDING * (norm + self._offset + 3).square()
        slack = slack + dimension * (self.scale * 2.0**-535).square()
        high, low = _split(torch.where(near[:, None], shifted * beta[:, None], 0.0))
        one = beta[:, None].half()
        norm, radius, count = norm * beta, self._radius, 3 * dimension + 2
        error = (3 * count + 7) * 2.0**-23 * 1.01 * (norm + beta * radius / 2) * radius
        error = error + 1.1 * FLOAT16_ROUNDING * (dimension**0.5 * (norm + radius) + 1)
        margin = torch.where(near, 2 * (error + beta * slack), torch.inf)
        return _fill([high, high, low, one, one], self.chunk), margin


def _split(values: Tensor) -> tuple[Tensor, Tensor]:
    """float64 → two float16 numbers, whose sum is nearly the value."""
    high = values.half()
    return high, (values - high).half()


def _power_of_two(largest: Tensor) -> Tensor:
    """The factor that takes a magnitude to [0.5, 1)."""
    return torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent)


def _chunk(count: int) -> int:
    """Up to 128 numbers are multiplied at once, more in steps of 32."""
    return next((size for size in (16, 32, 64, 128) if count <= size), 32)


def _fill(columns: list[Tensor], chunk: int) -> Tensor:
    matrix = torch.cat(columns, dim=1)
    return torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % chunk)).contiguous()
