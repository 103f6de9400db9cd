"""The CUDA kernel of the lookup: nearest code with a running minimum, so that no n × V matrix is ever stored.

One program takes a block of points through a range of the codebook; every lane keeps the nearest code it has
seen, its distance and the runner-up's. Differences, never ‖x‖² + ‖c‖² − 2x·c, on the ordinary float32 units:
no TF32. A second pass in float64 takes the points whose runner-up is so near that float32 could have them the
wrong way round (one in fifty on the circle with 262144 codes, one in many thousands from d = 8 on).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsq_lightning.errors import InputError
from gsq_lightning.quantizers.lookup.arithmetic import FLOAT32_ROUNDING

POINTS_PER_PROGRAM = {torch.float32: 64, torch.float64: 32}
CODES_PER_STEP = 64
PROGRAMS_WANTED = 1024  # several for each of the 100 to 150 multiprocessors of a large GPU


@triton.jit
def _nearest_kernel(  # type: ignore[no-untyped-def]
    points,  # (d, n)
    codes,  # (d, V)
    best_out,  # (splits, n): squared distance of the nearest code in this split
    second_out,  # (splits, n): of the runner-up
    index_out,  # (splits, n)
    num_points,
    codebook_size,
    codes_per_split,
    dimension: tl.constexpr,
    rows_per_program: tl.constexpr,
    codes_per_step: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * rows_per_program + tl.arange(0, rows_per_program)
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
            x = tl.load(point_channel + row, mask=row < num_points, other=0.0)
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
    place = tl.program_id(1).to(tl.int64) * num_points + row
    tl.store(best_out + place, nearest, mask=row < num_points)
    tl.store(second_out + place, runner_up, mask=row < num_points)
    tl.store(index_out + place, winner, mask=row < num_points)


class FusedSearch:
    """`CodeIndex`'s `triton` method: float32 for all points, float64 for those it leaves in doubt."""

    def __init__(self, codes: Tensor) -> None:
        if codes.device.type != "cuda" and not triton.knobs.runtime.interpret:
            raise InputError(f"method 'triton' needs tensors on a CUDA device; given {codes.device.type}")
        self._columns = codes.t().contiguous()
        self._columns32 = self._columns.float()
        self._extent = torch.linalg.vector_norm(codes, dim=1).amax()

    def query(self, points: Tensor) -> Tensor:
        columns = points.t().contiguous()
        best, second, index = _run(columns.float(), self._columns32)
        # A float32 distance errs by u (|x| + |c|) where the channels are rounded, and by a factor after that.
        norm = torch.linalg.vector_norm(points, dim=1)
        margin = FLOAT32_ROUNDING * 1.01 * (norm + self._extent) + 1e-18
        relative = (len(columns) + 8) * FLOAT32_ROUNDING
        farthest = best.double().sqrt() * (1 + relative) + margin
        sure = second.double().sqrt() * (1 - relative) - margin > farthest
        if not sure.all():
            index[~sure] = _run(columns[:, ~sure].contiguous(), self._columns)[2]
        return index


def _run(points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distance of the nearest code and of the runner-up, and the nearest's index: (n,) each."""
    dimension, num_points = points.shape
    codebook_size = codes.shape[1]
    rows = POINTS_PER_PROGRAM[points.dtype]
    blocks = triton.cdiv(num_points, rows)
    steps = triton.cdiv(codebook_size, CODES_PER_STEP)
    # Few points, many codes: the codebook is split between programs, so that the whole GPU has work.
    splits = max(1, min(steps, 64, PROGRAMS_WANTED // blocks))
    codes_per_split = triton.cdiv(steps, splits) * CODES_PER_STEP
    splits = triton.cdiv(codebook_size, codes_per_split)
    best = points.new_empty(splits, num_points)
    second = torch.empty_like(best)
    index = torch.empty(splits, num_points, dtype=torch.int32, device=points.device)
    with torch.cuda.device_of(points):
        _nearest_kernel[(blocks, splits)](
            points,
            codes,
            best,
            second,
            index,
            num_points,
            codebook_size,
            codes_per_split,
            dimension=dimension,
            rows_per_program=rows,
            codes_per_step=CODES_PER_STEP,
            num_warps=4,
            # Unfused, the float64 pass rounds exactly as squared_distance does.
            enable_fp_fusion=points.dtype == torch.float32,
        )
    nearest = best.amin(dim=0)
    winner = torch.where(best == nearest, index, codebook_size).amin(dim=0)
    runner_up = torch.cat([best, second]).topk(2, dim=0, largest=False).values[1]
    return nearest, runner_up, winner.long()
