"""Exact nearest code: which row of a codebook (V, d) lies closest to each of n points.

Why not ‖x‖² + ‖c‖² − 2x·c and an argmin, as everyone writes it: the three terms cancel, and what is left is
rounding. Under bf16 autocast on the unit circle (d = 2, V = 262144) that search finds 373 different codes in
6,000 lookups (perplexity 147) where the exact one finds 5,917 (perplexity 5,886); in float32 its mean angular
error is still ten times the exact one's (measured, benchmarks/lookup_precision.py). It also needs an n × V
matrix: 8.6 GB for 8,192 points.

Every method here returns what a float64 search over all codes returns, argmin_j Σ_i (x_i − c_ji)² with the
squares added in the order of the channels, and the lowest index where two codes are equally far. Fast methods
only narrow the search: each keeps a bound on its own rounding, and a point it cannot settle goes on to the
next, slower one. Memory beyond the inputs is O((n + V) d) plus work buffers of some tens of MiB.

| method | where | how |
|---|---|---|
| sorted | d = 1, CPU and CUDA | sort + binary search, two codes on either side in float64 |
| circle | d = 2, codes on the unit circle, CPU and CUDA | the same over angles, with wrap-around |
| kdtree | CPU, low d | SciPy's cKDTree, float64; points that make a tree slow go to `matmul` |
| matmul | CPU, higher d; CUDA without Triton | float32 scores tile by tile; float64 where they could err |
| triton | CUDA | one kernel with a running minimum; float64 for the points where float32 could err |
| brute | anywhere | float64 differences, chunk by chunk: the definition |

`auto` follows `choose_method`; its thresholds were measured on two CPU cores (benchmarks/lookup.py).

Input that is not finite: a point with a NaN or an infinity gets index 0; a code with one is never chosen
while a finite code exists. A result is never out of range.
"""

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

Method = Literal["auto", "sorted", "circle", "kdtree", "matmul", "triton", "brute"]
METHODS: tuple[str, ...] = ("auto", "sorted", "circle", "kdtree", "matmul", "triton", "brute")

FLOAT32_ROUNDING = 2.0**-24
FLOAT64_ROUNDING = 2.0**-53


@torch.compiler.disable
def nearest_code(
    points: Tensor,
    codes: Tensor,
    method: Method = "auto",
    *,
    unit_norm: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Index of the Euclidean-nearest code of each point, as a float64 search over all codes finds it.

    Args:
        points: (n, d), any floating type. Not differentiated; autocast does not reach the arithmetic.
        codes: (V, d), on the same device.
        method: see the table at the top of this file.
        unit_norm: the caller normalized both sides to ‖·‖₂ = 1. A hint for `auto` alone: the result is the
            same without it, and with it where it is wrong.
        generator: breaks exact ties at random instead of by the lowest index; one draw per call, so that
            points tied between the same codes get the same one.

    Returns:
        (n,) int64, in [0, V).

    Raises:
        ValueError: V = 0, shapes or devices that do not fit, or a method that cannot do this d or device.
    """
    index = CodeIndex(codes, method, unit_norm=unit_norm, num_points=len(points), generator=generator)
    return index.query(points)


def choose_method(
    dimension: int, codebook_size: int, num_points: int | None, device_type: str, unit_norm: bool = False
) -> Method:
    """The fastest method as measured; `num_points` None means so many that building the index is free."""
    if dimension == 1:
        return "sorted"
    if dimension == 2 and unit_norm:
        return "circle"
    if device_type == "cuda":
        return "triton" if importlib.util.find_spec("triton") is not None else "matmul"
    if dimension <= 3:
        return "kdtree"
    # Above, a tree costs 0.15 µs per code to build and must look into ever more of its leaves.
    if num_points is not None and num_points < 1024:
        return "matmul"
    return "kdtree" if dimension <= (6 if codebook_size <= 8192 else 8) else "matmul"


class _Search(Protocol):
    def query(self, points: Tensor) -> Tensor:
        """(n, d) float64, finite -> (n,) int64."""


class CodeIndex:
    """What a lookup prepares from the codes (sorted order, tree, tiles), to be reused while they stay.

    Args:
        codes, method, unit_norm, generator: as for `nearest_code`; a generator is drawn from once, here.
        num_points: how many points a query will bring, for `auto`; None for many.

    Attributes:
        method: the method in use, `auto` resolved.
    """

    def __init__(
        self,
        codes: Tensor,
        method: Method = "auto",
        *,
        unit_norm: bool = False,
        num_points: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if codes.dim() != 2 or 0 in codes.shape or not codes.is_floating_point():
            raise ValueError(
                f"codes must be a floating-point (V, d) with V, d >= 1; given {codes.dtype}, {tuple(codes.shape)}"
            )
        # Apple's GPU has no float64: such tensors are looked up on the CPU.
        self._codes_device = codes.device
        self._device = codes.device if codes.device.type in ("cpu", "cuda") else torch.device("cpu")
        self.codebook_size, self.dimension = codes.shape
        self.method = _resolve_method(
            method, self.dimension, self.codebook_size, num_points, self._device.type, unit_norm
        )
        with torch.no_grad(), full_precision(self._device.type):
            codes = codes.detach().to(self._device).double()
            self._original = _searchable(codes, self.method, generator)
            self._codes = codes if self._original is None else codes[self._original]
            self._search = None if len(self._codes) == 0 else _build(self._codes, self.method)

    @torch.compiler.disable
    @torch.no_grad()
    def query(self, points: Tensor) -> Tensor:
        """Index (n,) int64 of the nearest code of each point (n, d)."""
        if points.dim() != 2 or points.shape[1] != self.dimension or not points.is_floating_point():
            raise ValueError(
                f"points must be a floating-point (n, {self.dimension}), as the codes; "
                f"given {points.dtype}, {tuple(points.shape)}"
            )
        if points.device != self._codes_device:
            raise ValueError(f"points must be on {self._codes_device}, as the codes; given {points.device}")
        if self._search is None or len(points) == 0:
            return torch.zeros(len(points), dtype=torch.int64, device=points.device)
        with full_precision(self._device.type):
            points = points.detach().to(self._device).double()
            finite = points.isfinite().all(dim=1)
            if not finite.all():
                points = torch.where(finite[:, None], points, self._codes[0])
            index = self._search.query(points)
            if self._original is not None:
                index = self._original[index]
            return index.masked_fill(~finite, 0).to(self._codes_device)


def _resolve_method(
    method: str, dimension: int, codebook_size: int, num_points: int | None, device_type: str, unit_norm: bool
) -> str:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; given {method!r}")
    if method == "auto":
        return choose_method(dimension, codebook_size, num_points, device_type, unit_norm)
    wanted_dimension = {"sorted": 1, "circle": 2}.get(method, dimension)
    if dimension != wanted_dimension:
        raise ValueError(f"method {method!r} needs d = {wanted_dimension}; given d = {dimension}")
    if method == "kdtree" and device_type != "cpu":
        raise ValueError(f"method 'kdtree' needs CPU tensors; given {device_type}: use 'triton' or 'matmul'")
    return method


def _build(codes: Tensor, method: str) -> _Search:
    if codes.abs().amax() > 1e150:  # squares leave float64
        return _LastResort(codes)
    if method == "sorted":
        return _Sorted(codes, circle=False)
    if method == "circle":
        return _Sorted(codes, circle=True)
    if method == "kdtree":
        return _Tree(codes)
    if method == "matmul":
        return _Tiles(codes)
    if method == "triton":
        from gsq_lightning.quantizers.lookup_triton import FusedSearch  # Triton only where it is used

        return FusedSearch(codes)
    return _Brute(codes)


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Neither autocast nor TF32 or bf16 inside float32 products, whatever the caller has switched on."""
    with torch.autocast(device_type, enabled=False):
        if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch < 2.9
            precision = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(precision)
            return
        mkldnn: Any = torch.backends.mkldnn  # its type stub lacks `matmul`
        backends = (torch.backends.cuda.matmul, mkldnn.matmul)
        before = [backend.fp32_precision for backend in backends]
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision


def _searchable(codes: Tensor, method: str, generator: torch.Generator | None) -> Tensor | None:
    """Rows to search, in the order that decides ties; None for all of them as they stand."""
    rows: Tensor | None = None
    finite = codes.isfinite().all(dim=1)
    if not finite.all():
        rows = finite.nonzero()[:, 0]
    if generator is not None:
        count = len(codes) if rows is None else len(rows)
        shuffled = torch.randperm(count, generator=generator, device=generator.device).to(codes.device)
        rows = shuffled if rows is None else rows[shuffled]
    if method in ("kdtree", "matmul", "triton"):
        # A collapsed codebook, thousands of equal codes, would make every point a tie to settle.
        distinct = _distinct(codes if rows is None else codes[rows])
        if distinct is not None:
            rows = distinct if rows is None else rows[distinct]
    return rows


def _distinct(codes: Tensor) -> Tensor | None:
    """Ascending indices of the codes that equal none before them; None where that is all of them."""
    weights = torch.linspace(1.0, 2.0, codes.shape[1] + 1, dtype=torch.float64).sqrt()
    key = codes[:, 0] * weights[0]
    for channel in range(1, codes.shape[1]):
        key = key + codes[:, channel] * weights[channel]
    in_order, order = _argsort(key)
    if not (in_order[1:] == in_order[:-1]).any():
        return None
    return _without_repeats(codes, order).sort().values


def _without_repeats(codes: Tensor, order: Tensor) -> Tensor:
    """`order` with every run of equal codes in it replaced by the lowest index of the run."""
    ordered = codes.index_select(0, order)  # several times as fast as codes[order]
    new = torch.ones(len(order), dtype=torch.bool, device=codes.device)
    new[1:] = (ordered[1:] != ordered[:-1]).any(dim=1)
    run = new.cumsum(dim=0) - 1
    lowest = torch.full_like(order, len(codes)).scatter_reduce(0, run, order, "amin")
    return lowest[: int(run[-1]) + 1]


def _argsort(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted keys and their indices, equal keys in any order: NumPy's is six times faster than torch's."""
    if keys.device.type != "cpu":
        values, order = torch.sort(keys)
        return values, order
    order = torch.from_numpy(np.argsort(keys.numpy()))
    return keys.index_select(0, order), order


def squared_distance(points: Tensor, codes: Tensor) -> Tensor:
    """Σ (x_i − c_i)² over the last axis, broadcast over the others.

    Channel after channel, product and sum rounded apart: the same bits for the same pair in every method, on
    every device, whatever the shapes. torch.sum and BLAS promise no order.
    """
    total = (points[..., 0] - codes[..., 0]).square_()
    for channel in range(1, points.shape[-1]):
        total.add_((points[..., channel] - codes[..., channel]).square_())
    return total


class _Brute:
    """The definition: float64 differences, `pairs` of them at a time."""

    def __init__(self, codes: Tensor) -> None:
        self._columns = codes.t().contiguous()
        self._pairs = 2**17 if codes.device.type == "cpu" else 2**24

    def query(self, points: Tensor) -> Tensor:
        index = torch.empty(len(points), dtype=torch.int64, device=points.device)
        width = min(self._columns.shape[1], 4096)
        for start in range(0, len(points), max(1, self._pairs // width)):
            rows = slice(start, start + max(1, self._pairs // width))
            index[rows] = self._nearest(points[rows], width)
        return index

    def _nearest(self, points: Tensor, width: int) -> Tensor:
        best = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
        index = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        for start in range(0, self._columns.shape[1], width):
            distance = squared_distance(points[:, None], self._columns[:, start : start + width].t())
            nearest = distance.argmin(dim=1)
            distance = distance.gather(1, nearest[:, None])[:, 0]
            closer = distance < best  # strictly: the lowest index stays
            best = torch.where(closer, distance, best)
            index = torch.where(closer, nearest + start, index)
        return index


class _LastResort:
    """`brute` for points no faster method settles, sparing the usual reasons why there are many of them."""

    def __init__(self, codes: Tensor) -> None:
        self._brute = _Brute(codes)
        self._extent = codes.abs().amax(dim=0)

    def query(self, points: Tensor) -> Tensor:
        distinct, inverse = torch.unique(points, dim=0, return_inverse=True)  # such as all-zero latents
        index = torch.zeros(len(distinct), dtype=torch.int64, device=points.device)
        # So far out that x − c rounds to x for every code: all distances are the same float64.
        lost = (distinct.abs() >= self._extent * 2.0**55).all(dim=1)
        index[~lost] = self._brute.query(distinct[~lost])
        return index[inverse]


class _Sorted:
    """d = 1, or d = 2 around the unit circle: one sorted key, two codes on either side of the point."""

    def __init__(self, codes: Tensor, circle: bool) -> None:
        self._circle = circle
        key = self._key(codes)
        keys, order = _argsort(key)
        if (keys[1:] == keys[:-1]).any():
            order = _without_repeats(codes, order)
            keys = key.index_select(0, order)
        self._codes, self._keys, self._order = codes, keys.contiguous(), order
        self._ordered = codes.index_select(0, order)
        radius = torch.linalg.vector_norm(codes, dim=1)
        self._least_radius, self._greatest_radius = radius.amin(), radius.amax()
        self._tiles: _Tiles | None = None

    def _key(self, codes: Tensor) -> Tensor:
        return torch.atan2(codes[:, 1], codes[:, 0]) if self._circle else codes[:, 0].contiguous()

    def query(self, points: Tensor) -> Tensor:
        key = self._key(points)
        count = len(self._keys)
        place = torch.searchsorted(self._keys, key)
        near = place[:, None] + torch.arange(-2, 2, device=place.device)
        near = near.remainder(count) if self._circle else near.clamp(0, count - 1)
        distance = squared_distance(points[:, None], self._ordered[near])
        best = distance.amin(dim=1)
        index = torch.where(distance == best[:, None], self._order[near], len(self._codes)).amin(dim=1)
        if count <= 4:
            return index
        if self._circle:
            settled = best < self._beyond(points, key, near)
        else:
            # Rounding keeps the order of |x − c|: codes further out are no closer than the outermost seen.
            settled = (best < distance[:, 0]) | (place <= 2)
            settled &= (best < distance[:, 3]) | (place >= count - 2)
        if not settled.all():
            if self._tiles is None:
                self._distinct = self._order.sort().values
                self._tiles = _Tiles(self._codes[self._distinct])
            index[~settled] = self._distinct[self._tiles.query(points[~settled])]
        return index

    def _beyond(self, points: Tensor, key: Tensor, near: Tensor) -> Tensor:
        """No code outside `near` is closer than this (n,), in squared distance.

        |x − c|² = (|x| − |c|)² + 4 |x| |c| sin²(angle / 2), each part at its least, rounding taken off.
        """
        left = (key - self._keys[near[:, 0]]).remainder(2 * torch.pi)
        right = (self._keys[near[:, 3]] - key).remainder(2 * torch.pi)
        angle = (torch.minimum(left, right).clamp(max=torch.pi) - 1e-14).clamp(min=0)
        radius = torch.linalg.vector_norm(points, dim=1)
        radial = torch.maximum(self._least_radius - radius, radius - self._greatest_radius)
        radial = (radial - 1e-15 * (radius + self._greatest_radius)).clamp(min=0)
        beyond = radial.square() + 4 * radius * self._least_radius * (angle / 2).sin().square()
        return beyond * (1 - 1e-12) - 1e-300


class _Tree:
    """SciPy's cKDTree. Of equally near codes it takes any: such points are looked up again."""

    def __init__(self, codes: Tensor) -> None:
        from scipy.spatial import cKDTree  # a second of import time, for this method alone

        self._codes = codes
        self._tree = cKDTree(codes.numpy(), leafsize=32, balanced_tree=False, compact_nodes=False)
        self._tiles: _Tiles | None = None

    def query(self, points: Tensor) -> Tensor:
        index = torch.empty(len(points), dtype=torch.int64)
        codebook_size, dimension = self._codes.shape
        tile_seconds = codebook_size * (0.1 + 0.01 * dimension) * 1e-9  # `matmul` for one point, two cores
        start, count = 0, 64
        while start < len(points):
            patience = 0.01 + 3 * tile_seconds * count
            began = time.perf_counter()
            index[start : start + count] = self._ask(points[start : start + count])
            start, count = start + count, min(2 * count, 8192)
            # Points far off the codes (small latents, codes on the sphere) make a tree visit all its leaves.
            if time.perf_counter() - began > patience and start < len(points):
                index[start:] = self._by_tiles(points[start:])
                break
        return index

    def _ask(self, points: Tensor) -> Tensor:
        distance, index = self._nearest(points, 2)
        tied = ~self._farther(distance)
        if tied.any():
            index[tied, 0] = self._ask_tied(points[tied])
        return index[:, 0]

    def _ask_tied(self, points: Tensor) -> Tensor:
        distance, index = self._nearest(points, 16)
        settled = self._farther(distance)
        index = index.clamp(max=len(self._codes) - 1)  # SciPy says V where it has no further code
        exact = squared_distance(points[:, None], self._codes[index])
        nearest = torch.where(exact == exact.amin(dim=1, keepdim=True), index, len(self._codes)).amin(dim=1)
        if not settled.all():
            nearest[~settled] = self._by_tiles(points[~settled])
        return nearest

    def _farther(self, distance: Tensor) -> Tensor:
        """Is the last neighbour farther than the first, by more than rounding and underflow?"""
        return distance[:, -1] > (distance[:, 0] * (1 + 1e-12)).clamp(min=1e-150)

    def _nearest(self, points: Tensor, count: int) -> tuple[Tensor, Tensor]:
        workers = torch.get_num_threads()
        distance, index = self._tree.query(points.numpy(), k=range(1, count + 1), workers=workers)
        return torch.from_numpy(distance), torch.from_numpy(index)

    def _by_tiles(self, points: Tensor) -> Tensor:
        if self._tiles is None:
            self._tiles = _Tiles(self._codes)
        return self._tiles.query(points)


class _Tiles:
    """float32 scores |c|²/2 − x·c in blocks that stay in cache, their minimum per tile of codes; then float64
    for the codes that rounding leaves in question, in the tiles that it leaves in question.

    A float32 score errs by at most (d + 16) u (|x| r + r²/2), r the largest |c| in the tile and u = 2^-24, in
    whatever order BLAS adds. Codes are shifted to their middle and sorted by norm, so that r is small where
    most of them have gathered.
    """

    TILE = 32

    def __init__(self, codes: Tensor) -> None:
        count, dimension = codes.shape
        self._codes = codes
        sample = codes[:: max(1, count // 1024)]
        self._center = sample.sort(dim=0).values[len(sample) // 2]
        centered = codes - self._center
        norm = torch.linalg.vector_norm(centered, dim=1)
        self._order = torch.arange(count, device=codes.device)
        alike = bool(norm.amin() > 0.5 * norm.amax())
        if not alike:
            norm, self._order = _argsort(norm)
            centered = centered[self._order]
        # Scaled by a power of two to |c| < 1, so that nothing overflows float32.
        self._scale = torch.ldexp(torch.ones_like(norm[0]), -torch.frexp(norm.amax()).exponent)
        tiles = -(-count // self.TILE)
        scaled = codes.new_zeros(tiles * self.TILE, dimension + 1, dtype=torch.float32)
        scaled[:count, :-1] = centered * -self._scale
        scaled[:count, -1] = (norm * self._scale).square() / 2
        scaled[count:, -1] = torch.inf
        self._scaled = scaled
        norm = torch.nn.functional.pad(norm * self._scale, (0, tiles * self.TILE - count))
        radius = norm.amax()[None] if alike else norm.view(tiles, self.TILE).amax(dim=1)
        self._radius = radius.float() * (1 + 1e-6)  # (1,) or (tiles,)
        self._offset = (codes.abs().amax() + self._center.abs().amax()) * self._scale * dimension**0.5
        self._last_resort: _LastResort | None = None
        # A block of scores is 8 MiB on the CPU, for its caches; few codes get many rows, for fewer steps.
        self._batch, pairs = (2048, 2**21) if codes.device.type == "cpu" else (8192, 2**25)
        self._columns = min(4096, len(scaled))
        self._rows = min(pairs // self._columns, self._batch)

    def query(self, points: Tensor) -> Tensor:
        index = torch.empty(len(points), dtype=torch.int64, device=points.device)
        # Taken once: fresh pages for each block would cost as much as the products.
        scores = self._scaled.new_empty(self._columns, self._rows)
        for start in range(0, len(points), self._batch):
            batch = slice(start, start + self._batch)
            index[batch] = self._nearest(points[batch], scores)
        return index

    def _nearest(self, points: Tensor, scores: Tensor) -> Tensor:
        dimension = points.shape[1]
        shifted = (points - self._center) * self._scale
        norm = torch.linalg.vector_norm(shifted, dim=1)
        # What the float64 search itself may round, at these magnitudes, and lose to underflow.
        slack = (dimension + 8) * 4 * FLOAT64_ROUNDING * (norm + self._offset + 3).square()
        slack += dimension * (self._scale * 2.0**-535).square() + 2.0**-100
        near = slack < 2.0**64  # beyond, float64 can hardly tell codes apart, and float32 might overflow
        scaled = torch.cat([shifted, torch.ones_like(norm)[:, None]], dim=1)
        scaled = torch.where(near[:, None], scaled, 0).float()
        slack = torch.where(near, slack, 0).float()
        norm = torch.where(near, norm, 0).float()

        best = _Best(points, self._codes)
        hard = ~near
        for start in range(0, len(points), self._rows):
            block = slice(start, min(start + self._rows, len(points)))
            row, code, too_many = self._in_question(scaled[block], norm[block], slack[block], scores)
            hard[block] |= too_many
            best.offer(row + start, self._order[code])
        index = best.index()
        if hard.any():
            if self._last_resort is None:
                self._last_resort = _LastResort(self._codes)
            index[hard] = self._last_resort.query(points[hard])
        return index

    def _in_question(
        self, scaled: Tensor, norm: Tensor, slack: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs (row, place in the sorted codes) that hold the nearest code of every row, and which rows have
        too many to hold them all."""
        rows = len(scaled)
        ceiling = torch.full_like(slack, torch.inf)  # the nearest code's true score lies below
        tiles_open = torch.zeros(rows, dtype=torch.int64, device=scaled.device)
        limit = max(64, len(self._scaled) // self.TILE // 8)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, len(self._scaled), self._columns):
            block = self._scaled[start : start + self._columns]
            score = torch.mm(block, scaled.t(), out=scores.view(-1)[: len(block) * rows].view(-1, rows))
            by_tile = score.view(-1, self.TILE, rows)
            least = by_tile.amin(dim=1)
            first = start // self.TILE
            radius = self._radius if len(self._radius) == 1 else self._radius[first : first + len(least)]
            error = self._error(norm, radius[:, None])
            ceiling = torch.minimum(ceiling, (least + error).amin(dim=0) + slack)
            tile, row = (least <= ceiling + error).nonzero(as_tuple=True)
            tiles_open += row.bincount(minlength=rows)
            if len(row) > rows:
                few = tiles_open[row] <= limit
                tile, row = tile[few], row[few]
            lowest = by_tile[tile, :, row] - error[0 if len(error) == 1 else tile, row][:, None]
            pair, place = (lowest <= ceiling[row, None]).nonzero(as_tuple=True)
            found.append((row[pair], tile[pair] * self.TILE + (place + start), lowest[pair, place]))
        row, code, lowest = (torch.cat(parts) for parts in zip(*found, strict=True))
        too_many = tiles_open > limit
        kept = (lowest <= ceiling[row]) & ~too_many[row]
        return row[kept], code[kept], too_many

    def _error(self, norm: Tensor, radius: Tensor) -> Tensor:
        return ((self._codes.shape[1] + 16) * FLOAT32_ROUNDING) * (norm + radius / 2) * radius


class _Best:
    """The nearest of the codes offered to each of n points; float64 only where several are."""

    def __init__(self, points: Tensor, codes: Tensor) -> None:
        self._points, self._codes = points, codes
        self._distance = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
        self._index = torch.full((len(points),), len(codes), device=points.device)

    def offer(self, row: Tensor, code: Tensor) -> None:
        """All the codes for these rows at once: pairs (row, code)."""
        alone = row.bincount(minlength=len(self._points))[row] == 1
        self._index[row[alone]] = code[alone]
        row, code = row[~alone], code[~alone]
        for start in range(0, len(row), 2**18):
            self._compare(row[start : start + 2**18], code[start : start + 2**18])

    def _compare(self, row: Tensor, code: Tensor) -> None:
        distance = squared_distance(self._points[row], self._codes[code])
        closest = self._distance.scatter_reduce(0, row, distance, "amin")
        self._index[row[closest[row] < self._distance[row]]] = len(self._codes)
        self._distance = closest
        code = torch.where(distance == closest[row], code, len(self._codes))
        self._index.scatter_reduce_(0, row, code, "amin")

    def index(self) -> Tensor:
        return self._index
