"""The CUDA kernels of the lookup: a cheap score with a proven bound for all codes, float64 for the few that remain.

The filter takes a block of points through a range of the codebook, tile by tile, and keeps of each point the two tiles
with the highest scores, these scores, and the highest of all other tiles; no n × V matrix is ever stored, and a code
costs hardly more than one comparison. From d = 4 on the score is a product of float16 matrices on tensor cores
(`scores.py`), below it is the squared distance by float32 differences, whose error is relative to the distance itself:
where codes lie dense, few points are left in doubt. The nearest code is in the first tile, or in the first two, where
all others are behind by more than the bound: these are searched in float64. Points with more tiles to search are
gathered and searched in float64 over all codes, as `brute` does.

Nothing here waits for the device: how many points are in doubt only the kernels know.
"""

from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsq_lightning.errors import InputError
from gsq_lightning.quantizers.lookup.arithmetic import FLOAT32_ROUNDING
from gsq_lightning.quantizers.lookup.devices import TENSOR_CORES_FROM
from gsq_lightning.quantizers.lookup.scores import SplitCodes, to_columns

CODES_PER_BLOCK = 128  # that a filter compares at once
LANES = 4  # of such a block: tiles of codes whose scores one thread has
POINTS_PER_PROGRAM = 128  # of the filter on tensor cores
POINTS_PER_DIFFERENCES = 128  # of the other: one to a thread
POINTS_PER_MERGE = 128  # of the kernels that gather
POINTS_PER_SEARCH = 16  # of a program that searches in float64
CODES_PER_STEP = 64  # likewise
SPLITS_OF_SEARCH = 32  # of the codebook, at most
RESULTS_OF_SEARCH = 2**22  # of all points and splits: 48 MiB
PROGRAMS_WANTED = 1024  # several for each of the 100 to 150 multiprocessors of a large GPU


@triton.jit
def _keep(score, start, first, second, third, tile, next_tile):  # type: ignore[no-untyped-def]
    """The highest scores of tiles, and the first two tiles, after one more, whose highest scores are given."""
    third = tl.maximum(third, tl.minimum(second, score))
    next_tile = tl.where(score > first, tile, tl.where(score > second, start, next_tile))
    second = tl.maximum(second, tl.minimum(first, score))
    tile = tl.where(score > first, start, tile)
    return tl.maximum(first, score), second, third, tile, next_tile


@triton.jit
def _store(  # type: ignore[no-untyped-def]
    scores_out, tiles_out, first, second, third, tile, next_tile, place, rank, mask
):
    tl.store(scores_out + place, first, mask=mask)
    tl.store(scores_out + place + rank, second, mask=mask)
    tl.store(scores_out + place + 2 * rank, third, mask=mask)
    tl.store(tiles_out + place, tile, mask=mask)
    tl.store(tiles_out + place + rank, next_tile, mask=mask)


@triton.jit
def _squared_distance(  # type: ignore[no-untyped-def]
    points, codes, row, column, end, num_points, codebook_size, dimension
):
    """Of points (rows,) from codes (1 or rows, columns), as `squared_distance` rounds it where nothing is fused."""
    total = tl.zeros((row.shape[0], column.shape[1]), tl.float64)
    point_channel, code_channel = points, codes
    for _ in range(dimension):
        x = tl.load(point_channel + row, mask=row < num_points, other=0.0)
        c = tl.load(code_channel + column, mask=column < end, other=float("inf"))
        difference = x[:, None] - c
        total += difference * difference
        point_channel += num_points
        code_channel += codebook_size
    return total


@triton.jit
def _score_kernel(  # type: ignore[no-untyped-def]
    points,  # (n, chunks · chunk) float16
    codes,  # (V', chunks · chunk) float16, V' a multiple of codes_per_block, in the order of lanes
    scores_out,  # (3, splits · lanes, n): the highest scores of tiles in this split
    tiles_out,  # (2, splits, n): the first code of the first two
    num_points,
    num_codes,
    codes_per_split,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    rows_per_program: tl.constexpr,
    codes_per_block: tl.constexpr,
    lanes: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * rows_per_program + tl.arange(0, rows_per_program)
    begin = tl.program_id(1) * codes_per_split
    end = tl.minimum(begin + codes_per_split, num_codes)
    inner = tl.arange(0, chunk)
    width: tl.constexpr = chunk * chunks
    point_rows = points + row[:, None] * width + inner[None, :]
    is_point = (row < num_points)[:, None]
    if chunks == 1:
        x = tl.load(point_rows, mask=is_point, other=0.0)
    lane = tl.arange(0, lanes)[None, :]
    first = tl.full((rows_per_program, lanes), float("-inf"), tl.float32)
    second, third = first, first
    tile = tl.zeros((rows_per_program, lanes), tl.int32) + begin
    next_tile = tile
    code_columns = codes + (begin.to(tl.int64) + tl.arange(0, codes_per_block))[None, :] * width + inner[:, None]
    for start in range(begin, end, codes_per_block):
        score = tl.zeros((rows_per_program, codes_per_block), tl.float32)
        if chunks == 1:
            score = tl.dot(x, tl.load(code_columns), acc=score)
        else:
            for part in range(chunks):  # a loop, so that shared memory holds few of them at a time
                x = tl.load(point_rows + part * chunk, mask=is_point, other=0.0)
                score = tl.dot(x, tl.load(code_columns + part * chunk), acc=score)
        code_columns += codes_per_block * width
        # by lanes, whose scores each thread has in registers: no two threads have to meet
        pairs = tl.reshape(score, (rows_per_program, codes_per_block // (2 * lanes), lanes, 2))
        highest = tl.max(tl.max(pairs, axis=3), axis=1)
        of_lane = start + lane * (codes_per_block // lanes)
        first, second, third, tile, next_tile = _keep(highest, of_lane, first, second, third, tile, next_tile)
    place = (tl.program_id(1).to(tl.int64) * lanes + lane) * num_points + row[:, None]
    rank = tl.num_programs(1).to(tl.int64) * lanes * num_points
    _store(scores_out, tiles_out, first, second, third, tile, next_tile, place, rank, is_point)


@triton.jit
def _difference_kernel(  # type: ignore[no-untyped-def]
    points,  # (d, n) float32
    codes,  # (d, V') float32, V' a multiple of codes_per_block
    scores_out,  # (3, splits, n): the least squared distances of tiles in this split, negative
    tiles_out,  # (2, splits, n): the first code of the first two
    num_points,
    num_codes,
    codes_per_split,
    dimension: tl.constexpr,
    rows_per_program: tl.constexpr,
    codes_per_block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * rows_per_program + tl.arange(0, rows_per_program)
    begin = tl.program_id(1) * codes_per_split
    end = tl.minimum(begin + codes_per_split, num_codes)
    first = tl.full((rows_per_program,), float("-inf"), tl.float32)
    second, third = first, first
    tile = tl.zeros((rows_per_program,), tl.int32) + begin
    next_tile = tile
    for start in range(begin, end, codes_per_block):
        # points along the threads, so that each compares codes of its own and no two have to meet
        total = tl.zeros((codes_per_block, rows_per_program), tl.float32)
        for channel in tl.static_range(dimension):
            x = tl.load(points + channel * num_points + row, mask=row < num_points, other=0.0)
            c = tl.load(codes + channel * num_codes + start + tl.arange(0, codes_per_block))
            difference = x[None, :] - c[:, None]
            total += difference * difference
        first, second, third, tile, next_tile = _keep(
            -tl.min(total, axis=0), start, first, second, third, tile, next_tile
        )
    place = tl.program_id(1).to(tl.int64) * num_points + row
    rank = tl.num_programs(1).to(tl.int64) * num_points
    _store(scores_out, tiles_out, first, second, third, tile, next_tile, place, rank, row < num_points)


@triton.jit
def _is_behind(score, first, margin, relative: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether a tile with this highest score, or negative least square, cannot have the nearest code."""
    if relative == 0:
        return first.to(tl.float64) - score.to(tl.float64) > margin
    nearest = tl.sqrt(-first.to(tl.float64)) * (1 + relative) + margin
    return tl.sqrt(-tl.maximum(score, -3.4028234663852886e38).to(tl.float64)) * (1 - relative) - margin > nearest


@triton.jit
def _merge_kernel(  # type: ignore[no-untyped-def]
    scores,  # (3, splits, n)
    tiles,  # (2, splits, n)
    margins,  # (n,) float64, -inf for points that are not finite
    tiles_out,  # (2, n): over all splits
    candidates_out,  # (n,): how many tiles may have the nearest code, 3 for more than two; 0 for points not finite
    num_points,
    splits,
    relative: tl.constexpr,
    rows_per_program: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * rows_per_program + tl.arange(0, rows_per_program)
    mask = row < num_points
    rank = tl.full((rows_per_program,), splits, tl.int64) * num_points
    first = tl.full((rows_per_program,), float("-inf"), tl.float32)
    second, third = first, first
    tile = tl.zeros((rows_per_program,), tl.int32)
    next_tile = tile
    place = row
    for _ in range(splits):
        for which in tl.static_range(2):
            score = tl.load(scores + place + which * rank, mask=mask, other=float("-inf"))
            start = tl.load(tiles + place + which * rank, mask=mask, other=0)
            first, second, third, tile, next_tile = _keep(score, start, first, second, third, tile, next_tile)
        # of the others in the split, none is above the two
        third = tl.maximum(third, tl.load(scores + place + 2 * rank, mask=mask, other=float("-inf")))
        place += num_points
    margin = tl.load(margins + row, mask=mask, other=0.0)
    candidates = 1 + (1 - _is_behind(second, first, margin, relative).to(tl.int32))
    candidates += 1 - _is_behind(third, first, margin, relative).to(tl.int32)
    tl.store(candidates_out + row, tl.where(margin == float("-inf"), 0, candidates), mask=mask)
    tl.store(tiles_out + row, tile, mask=mask)
    tl.store(tiles_out + num_points + row, next_tile, mask=mask)


@triton.jit
def _tile_kernel(  # type: ignore[no-untyped-def]
    points,  # (d, n) float64
    codes,  # (d, V) float64
    tiles,  # (2, n): the first code of each tile to search
    candidates,  # (n,): how many of them are to be searched; with 3 of them the result means nothing, with 0 it is 0
    index_out,  # (n,)
    num_points,
    codebook_size,
    dimension,
    rows_per_program: tl.constexpr,
    codes_per_tile: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * rows_per_program + tl.arange(0, rows_per_program)
    wanted = tl.load(candidates + row, mask=row < num_points, other=1)
    nearest = tl.full((rows_per_program,), float("inf"), tl.float64)
    winner = tl.full((rows_per_program,), 2147483647, tl.int32)
    for _ in range(1 + tl.max((wanted == 2).to(tl.int32), axis=0)):
        tile = tl.load(tiles + row, mask=row < num_points, other=0)
        column = tile[:, None] + tl.arange(0, codes_per_tile)[None, :]
        total = _squared_distance(points, codes, row, column, codebook_size, num_points, codebook_size, dimension)
        least = tl.min(total, axis=1)
        index = tl.min(tl.where(total == least[:, None], column, 2147483647), axis=1)
        closer = (least < nearest) | ((least == nearest) & (index < winner))
        winner = tl.where(closer, index, winner)
        nearest = tl.minimum(nearest, least)
        tiles += num_points
    tl.store(index_out + row, tl.where(wanted == 0, 0, winner), mask=row < num_points)


@triton.jit
def _gather_kernel(  # type: ignore[no-untyped-def]
    doubtful,  # (n,) bool
    rows_out,  # (n,): the first `count` are filled, in any order
    count,  # (1,): raised from 0
    num_points,
    rows_per_program: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * rows_per_program + tl.arange(0, rows_per_program)
    wanted = tl.load(doubtful + row, mask=row < num_points, other=0).to(tl.int32)
    position = tl.atomic_add(count, tl.sum(wanted, axis=0)) + tl.cumsum(wanted, axis=0) - 1
    tl.store(rows_out + position, row, mask=wanted != 0)


@triton.jit
def _search_kernel(  # type: ignore[no-untyped-def]
    points,  # (d, n) float64
    codes,  # (d, V) float64
    rows,  # (n,): which points to search, the first `count` of them
    count,  # (1,)
    best_out,  # (splits, n): squared distance of the nearest code in this split, in the order of `rows`
    index_out,  # (splits, n)
    num_points,
    codebook_size,
    codes_per_split,
    splits,
    dimension,
    rows_per_program: tl.constexpr,
    codes_per_step: tl.constexpr,
):
    wanted = tl.load(count)
    blocks = tl.cdiv(wanted, rows_per_program)
    for item in range(tl.program_id(0), blocks * splits, tl.num_programs(0)):
        split = item // blocks
        position = (item % blocks) * rows_per_program + tl.arange(0, rows_per_program)
        row = tl.load(rows + position, mask=position < wanted, other=0)
        first = split * codes_per_split
        last = tl.minimum(first + codes_per_split, codebook_size)
        best = tl.full((rows_per_program, codes_per_step), float("inf"), tl.float64)
        index = tl.zeros((rows_per_program, codes_per_step), tl.int32) + first
        for start in range(first, last, codes_per_step):
            column = (start + tl.arange(0, codes_per_step))[None, :]
            total = _squared_distance(points, codes, row, column, last, num_points, codebook_size, dimension)
            closer = total < best  # strictly: the lowest index of a lane stays
            index = tl.where(closer, column, index)
            best = tl.where(closer, total, best)

        nearest = tl.min(best, axis=1)
        winner = tl.min(tl.where(best == nearest[:, None], index, 2147483647), axis=1)
        place = tl.full((rows_per_program,), split, tl.int64) * num_points + position
        tl.store(best_out + place, nearest, mask=position < wanted)
        tl.store(index_out + place, winner, mask=position < wanted)


@triton.jit
def _settle_kernel(  # type: ignore[no-untyped-def]
    best,  # (splits, n): what the search has found
    index,  # (splits, n)
    rows,  # (n,): of which points, the first `count` of them
    count,  # (1,)
    index_out,  # (n,): changed where a point was searched
    num_points,
    splits,
    rows_per_program: tl.constexpr,
):
    wanted = tl.load(count)
    for block in range(tl.program_id(0), tl.cdiv(wanted, rows_per_program), tl.num_programs(0)):
        position = block * rows_per_program + tl.arange(0, rows_per_program)
        nearest = tl.full((rows_per_program,), float("inf"), tl.float64)
        winner = tl.zeros((rows_per_program,), tl.int32)
        for split in range(splits):  # ascending: the lowest index stays
            place = tl.full((rows_per_program,), split, tl.int64) * num_points + position
            distance = tl.load(best + place, mask=position < wanted, other=0.0)
            found = tl.load(index + place, mask=position < wanted, other=0)
            winner = tl.where(distance < nearest, found, winner)
            nearest = tl.minimum(nearest, distance)
        row = tl.load(rows + position, mask=position < wanted, other=0)
        tl.store(index_out + row, winner, mask=position < wanted)


class Filter(Protocol):
    """Narrows a search to one or two tiles of each point.

    Attributes:
        columns: (d, V) float64, the codes; infinite where one is not finite.
        codes_per_tile: how many codes a tile has.
    """

    columns: Tensor
    codes_per_tile: int

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(d, n) float64, infinite where not finite → the first codes of two tiles (2, n) int32, and how many tiles the
        nearest may be in, (n,) int32: the first, both, or 3 where others too; 0 for points that are not finite."""


class Float64Search:
    """The search in float64: of one or two tiles for each point, or of all codes for some points.

    Args:
        columns: (d, V) float64; codes that are infinite are chosen only where all are.
    """

    def __init__(self, columns: Tensor) -> None:
        self._columns = columns

    def within(self, tiles: Tensor, codes_per_tile: int, candidates: Tensor, points: Tensor) -> Tensor:
        """The nearest code of what a filter leaves for each point (d, n), (n,) int64; anything at 3 candidates."""
        dimension, num_points = points.shape
        index = torch.empty(num_points, dtype=torch.int64, device=points.device)
        with torch.cuda.device_of(points):
            _tile_kernel[(triton.cdiv(num_points, POINTS_PER_SEARCH),)](
                *(points, self._columns, tiles, candidates, index, num_points, self._columns.shape[1], dimension),
                rows_per_program=POINTS_PER_SEARCH,
                codes_per_tile=codes_per_tile,
                num_warps=4,
                enable_fp_fusion=False,  # so that it rounds exactly as squared_distance does
            )
        return index

    def everywhere(self, points: Tensor, doubtful: Tensor, index: Tensor) -> Tensor:
        """`index` (n,) int64 with the nearest of all codes put in where a point (d, n) is doubtful, (n,) bool."""
        (dimension, num_points), codebook_size = points.shape, self._columns.shape[1]
        rows = torch.empty_like(index)
        doubts = torch.zeros(1, dtype=torch.int32, device=points.device)
        # few are expected, of however many: the codebook is split, and programs take what there is
        steps = triton.cdiv(codebook_size, CODES_PER_STEP)
        splits = min(steps, SPLITS_OF_SEARCH, max(4, RESULTS_OF_SEARCH // num_points))
        codes_per_split = triton.cdiv(steps, splits) * CODES_PER_STEP
        splits = triton.cdiv(codebook_size, codes_per_split)
        best = points.new_empty(splits, num_points)
        found = torch.empty(splits, num_points, dtype=torch.int32, device=points.device)
        blocks = triton.cdiv(num_points, POINTS_PER_SEARCH)
        with torch.cuda.device_of(points):
            _gather_kernel[(triton.cdiv(num_points, POINTS_PER_MERGE),)](
                *(doubtful, rows, doubts, num_points),
                rows_per_program=POINTS_PER_MERGE,
                num_warps=4,
                enable_fp_fusion=False,
            )
            _search_kernel[(min(blocks * splits, PROGRAMS_WANTED),)](
                *(points, self._columns, rows, doubts, best, found),
                *(num_points, codebook_size, codes_per_split, splits, dimension),
                rows_per_program=POINTS_PER_SEARCH,
                codes_per_step=CODES_PER_STEP,
                num_warps=4,
                enable_fp_fusion=False,
            )
            _settle_kernel[(min(blocks, PROGRAMS_WANTED),)](
                *(best, found, rows, doubts, index, num_points, splits),
                rows_per_program=POINTS_PER_SEARCH,
                num_warps=1,
                enable_fp_fusion=False,
            )
        return index


class FusedSearch:
    """`CodeIndex`'s `triton` method: a filter for all points, float64 within a tile or two, or everywhere for the rest.

    Args:
        codes: (V, d), of any floating type; those that are not finite are chosen only where all are.

    Raises:
        InputError: on a device without Triton's kernels.
    """

    def __init__(self, codes: Tensor) -> None:
        if codes.device.type != "cuda" and not triton.knobs.runtime.interpret:
            raise InputError(f"method 'triton' needs tensors on a CUDA device; given {codes.device.type}")
        kind = TensorCoreFilter if codes.shape[1] >= TENSOR_CORES_FROM else DifferenceFilter
        self._filter: Filter = kind(codes)
        self._exact = Float64Search(self._filter.columns)

    def query(self, points: Tensor) -> Tensor:
        """(n, d), of any floating type → (n,) int64, 0 for points that are not finite."""
        columns = to_columns(points)
        tiles, candidates = self._filter(columns)
        found = self._exact.within(tiles, self._filter.codes_per_tile, candidates, columns)
        return self._exact.everywhere(columns, candidates == 3, found)


class TensorCoreFilter:
    """By scores of float16 products."""

    codes_per_tile = CODES_PER_BLOCK // LANES

    def __init__(self, codes: Tensor) -> None:
        self._codes = SplitCodes(codes, CODES_PER_BLOCK, LANES)
        self.columns = self._codes.columns

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        split, margins = self._codes.split(points)
        matrix, chunk = self._codes.matrix, self._codes.chunk
        scores, tiles, grid, codes_per_split = _outputs(
            len(split), POINTS_PER_PROGRAM, len(matrix), LANES, points.device
        )
        with torch.cuda.device_of(points):
            _score_kernel[grid](
                *(split, matrix, scores, tiles, len(split), len(matrix), codes_per_split),
                chunk=chunk,
                chunks=matrix.shape[1] // chunk,
                rows_per_program=POINTS_PER_PROGRAM,
                codes_per_block=CODES_PER_BLOCK,
                lanes=LANES,
                **launch_options(chunk, matrix.shape[1]),
                enable_fp_fusion=True,  # outside of the product there are only comparisons
            )
        return _merge(scores, tiles, margins)


class DifferenceFilter:
    """By float32 distances."""

    codes_per_tile = CODES_PER_BLOCK

    def __init__(self, codes: Tensor) -> None:
        self.columns = to_columns(codes)
        self._singles = torch.nn.functional.pad(
            self.columns.float(), (0, -len(codes) % CODES_PER_BLOCK), value=torch.inf
        )
        norm = torch.linalg.vector_norm(self.columns, dim=0)
        self._extent = torch.where(self.columns[0].isfinite(), norm, 0.0).amax()

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        (dimension, num_points), num_codes = points.shape, self._singles.shape[1]
        scores, tiles, grid, codes_per_split = _outputs(num_points, POINTS_PER_DIFFERENCES, num_codes, 1, points.device)
        with torch.cuda.device_of(points):
            _difference_kernel[grid](
                *(points.float(), self._singles, scores, tiles),
                *(num_points, num_codes, codes_per_split),
                dimension=dimension,
                rows_per_program=POINTS_PER_DIFFERENCES,
                codes_per_block=CODES_PER_BLOCK,
                num_warps=4,
                enable_fp_fusion=True,
            )
        # A float32 distance errs by u (|x| + |c|) where the channels are rounded, and by a factor after that. A square
        # that overflows says that the rounded distance exceeds the root of float32's maximum, no more. Of channels that
        # overflow themselves it says nothing, but there the margin is above that root, and the point is not sure.
        norm = torch.linalg.vector_norm(points, dim=0)
        margins = FLOAT32_ROUNDING * 1.01 * (norm + self._extent) + 1e-18
        margins = torch.where(points[0].isfinite(), margins, -torch.inf)
        return _merge(scores, tiles, margins, relative=(dimension + 8) * FLOAT32_ROUNDING)


def launch_options(chunk: int, width: int) -> dict[str, int]:
    """Warps of the filter on tensor cores, and how many blocks of codes are in shared memory at once.

    The fastest on an H200 that also fit the 99 KiB of the smallest GPUs (benchmarks/RESULTS.md).
    """
    if width > chunk:
        return {"num_warps": 8, "num_stages": 3}
    return {"num_warps": 4, "num_stages": 4 if chunk <= 64 else 2}


def _outputs(
    num_points: int, rows: int, num_codes: int, lanes: int, device: torch.device
) -> tuple[Tensor, Tensor, tuple[int, int], int]:
    """What a filter writes to, its grid, and how many codes each split of the codebook has."""
    blocks = triton.cdiv(num_points, rows)
    parts = num_codes // CODES_PER_BLOCK
    # few points, many codes: the codebook is split between programs, so that the whole GPU has work
    splits = max(1, min(parts, 64, PROGRAMS_WANTED // blocks))
    codes_per_split = triton.cdiv(parts, splits) * CODES_PER_BLOCK
    splits = triton.cdiv(num_codes, codes_per_split)
    scores = torch.empty(3, splits * lanes, num_points, device=device)
    tiles = torch.empty(2, splits * lanes, num_points, dtype=torch.int32, device=device)
    return scores, tiles, (blocks, splits), codes_per_split


def _merge(scores: Tensor, tiles: Tensor, margins: Tensor, relative: float = 0.0) -> tuple[Tensor, Tensor]:
    """What a filter has found, (3, splits, n) and (2, splits, n) → what it returns."""
    _, splits, num_points = scores.shape
    first_tiles, candidates = tiles.new_empty(2, num_points), tiles.new_empty(num_points)
    with torch.cuda.device_of(scores):
        _merge_kernel[(triton.cdiv(num_points, POINTS_PER_MERGE),)](
            *(scores, tiles, margins, first_tiles, candidates, num_points, splits),
            relative=relative,
            rows_per_program=POINTS_PER_MERGE,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return first_tiles, candidates
