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

from collections.abc import Iterable
from typing import Protocol

import torch
import triton
import triton.language as tl
from einops import rearrange
from torch import Tensor

from gsq_lightning.errors import InputError
from gsq_lightning.quantizers.lookup.arithmetic import FLOAT32_ROUNDING
from gsq_lightning.quantizers.lookup.scores import TENSOR_CORES_FROM, SplitCodes

CODES_PER_BLOCK = 128  # that a filter compares at once
LANES = 4  # of such a block: tiles of codes whose scores one thread has
POINTS_PER_PROGRAM = 128  # of the filter on tensor cores
POINTS_PER_DIFFERENCES = 128  # of the other: one to a thread
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
    codes,  # (V', chunks · chunk) float16, V' a multiple of codes_per_block, in the order of `in_lanes`
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
def _merge_kernel(  # type: ignore[no-untyped-def]
    scores,  # (3, splits, n)
    tiles,  # (2, splits, n)
    scores_out,  # (3, 1, n): over all splits
    tiles_out,  # (2, 1, n)
    num_points,
    splits,
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
    rank = tl.full((rows_per_program,), num_points, tl.int64)
    _store(scores_out, tiles_out, first, second, third, tile, next_tile, row, rank, mask)


@triton.jit
def _tile_kernel(  # type: ignore[no-untyped-def]
    points,  # (d, n) float64
    codes,  # (d, V) float64
    tiles,  # (2, n): the first code of each tile to search
    candidates,  # (n,): how many of them are to be searched; with 3 of them the result means nothing
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
    tl.store(index_out + row, winner, mask=row < num_points)


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
    wanted = tl.load(count).to(tl.int32)
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
    wanted = tl.load(count).to(tl.int32)
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
        codes_per_tile: how many codes a tile has.
    """

    codes_per_tile: int

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d) float64, finite → the first codes of two tiles (2, n) int32, and how many tiles the nearest may be in,
        (n,) int32: the first, both, or 3 where others too."""


class Float64Search:
    """The search in float64: of one or two tiles for each point, or of all codes for some points.

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

    def settle(self, points: Tensor, doubtful: Tensor) -> Tensor:
        """The search of all codes.

        Args:
            points: (n, d) float64, finite.
            doubtful: (n,) bool, for which points.

        Returns:
            (n,) int64, right where a point is doubtful, elsewhere 0.
        """
        index = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        return self.everywhere(points.t().contiguous(), doubtful, index)

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
        """`index` (n,) with the nearest of all codes where a point (d, n) is doubtful."""
        (dimension, num_points), codebook_size = points.shape, self._columns.shape[1]
        position = doubtful.cumsum(dim=0)  # among those in doubt, from 1
        numbers = torch.arange(num_points, device=points.device)
        # those that are sure go to a place of their own behind the end
        place = torch.where(doubtful, position - 1, num_points)
        rows = numbers.new_zeros(num_points + 1).scatter_(0, place, numbers)
        # few are expected, of however many: the codebook is split, and programs take what there is
        steps = triton.cdiv(codebook_size, CODES_PER_STEP)
        splits = min(steps, SPLITS_OF_SEARCH, max(4, RESULTS_OF_SEARCH // num_points))
        codes_per_split = triton.cdiv(steps, splits) * CODES_PER_STEP
        splits = triton.cdiv(codebook_size, codes_per_split)
        best = points.new_empty(splits, num_points)
        found = torch.empty(splits, num_points, dtype=torch.int32, device=points.device)
        blocks = triton.cdiv(num_points, POINTS_PER_SEARCH)
        with torch.cuda.device_of(points):
            _search_kernel[(min(blocks * splits, PROGRAMS_WANTED),)](
                *(points, self._columns, rows, position[-1:], best, found),
                *(num_points, codebook_size, codes_per_split, splits, dimension),
                rows_per_program=POINTS_PER_SEARCH,
                codes_per_step=CODES_PER_STEP,
                num_warps=4,
                enable_fp_fusion=False,
            )
            _settle_kernel[(min(blocks, PROGRAMS_WANTED),)](
                *(best, found, rows, position[-1:], index, num_points, splits),
                rows_per_program=POINTS_PER_SEARCH,
                num_warps=1,
            )
        return index


class FusedSearch:
    """`CodeIndex`'s `triton` method: a filter for all points, float64 within a tile or two, or everywhere for the rest.

    Args:
        codes: as for `Float64Search`, which also says what is raised.
    """

    def __init__(self, codes: Tensor) -> None:
        self._exact = Float64Search(codes)
        kind = TensorCoreFilter if codes.shape[1] >= TENSOR_CORES_FROM else DifferenceFilter
        self._filter: Filter = kind(codes)

    def query(self, points: Tensor) -> Tensor:
        tiles, candidates = self._filter(points)
        columns = points.t().contiguous()
        found = self._exact.within(tiles, self._filter.codes_per_tile, candidates, columns)
        return self._exact.everywhere(columns, candidates == 3, found)


class TensorCoreFilter:
    """By scores of float16 products."""

    codes_per_tile = CODES_PER_BLOCK // LANES

    def __init__(self, codes: Tensor) -> None:
        self._codes = SplitCodes(codes, CODES_PER_BLOCK)
        self._matrix = in_lanes(self._codes.matrix)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        split, margin = self._codes.split(points)
        matrix, chunk = self._matrix, self._codes.chunk
        scores, tiles, grid, codes_per_split = _outputs(
            len(points), POINTS_PER_PROGRAM, len(matrix), LANES, points.device
        )
        with torch.cuda.device_of(points):
            _score_kernel[grid](
                *(split, matrix, scores, tiles, len(points), len(matrix), codes_per_split),
                chunk=chunk,
                chunks=matrix.shape[1] // chunk,
                rows_per_program=POINTS_PER_PROGRAM,
                codes_per_block=CODES_PER_BLOCK,
                lanes=LANES,
                **launch_options(chunk, matrix.shape[1]),
                enable_fp_fusion=True,  # outside of the product there are only comparisons
            )
        scores, tiles = _merge(scores, tiles)
        first, *others = scores.double()
        return tiles, _candidates(first - other > margin for other in others)


class DifferenceFilter:
    """By float32 distances."""

    codes_per_tile = CODES_PER_BLOCK

    def __init__(self, codes: Tensor) -> None:
        finite = codes.isfinite().all(dim=1, keepdim=True)
        columns = torch.where(finite, codes, torch.inf).t().float()
        self._columns = torch.nn.functional.pad(
            columns, (0, -len(codes) % CODES_PER_BLOCK), value=torch.inf
        ).contiguous()
        self._extent = torch.linalg.vector_norm(torch.where(finite, codes, 0.0), dim=1).amax()

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        dimension, num_codes = self._columns.shape
        scores, tiles, grid, codes_per_split = _outputs(
            len(points), POINTS_PER_DIFFERENCES, num_codes, 1, points.device
        )
        with torch.cuda.device_of(points):
            _difference_kernel[grid](
                *(points.t().float().contiguous(), self._columns, scores, tiles),
                *(len(points), num_codes, codes_per_split),
                dimension=dimension,
                rows_per_program=POINTS_PER_DIFFERENCES,
                codes_per_block=CODES_PER_BLOCK,
                num_warps=4,
                enable_fp_fusion=True,
            )
        scores, tiles = _merge(scores, tiles)
        # A float32 distance errs by u (|x| + |c|) where the channels are rounded, and by a factor after that. A square
        # that overflows says that the rounded distance exceeds the root of float32's maximum, no more. Of channels that
        # overflow themselves it says nothing, but there the margin is above that root, and the point is not sure.
        distances = scores[1:].clamp(min=-torch.finfo(torch.float32).max).double().neg().sqrt()
        margin = FLOAT32_ROUNDING * 1.01 * (torch.linalg.vector_norm(points, dim=1) + self._extent) + 1e-18
        relative = (dimension + 8) * FLOAT32_ROUNDING
        farthest = scores[0].double().neg().sqrt() * (1 + relative) + margin
        return tiles, _candidates(distance * (1 - relative) - margin > farthest for distance in distances)


def launch_options(chunk: int, width: int) -> dict[str, int]:
    """Warps of the filter on tensor cores, and how many blocks of codes are in shared memory at once.

    The fastest on an H200 that also fit the 99 KiB of the smallest GPUs (benchmarks/RESULTS.md).
    """
    if width > chunk:
        return {"num_warps": 8, "num_stages": 3}
    return {"num_warps": 4, "num_stages": 4 if chunk <= 64 else 2}


def in_lanes(matrix: Tensor) -> Tensor:
    """Rows in such an order that a lane's tile is of codes that follow each other.

    Of a block of products, a thread has columns 8 j + 2 t and 8 j + 2 t + 1 for all j, with t < 4 of its own.
    """
    return rearrange(
        matrix, "(block t j two) k -> (block j t two) k", t=LANES, two=2, block=len(matrix) // CODES_PER_BLOCK
    )


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
    return scores, _tiles_like(scores), (blocks, splits), codes_per_split


def _tiles_like(scores: Tensor) -> Tensor:
    """Room for the first two tiles of (3, splits, n) scores."""
    return torch.empty_like(scores[:2], dtype=torch.int32)


def _merge(scores: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """(3, splits, n) and (2, splits, n) → (3, n) and (2, n): over all splits."""
    _, splits, num_points = scores.shape
    if splits > 1:
        of_splits, scores = (scores, tiles), torch.empty_like(scores[:, :1])
        tiles = _tiles_like(scores)
        with torch.cuda.device_of(scores):
            _merge_kernel[(triton.cdiv(num_points, POINTS_PER_DIFFERENCES),)](
                *(*of_splits, scores, tiles, num_points, splits),
                rows_per_program=POINTS_PER_DIFFERENCES,
                num_warps=4,
            )
    return scores[:, 0], tiles[:, 0]


def _candidates(behind: Iterable[Tensor]) -> Tensor:
    """How many tiles may hold the nearest code, (n,) int32.

    Args:
        behind: whether the second tile, and the third, cannot hold it.
    """
    second, third = behind
    return 3 - second.int() - third.int()
