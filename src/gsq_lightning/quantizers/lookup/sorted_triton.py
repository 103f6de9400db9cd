"""Search by sorting on a GPU, as `sorted.py` on a CPU, without waiting: it alone knows which points are settled."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsq_lightning.quantizers.lookup.scores import to_columns
from gsq_lightning.quantizers.lookup.triton import Float64Search

ROWS = 128  # of points, to a program
TURN = tl.constexpr(6.283185307179586)
HALF_TURN = tl.constexpr(3.141592653589793)


@triton.jit
def _turned(angle):  # type: ignore[no-untyped-def]
    """From [-2 π, 2 π] to [0, 2 π)."""
    angle = tl.where(angle < 0, angle + TURN, angle)
    return tl.where(angle >= TURN, angle - TURN, angle)


@triton.jit
def _sorted_kernel(  # type: ignore[no-untyped-def]
    points,  # (d, n) float64, infinite where not finite
    points_keys,  # (n,) float64
    codes,  # (d, V) float64, in order
    keys,  # (V,) float64, ascending
    order,  # (V,) int64: the codes' own indices
    distinct,  # (1,) int64: how many codes count; the others come behind
    radii,  # (2,) float64: the least and the greatest norm of a code
    index_out,  # (n,) int64
    doubtful_out,  # (n,) bool: whether another code may be nearer
    num_points,
    codebook_size,
    steps,  # that halve the codebook to nothing
    circle: tl.constexpr,
    rows_per_program: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * rows_per_program + tl.arange(0, rows_per_program)
    is_row = row < num_points
    count = tl.load(distinct)
    key = tl.load(points_keys + row, mask=is_row, other=0.0)
    place = tl.zeros((rows_per_program,), tl.int64)  # the first code whose key is not below the point's
    end = place + codebook_size
    for _ in range(steps):
        middle = (place + end) // 2
        below = tl.load(keys + middle, mask=place < end, other=float("inf")) < key
        place, end = tl.where(below, middle + 1, place), tl.where(below, end, middle)

    x = tl.load(points + row, mask=is_row, other=0.0)
    nearest = tl.full((rows_per_program,), float("inf"), tl.float64)
    index = tl.zeros((rows_per_program,), tl.int64) + (codebook_size - 1)
    if circle:
        y = tl.load(points + num_points + row, mask=is_row, other=0.0)
    for step in tl.static_range(4):
        near = place + (step - 2)
        near = (near % count + count) % count if circle else tl.minimum(tl.maximum(near, 0), count - 1)
        difference = x - tl.load(codes + near)
        distance = difference * difference
        if circle:
            difference = y - tl.load(codes + codebook_size + near)
            distance += difference * difference
        of_code = tl.load(order + near)
        index = tl.where(distance < nearest, of_code, tl.where(distance == nearest, tl.minimum(index, of_code), index))
        nearest = tl.minimum(nearest, distance)
        if step == 0:
            first, first_distance = near, distance
        last, last_distance = near, distance

    if circle:
        # |x − c|² = (|x| − |c|)² + 4 |x| |c| sin²(angle / 2), each part at its least, rounding taken off
        angle = tl.minimum(_turned(key - tl.load(keys + first)), _turned(tl.load(keys + last) - key))
        angle = tl.maximum(tl.minimum(angle, HALF_TURN) - 1e-14, 0.0)
        radius = tl.sqrt(x * x + y * y)
        least, greatest = tl.load(radii), tl.load(radii + 1)
        radial = tl.maximum(least - radius, radius - greatest)
        radial = tl.maximum(radial - 1e-15 * (radius + greatest), 0.0)
        sine = tl.sin(angle / 2)
        beyond = radial * radial + 4 * radius * least * sine * sine
        settled = (nearest < beyond * (1 - 1e-12) - 1e-300) | (count <= 4)
    else:
        # rounding keeps the order of |x − c|: codes further out are no closer than the outermost seen
        settled = (nearest < first_distance) | (place <= 2)
        settled &= (nearest < last_distance) | (place >= count - 2)
    settled &= nearest < float("inf")
    is_finite = tl.abs(x) < float("inf")
    tl.store(index_out + row, tl.where(is_finite, index, 0), mask=is_row)
    tl.store(doubtful_out + row, is_finite & (settled == 0), mask=is_row)


class QueuedSortedSearch:
    """d = 1, or d = 2 around the unit circle.

    Args:
        codes: (V, d), of any floating type; those that are not finite are chosen only where all are.
        circle: by the angle.
    """

    def __init__(self, codes: Tensor, circle: bool) -> None:
        self._circle = circle
        columns = to_columns(codes)
        self._rest = Float64Search(columns)
        finite = columns[0].isfinite()
        keys, order = torch.where(finite, self._key(columns), torch.inf).sort(stable=True)
        ordered = columns.index_select(1, order)
        is_new = torch.ones_like(finite)
        is_new[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(dim=0)
        run = is_new.cumsum(dim=0) - 1
        # the codes that differ come first, each with its lowest index; what follows is out of reach
        self._order = torch.zeros_like(order).scatter_reduce(0, run, order, "amin", include_self=False)
        self._keys = torch.full_like(keys, torch.inf).scatter(0, run, keys)
        self._ordered = columns.index_select(1, self._order)
        self._distinct = (is_new & finite.index_select(0, order)).sum().clamp(min=1)
        radius = torch.linalg.vector_norm(columns, dim=0)
        self._radii = torch.stack([radius.amin(), torch.where(finite, radius, 0.0).amax()])  # infinite ones: no least

    def _key(self, columns: Tensor) -> Tensor:
        """What codes and points (d, n) are sorted by, (n,)."""
        return torch.atan2(columns[1], columns[0]) if self._circle else columns[0]

    def query(self, points: Tensor) -> Tensor:
        """(n, d), of any floating type → (n,) int64, 0 for points that are not finite."""
        columns = to_columns(points)
        num_points, codebook_size = len(points), len(self._keys)
        index = torch.empty(num_points, dtype=torch.int64, device=points.device)
        doubtful = torch.empty(num_points, dtype=torch.bool, device=points.device)
        with torch.cuda.device_of(columns):
            _sorted_kernel[(triton.cdiv(num_points, ROWS),)](
                *(columns, self._key(columns), self._ordered, self._keys, self._order, self._distinct, self._radii),
                *(index, doubtful, num_points, codebook_size, codebook_size.bit_length()),
                circle=self._circle,
                rows_per_program=ROWS,
                num_warps=4,
                enable_fp_fusion=False,  # distances as squared_distance rounds them
            )
        return self._rest.everywhere(columns, doubtful, index)
