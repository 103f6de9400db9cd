"""The CUDA kernels of the lookup: a cheap score with a proven bound for all points, float64 for those in doubt.

The filter takes a block of points through a range of the codebook, and keeps of each point the best code it has seen,
its score and the runner-up's; no n × V matrix is ever stored. From d = 4 on the score is a product of TF32 matrices
on tensor cores (`tf32.py`), below it is the squared distance by float32 differences, whose error is relative to the
distance itself: where codes lie dense, few points are left in doubt. A point is sure where the runner-up is behind by
more than the bound. The others are gathered and searched in float64, as `brute` does.

Nothing here waits for the device: how many points are in doubt only the kernels know.
"""

from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsq_lightning.errors import InputError
from gsq_lightning.quantizers.lookup.arithmetic import FLOAT32_ROUNDING
from gsq_lightning.quantizers.lookup.tf32 import SplitCodes

TENSOR_CORES_FROM = 4  # channels
POINTS_PER_PROGRAM = {torch.float32: 64, torch.float64: 32}
CODES_PER_STEP = 64
PROGRAMS_WANTED = 1024  # several for each of the 100 to 150 multiprocessors of a large GPU


@triton.jit
def _score_kernel(  # type: ignore[no-untyped-def]
    points,  # (n, chunks · chunk) TF32 numbers in float32
    codes,  # (V, chunks · chunk)
    best_out,  # (splits, n): highest score in this split
    second_out,  # (splits, n): of the runner-up
    index_out,  # (splits, n)
    num_points,
    codebook_size,
    codes_per_split,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    rows_per_program: tl.constexpr,
    codes_per_step: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * rows_per_program + tl.arange(0, rows_per_program)
    first = tl.program_id(1) * codes_per_split
    last = tl.minimum(first + codes_per_split, codebook_size)
    inner = tl.arange(0, chunk)
    width: tl.constexpr = chunk * chunks
    point_rows = points + row[:, None] * width + inner[None, :]
    is_point = (row < num_points)[:, None]
    if chunks == 1:
        x = tl.load(point_rows, mask=is_point, other=0.0)
    best = tl.full((rows_per_program, codes_per_step), float("-inf"), tl.float32)
    second = tl.full((rows_per_program, codes_per_step), float("-inf"), tl.float32)
    index = tl.zeros((rows_per_program, codes_per_step), tl.int32) + first
    for start in range(first, last, codes_per_step):
        column = start + tl.arange(0, codes_per_step)
        code_columns = codes + column.to(tl.int64)[None, :] * width + inner[:, None]
        is_code = (column < last)[None, :]
        score = tl.zeros((rows_per_program, codes_per_step), tl.float32)
        for part in tl.static_range(chunks):
            if chunks > 1:
                x = tl.load(point_rows + part * chunk, mask=is_point, other=0.0)
            c = tl.load(code_columns + part * chunk, mask=is_code, other=0.0)
            score = tl.dot(x, c, acc=score, input_precision="tf32")  # exact inputs: nothing is rounded to TF32 here
        score = tl.where(is_code, score, float("-inf"))
        higher = score > best
        second = tl.where(higher, best, tl.maximum(second, score))
        index = tl.where(higher, column[None, :], index)
        best = tl.where(higher, score, best)

    highest = tl.max(best, axis=1)
    winner = tl.min(tl.where(best == highest[:, None], index, 2147483647), axis=1)
    runner_up = tl.max(tl.where(index == winner[:, None], second, best), axis=1)
    place = tl.program_id(1).to(tl.int64) * num_points + row
    tl.store(best_out + place, highest, mask=row < num_points)
    tl.store(second_out + place, runner_up, mask=row < num_points)
    tl.store(index_out + place, winner, mask=row < num_points)


@triton.jit
def _distance_kernel(  # type: ignore[no-untyped-def]
    points,  # (d, n)
    codes,  # (d, V)
    rows,  # (n,): which points to search, the first `count` of them
    count,  # (1,)
    best_out,  # (splits, n): squared distance of the nearest code in this split, in the order of `rows`
    second_out,  # (splits, n): of the runner-up
    index_out,  # (splits, n)
    num_points,
    codebook_size,
    codes_per_split,
    dimension: tl.constexpr,
    rows_per_program: tl.constexpr,
    codes_per_step: tl.constexpr,
):
    wanted = tl.load(count)
    start_of_block = tl.program_id(0).to(tl.int64) * rows_per_program
    if start_of_block >= wanted:
        return
    position = start_of_block + tl.arange(0, rows_per_program)
    row = tl.load(rows + position, mask=position < wanted, other=0)
    first = tl.program_id(1) * codes_per_split
    last = tl.minimum(first + codes_per_split, codebook_size)
    dtype = points.dtype.element_ty
    best = tl.full((rows_per_program, codes_per_step), float("inf"), dtype)
    second = tl.full((rows_per_program, codes_per_step), float("inf"), dtype)
    index = tl.zeros((rows_per_program, codes_per_step), tl.int32) + first
    for start in range(first, last, codes_per_step):
        column = start + tl.arange(0, codes_per_step)
        total = tl.zeros((rows_per_program, codes_per_step), dtype)
        point_channel, code_channel = points, codes
        for _ in range(dimension):
            x = tl.load(point_channel + row)
            c = tl.load(code_channel + column, mask=column < last, other=0.0)
            difference = x[:, None] - c[None, :]
            total += difference * difference
            point_channel += num_points
            code_channel += codebook_size
        total = tl.where((column < last)[None, :], total, float("inf"))
        closer = total < best  # strictly: the lowest index of a lane stays
        second = tl.where(closer, best, tl.minimum(second, total))
        index = tl.where(closer, column[None, :], index)
        best = tl.where(closer, total, best)

    nearest = tl.min(best, axis=1)
    winner = tl.min(tl.where(best == nearest[:, None], index, 2147483647), axis=1)
    runner_up = tl.min(tl.where(index == winner[:, None], second, best), axis=1)
    place = tl.program_id(1).to(tl.int64) * num_points + position
    tl.store(best_out + place, nearest, mask=position < wanted)
    tl.store(second_out + place, runner_up, mask=position < wanted)
    tl.store(index_out + place, winner, mask=position < wanted)


class Filter(Protocol):
    """Narrows a search: of each point a code, and whether that is sure to be the nearest."""

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d) float64, finite → index (n,) int64, sure (n,) bool."""


class FusedSearch:
    """`CodeIndex`'s `triton` method: a filter for all points, float64 for those it leaves in doubt.

    Args:
        codes: (V, d) float64; those that are not finite are chosen only where all are.

    Raises:
        InputError: on a device without Triton's kernels.
    """

    def __init__(self, codes: Tensor) -> None:
        if codes.device.type != "cuda" and not triton.knobs.runtime.interpret:
            raise InputError(f"method 'triton' needs tensors on a CUDA device; given {codes.device.type}")
        finite = codes.isfinite().all(dim=1, keepdim=True)
        self._columns = torch.where(finite, codes, torch.inf).t().contiguous()
        kind = TensorCoreFilter if codes.shape[1] >= TENSOR_CORES_FROM else DifferenceFilter
        self._filter: Filter = kind(codes)

    def query(self, points: Tensor) -> Tensor:
        index, sure = self._filter(points)
        return torch.where(sure, index, self.settle(points, ~sure))

    def settle(self, points: Tensor, doubtful: Tensor) -> Tensor:
        """The float64 search, of some points alone.

        Args:
            points: (n, d) float64, finite.
            doubtful: (n,) bool, which.

        Returns:
            (n,) int64, right where a point is doubtful.
        """
        position = doubtful.cumsum(dim=0) - 1  # among those in doubt
        count = position[-1:] + 1
        numbers = torch.arange(len(points), device=points.device)
        # those that are sure go to a place of their own behind the end
        rows = numbers.new_zeros(len(points) + 1).scatter_(0, torch.where(doubtful, position, len(points)), numbers)
        found = _nearest(points.t().contiguous(), self._columns, rows, count)[2]
        return found.gather(0, position.clamp(min=0))


class TensorCoreFilter:
    """By scores of TF32 products."""

    def __init__(self, codes: Tensor) -> None:
        self._codes = SplitCodes(codes)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        split, margin = self._codes.split(points)
        best, second, index = _highest(split, self._codes.matrix, self._codes.chunk)
        return index, best.double() - second.double() > margin


class DifferenceFilter:
    """By float32 distances."""

    def __init__(self, codes: Tensor) -> None:
        finite = codes.isfinite().all(dim=1, keepdim=True)
        self._columns = torch.where(finite, codes, torch.inf).t().float().contiguous()
        self._extent = torch.linalg.vector_norm(torch.where(finite, codes, 0.0), dim=1).amax()

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(points), device=points.device)
        count = torch.full((1,), len(points), device=points.device)
        best, second, index = _nearest(points.t().float().contiguous(), self._columns, rows, count)
        # A float32 distance errs by u (|x| + |c|) where the channels are rounded, and by a factor after that.
        margin = FLOAT32_ROUNDING * 1.01 * (torch.linalg.vector_norm(points, dim=1) + self._extent) + 1e-18
        relative = (len(self._columns) + 8) * FLOAT32_ROUNDING
        farthest = best.double().sqrt() * (1 + relative) + margin
        return index, second.double().sqrt() * (1 - relative) - margin > farthest


def _highest(points: Tensor, codes: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Highest score of each point and the runner-up's, (n,) float32, and the index of the highest, (n,) int64."""
    rows = POINTS_PER_PROGRAM[torch.float32]
    best, second, index, grid, codes_per_split = _outputs(points, len(points), len(codes), rows)
    with torch.cuda.device_of(points):
        _score_kernel[grid](
            *(points, codes, best, second, index, len(points), len(codes), codes_per_split),
            chunk=chunk,
            chunks=points.shape[1] // chunk,
            rows_per_program=rows,
            codes_per_step=CODES_PER_STEP,
            num_warps=4,
            enable_fp_fusion=True,  # outside of the product there are only comparisons
        )
    highest = best.amax(dim=0)
    winner = torch.where(best == highest, index, len(codes)).amin(dim=0)
    return highest, torch.cat([best, second]).topk(2, dim=0).values[1], winner.long()


def _nearest(points: Tensor, codes: Tensor, rows: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distance of the nearest code and of the runner-up, and the nearest's index, of the first `count` rows.

    Args:
        points: (d, n).
        codes: (d, V).
        rows: at least (n,), which points.
        count: (1,), how many of them.

    Returns:
        (n,) each, in the order of `rows`.
    """
    dimension, num_points = points.shape
    codebook_size, block = codes.shape[1], POINTS_PER_PROGRAM[points.dtype]
    best, second, index, grid, codes_per_split = _outputs(points, num_points, codebook_size, block)
    with torch.cuda.device_of(points):
        _distance_kernel[grid](
            *(points, codes, rows, count, best, second, index, num_points, codebook_size, codes_per_split),
            dimension=dimension,
            rows_per_program=block,
            codes_per_step=CODES_PER_STEP,
            num_warps=4,
            # Unfused, the float64 pass rounds exactly as squared_distance does.
            enable_fp_fusion=points.dtype == torch.float32,
        )
    nearest = best.amin(dim=0)
    winner = torch.where(best == nearest, index, codebook_size).amin(dim=0)
    runner_up = torch.cat([best, second]).topk(2, dim=0, largest=False).values[1]
    return nearest, runner_up, winner.long()


def _outputs(
    points: Tensor, num_points: int, codebook_size: int, block: int
) -> tuple[Tensor, Tensor, Tensor, tuple[int, int], int]:
    """What a kernel writes to, its grid, and how many codes each split of the codebook has."""
    blocks = triton.cdiv(num_points, block)
    steps = triton.cdiv(codebook_size, CODES_PER_STEP)
    # Few points, many codes: the codebook is split between programs, so that the whole GPU has work. In float64 few
    # points are expected, of however many.
    wanted = PROGRAMS_WANTED if points.dtype == torch.float32 else 64 * PROGRAMS_WANTED
    splits = max(1, min(steps, 64, wanted // blocks))
    codes_per_split = triton.cdiv(steps, splits) * CODES_PER_STEP
    splits = triton.cdiv(codebook_size, codes_per_split)
    best = points.new_empty(splits, num_points)
    index = torch.empty(splits, num_points, dtype=torch.int32, device=points.device)
    return best, torch.empty_like(best), index, (blocks, splits), codes_per_split
