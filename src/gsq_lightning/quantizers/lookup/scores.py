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

Kernels prepare codes and points: as PyTorch's operators these would be more than a hundred, each with its own launch.
The bounds hold whether products and sums are fused or not. Each launch says which, as Triton 3.9 warns where it has to
choose, and 3.10 chooses otherwise.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsq_lightning.quantizers.lookup.arithmetic import FLOAT64_ROUNDING

FAR = tl.constexpr(2.0**64)  # in radii of the codebook: beyond it float64 cannot tell codes apart
LARGE = tl.constexpr(2.0**500)  # beyond it squares may leave float64, where the search finds all codes equally far
SMALL = tl.constexpr(2.0**-535)  # squares of such differences may underflow
ROUNDING = tl.constexpr(FLOAT64_ROUNDING)
FLOAT16_ROUNDING = tl.constexpr(2.0**-25)  # of the numbers nearest to zero
ROWS = 32  # of codes or points, to a program of these kernels
ROWS_TO_COLUMNS = 256

# what a frame holds, before the center (d,)
FIRST, SECOND = tl.constexpr(0), tl.constexpr(1)  # factors, before and after the shift to the center
EXTENT = tl.constexpr(2)  # largest channel of a code, before all of these
OFFSET = tl.constexpr(3)  # magnitude of codes and center before the shift, in units after it
RADIUS = tl.constexpr(4)  # r
CENTER = tl.constexpr(5)


@triton.jit
def _power_of_two(largest):  # type: ignore[no-untyped-def]
    """The factor, from 2**-1000 to 2**1000, that takes a magnitude to [0.5, 1); 1 for 0."""
    exponent = ((largest.to(tl.int64, bitcast=True) >> 52) & 2047) - 1022
    exponent = tl.minimum(tl.maximum(exponent, -1000), 1000)
    factor = ((1023 - exponent) << 52).to(tl.float64, bitcast=True)
    return tl.where(largest == 0, 1.0, factor)


@triton.jit
def _columns_kernel(  # type: ignore[no-untyped-def]
    vectors,  # (n, d) float32 or float64, of any strides
    columns_out,  # (d, n) float64; infinite where a channel of the vector is not finite
    highest,  # (2 d + 1,) float64: raised to the highest c and −c of each channel, and to the last row, of finite ones
    mean,  # (d,) float64: raised from 0; those that are not finite count as zeros
    num_rows,
    dimension,
    row_stride,
    channel_stride,
    measured: tl.constexpr,  # whether anything goes to `highest` and `mean`
    rows_per_program: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * rows_per_program + tl.arange(0, rows_per_program)
    is_row = row < num_rows
    is_finite = is_row
    channel_in = vectors + row * row_stride
    for _ in range(dimension):
        is_finite &= tl.abs(tl.load(channel_in, mask=is_row, other=0.0)) < float("inf")
        channel_in += channel_stride
    channel_in = vectors + row * row_stride
    channel_out = columns_out + row
    for channel in range(dimension):
        value = tl.load(channel_in, mask=is_finite, other=float("inf")).to(tl.float64)
        tl.store(channel_out, value, mask=is_row)
        if measured:
            tl.atomic_max(highest + channel, tl.max(tl.where(is_finite, value, float("-inf")), axis=0))
            tl.atomic_max(highest + dimension + channel, tl.max(tl.where(is_finite, -value, float("-inf")), axis=0))
            tl.atomic_add(mean + channel, tl.sum(tl.where(is_finite, value / num_rows, 0.0), axis=0))
        channel_in += channel_stride
        channel_out += num_rows
    if measured:
        tl.atomic_max(highest + 2 * dimension, tl.max(tl.where(is_finite, row, 0), axis=0).to(tl.float64))


@triton.jit
def _frame_kernel(  # type: ignore[no-untyped-def]
    highest,  # (2 d + 1,) of the codes
    mean,  # (d,)
    frame_out,  # (CENTER + d,)
    dimension,
    root,  # of d
):
    zero = tl.full((1,), 0.0, tl.float64)
    place = tl.arange(0, 1)
    extent, middle = zero, zero
    for channel in range(dimension):
        high = tl.load(highest + channel + place)
        low = -tl.load(highest + dimension + channel + place)
        # where no code is finite, these are infinite the other way round
        extent = tl.maximum(extent, tl.maximum(high, -low))
        middle = tl.maximum(middle, tl.abs(tl.load(mean + channel + place)))
    first = _power_of_two(extent)
    spread = zero
    for channel in range(dimension):
        center = tl.load(mean + channel + place) * first
        high = tl.load(highest + channel + place) * first
        low = -tl.load(highest + dimension + channel + place) * first
        spread = tl.maximum(spread, tl.maximum(high - center, center - low))
        tl.store(frame_out + CENTER + channel + place, center)
    second = _power_of_two(spread * root)
    tl.store(frame_out + FIRST + place, first)
    tl.store(frame_out + SECOND + place, second)
    tl.store(frame_out + EXTENT + place, extent)
    tl.store(frame_out + OFFSET + place, (extent + middle) * first * second * root)
    tl.store(frame_out + RADIUS + place, zero)


@triton.jit
def _shifted(value, frame, channel):  # type: ignore[no-untyped-def]
    return (value * tl.load(frame + FIRST) - tl.load(frame + CENTER + channel)) * tl.load(frame + SECOND)


@triton.jit
def _split_codes_kernel(  # type: ignore[no-untyped-def]
    columns,  # (d, V) float64
    highest,  # (2 d + 1,)
    frame,  # (CENTER + d,); its radius is raised
    matrix_out,  # (V', K') float16
    num_codes,
    dimension,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    lanes: tl.constexpr,
    codes_per_block: tl.constexpr,
    rows_per_program: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * rows_per_program + tl.arange(0, rows_per_program)
    # of a block of products, a thread has columns 2 lanes j + 2 t and 2 lanes j + 2 t + 1 for all j, with t its own
    place = row % codes_per_block
    code = place // (2 * lanes) * 2 + place // 2 % lanes * (codes_per_block // lanes) + place % 2
    code = tl.minimum(row - place + code, num_codes - 1)
    is_finite = tl.load(columns + code) < float("inf")
    finite_one = tl.load(highest + 2 * dimension).to(tl.int64)
    code = tl.where(is_finite, code, finite_one)  # where none is, the radius gets infinite and all is in doubt

    square = tl.zeros((rows_per_program,), tl.float64)
    channel_in = columns + code
    for channel in range(dimension):
        value = _shifted(tl.load(channel_in), frame, channel)
        square += value * value
        channel_in += num_codes
    tl.atomic_max(frame + RADIUS, tl.sqrt(tl.max(square, axis=0)))

    for part in range(chunks):
        column = part * chunk + tl.arange(0, chunk)
        channels = (column % dimension).to(tl.int64)[None, :]
        value = _shifted(tl.load(columns + channels * num_codes + code[:, None]), frame, channels)
        value = tl.where((column < 3 * dimension)[None, :], value, square[:, None] / -2)
        high = value.to(tl.float16)
        low = (value - high.to(tl.float64)).to(tl.float16)
        # high, low, high of the channels, high and low of the bias
        is_low = (column // dimension == 1) | (column == 3 * dimension + 1)
        number = tl.where(is_low[None, :], low, high)
        number = tl.where((column < 3 * dimension + 2)[None, :], number, 0.0)
        tl.store(matrix_out + row[:, None] * (chunk * chunks) + column[None, :], number)


@triton.jit
def _split_points_kernel(  # type: ignore[no-untyped-def]
    columns,  # (d, n) float64
    frame,  # (CENTER + d,)
    split_out,  # (n, K') float16
    margin_out,  # (n,) float64
    num_points,
    dimension,
    root,  # of d
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    rows_per_program: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * rows_per_program + tl.arange(0, rows_per_program)
    is_point = row < num_points
    square = tl.zeros((rows_per_program,), tl.float64)
    largest = square
    channel_in = columns + row
    for channel in range(dimension):
        value = tl.load(channel_in, mask=is_point, other=0.0)
        largest = tl.maximum(largest, tl.abs(value))
        shifted = _shifted(value, frame, channel)
        square += shifted * shifted
        channel_in += num_points
    norm = tl.sqrt(square)
    near = (norm < FAR) & (largest + tl.load(frame + EXTENT) < LARGE)
    norm = tl.where(near, norm, 0.0)
    beta = tl.minimum(_power_of_two(norm), 1.0)

    # rounding of the float64 search at these magnitudes, and its underflow
    magnitude = norm + tl.load(frame + OFFSET) + 3.0
    underflow = tl.load(frame + FIRST) * tl.load(frame + SECOND) * SMALL
    slack = (dimension + 8) * 4.0 * ROUNDING * magnitude * magnitude + dimension * underflow * underflow
    norm *= beta
    radius = tl.load(frame + RADIUS)
    error = (9 * dimension + 13) * 1.01 * 2.0**-23 * (norm + beta * radius / 2) * radius
    error += 1.1 * FLOAT16_ROUNDING * (root * (norm + radius) + 1.0)
    margin = tl.where(near, 2 * (error + beta * slack), float("inf"))
    margin = tl.where(largest < float("inf"), margin, float("-inf"))
    tl.store(margin_out + row, margin, mask=is_point)

    for part in range(chunks):
        column = part * chunk + tl.arange(0, chunk)
        channels = (column % dimension).to(tl.int64)[None, :]
        value = tl.load(columns + channels * num_points + row[:, None], mask=is_point[:, None], other=0.0)
        value = tl.where(near[:, None], _shifted(value, frame, channels) * beta[:, None], 0.0)
        high = value.to(tl.float16)
        low = (value - high.to(tl.float64)).to(tl.float16)
        # high, high, low of the channels, twice beta
        number = tl.where((column // dimension == 2)[None, :], low, high)
        number = tl.where((column < 3 * dimension)[None, :], number, beta[:, None].to(tl.float16))
        number = tl.where((column < 3 * dimension + 2)[None, :], number, 0.0)
        tl.store(split_out + row[:, None] * (chunk * chunks) + column[None, :], number, mask=is_point[:, None])


def to_columns(vectors: Tensor, measures: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """(n, d), of any floating type → (d, n) float64, infinite where a channel of the vector is not finite.

    Args:
        measures: of the vectors that are finite: (2 d + 1,) float64, raised to the highest of c and of −c in each
            channel, and to the last index; and (d,) float64, to which the mean is added.
    """
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    num_rows, dimension = vectors.shape
    columns = torch.empty(dimension, num_rows, dtype=torch.float64, device=vectors.device)
    with torch.cuda.device_of(vectors):
        _columns_kernel[(triton.cdiv(num_rows, ROWS_TO_COLUMNS),)](
            *(vectors, columns, *(measures or (columns, columns)), num_rows, dimension, *vectors.stride()),
            measured=measures is not None,
            rows_per_program=ROWS_TO_COLUMNS,
            enable_fp_fusion=True,
        )
    return columns


class SplitCodes:
    """A codebook, ready for products with points.

    Codes are shifted to their mean, so that r is small where most have gathered, and scaled by a power of two to
    r ≤ 1. Those that are not finite are copies of one that is. Nothing here waits for the device.

    Args:
        codes: (V, d), of any floating type.
        codes_per_block: the matrix has a multiple of so many rows.
        lanes: rows of a block are in such an order that codes of a lane follow each other.

    Attributes:
        columns: (d, V) float64, infinite where a code is not finite.
        matrix: (V', K') float16; rows beyond V are copies of the last, columns beyond K zeros.
        chunk: what K' is a multiple of, a power of two, at least 16.
        frame: (5 + d,) float64: how codes and points are shifted and scaled.
    """

    def __init__(self, codes: Tensor, codes_per_block: int, lanes: int) -> None:
        num_codes, dimension = codes.shape
        new = codes.new_empty
        highest = torch.full((2 * dimension + 1,), -torch.inf, dtype=torch.float64, device=codes.device)
        mean = torch.zeros(dimension, dtype=torch.float64, device=codes.device)
        self.columns = to_columns(codes, (highest, mean))
        self.frame = new(CENTER.value + dimension, dtype=torch.float64)
        self.chunk = _chunk(3 * dimension + 2)
        self._chunks = triton.cdiv(3 * dimension + 2, self.chunk)
        rows = triton.cdiv(num_codes, codes_per_block) * codes_per_block
        self.matrix = new(rows, self.chunk * self._chunks, dtype=torch.float16)
        with torch.cuda.device_of(codes):
            _frame_kernel[(1,)](
                *(highest, mean, self.frame, dimension, dimension**0.5), num_warps=1, enable_fp_fusion=True
            )
            _split_codes_kernel[(rows // ROWS,)](
                *(self.columns, highest, self.frame, self.matrix, num_codes, dimension),
                chunk=self.chunk,
                chunks=self._chunks,
                lanes=lanes,
                codes_per_block=codes_per_block,
                rows_per_program=ROWS,
                enable_fp_fusion=True,
            )

    def split(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points, and how much higher the best score must be than the next for the best to be the nearest.

        Args:
            points: (d, n) float64, infinite where they are not finite.

        Returns:
            (n, K') float16, and (n,) float64: infinite where a point lies too far out to be told anything of, -inf
            where it is not finite.
        """
        dimension, num_points = points.shape
        split = points.new_empty(num_points, self.matrix.shape[1], dtype=torch.float16)
        margin = points.new_empty(num_points)
        with torch.cuda.device_of(points):
            _split_points_kernel[(triton.cdiv(num_points, ROWS),)](
                *(points, self.frame, split, margin, num_points, dimension, dimension**0.5),
                chunk=self.chunk,
                chunks=self._chunks,
                rows_per_program=ROWS,
                enable_fp_fusion=True,
            )
        return split, margin


def _chunk(count: int) -> int:
    """Up to 128 numbers are multiplied at once, more in steps of 32."""
    return next((size for size in (16, 32, 64, 128) if count <= size), 32)
