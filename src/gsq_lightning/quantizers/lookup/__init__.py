"""Exact nearest code: which row of a codebook (V, d) lies closest to each of n points.

Why not ‖x‖² + ‖c‖² − 2x·c and an argmin, as everyone writes it: the three terms cancel, and what is left is
rounding. Under bf16 autocast on the unit circle (d = 2, V = 262144) that search finds 373 different codes in
6,000 lookups (perplexity 147) where the exact one finds 5,917 (perplexity 5,886); in float32 its mean angular
error is still ten times the exact one's (measured, benchmarks/lookup_precision.py). It also needs an n × V
matrix: 8.6 GB for 8,192 points.

Every method here returns what a float64 search over all codes returns, argmin_j Σ_i (x_i − c_ji)² with the
squares added in the order of the channels, and the lowest index where two codes are equally far. Fast methods
only narrow the search: each keeps a bound on its own rounding, and a point it cannot settle is passed on to the
next, slower one. Memory beyond the inputs is O((n + V) d) plus work buffers of some tens of MiB.

| method | where | how |
|---|---|---|
| sorted | d = 1, CPU and CUDA | sort + binary search, two codes on either side in float64; never waits on CUDA |
| circle | d = 2, codes on the unit circle, CPU and CUDA | the same over angles, with wrap-around |
| kdtree | CPU, low d | SciPy's cKDTree, float64; points that make a tree slow go to `matmul` |
| matmul | CPU, higher d; CUDA without Triton's kernels | float32 scores tile by tile; float64 where they could err |
| triton | CUDA | tensor cores with a proven bound; float64 for points left in doubt; never waits for the device |
| brute | anywhere | float64 differences, chunk by chunk: the definition |

A graph made by torch.export has no such choice: there it is `dense.py`, one float64 matrix product.

`auto` follows `choose_method`; its thresholds were measured on two CPU cores (benchmarks/lookup.py).

Input that is not finite: a point with a NaN or an infinity gets index 0; a code with one is never chosen
while a finite code exists. A result is never out of range.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from gsq_lightning.errors import InputError, look_up
from gsq_lightning.precision import full_precision, with_float64
from gsq_lightning.quantizers.lookup.arithmetic import argsort, without_repeats
from gsq_lightning.quantizers.lookup.brute import BruteSearch, LastResort
from gsq_lightning.quantizers.lookup.dense import dense_nearest_code
from gsq_lightning.quantizers.lookup.devices import has_kernels, why_no_kernels
from gsq_lightning.quantizers.lookup.sorted import SortedSearch
from gsq_lightning.quantizers.lookup.tiles import TiledSearch
from gsq_lightning.quantizers.lookup.tree import TreeSearch

Method = Literal["auto", "sorted", "circle", "kdtree", "matmul", "triton", "brute"]


def nearest_code(points: Tensor, codes: Tensor, method: Method = "auto", *, unit_norm: bool = False) -> Tensor:
    """Index of the Euclidean-nearest code of each point, as a float64 search over all codes finds it.

    Args:
        points: (n, d), any floating type. Not differentiated; autocast does not reach the arithmetic.
        codes: (V, d), on the same device.
        method: see the table at the top of this file.
        unit_norm: the caller normalized both sides to ‖·‖₂ = 1. A hint for `auto` alone: the result is the
            same without it, and with it where it is wrong.

    Returns:
        (n,) int64, in [0, V).

    Raises:
        InputError: V = 0, shapes or devices that do not fit, or a method that cannot do this d or device.
    """
    if torch.compiler.is_exporting():
        return dense_nearest_code(points, codes)
    if torch.compiler.is_compiling():
        return _opaque_nearest_code(points, codes, method, unit_norm)
    return CodeIndex(codes, method, unit_norm=unit_norm, num_points=len(points)).query(points)


@torch.library.custom_op("gsq_lightning::nearest_code", mutates_args=())
def _opaque_nearest_code(points: Tensor, codes: Tensor, method: str, unit_norm: bool) -> Tensor:
    """One operator to the compiler, which cannot trace a search whose steps depend on the data."""
    return CodeIndex(codes, method, unit_norm=unit_norm, num_points=len(points)).query(points)


@_opaque_nearest_code.register_fake
def _(points: Tensor, codes: Tensor, method: str, unit_norm: bool) -> Tensor:
    return points.new_empty(points.shape[0], dtype=torch.int64)


def choose_method(
    dimension: int,
    codebook_size: int,
    num_points: int | None,
    device_type: str,
    unit_norm: bool = False,
    kernels: bool = True,
) -> Method:
    """The fastest method as measured.

    Args:
        dimension: d.
        codebook_size: V.
        num_points: n; None means so many that building the index is free.
        device_type: "cpu" or "cuda".
        unit_norm: as for `nearest_code`.
        kernels: whether a CUDA device runs Triton's kernels.
    """
    if dimension == 1:
        return "sorted"
    if dimension == 2 and unit_norm:
        return "circle"
    if device_type == "cuda":
        return "triton" if kernels else "matmul"
    if dimension <= 3:
        return "kdtree"
    # Above, a tree costs 0.15 µs per code to build and must look into ever more of its leaves.
    if num_points is not None and num_points < 1024:
        return "matmul"
    return "kdtree" if dimension <= (6 if codebook_size <= 8192 else 8) else "matmul"


class Search(Protocol):
    """A method with its index built."""

    def query(self, points: Tensor) -> Tensor:
        """(n, d) float64, finite -> (n,) int64. Kernels take points of any kind, and find 0 for those not finite."""


class CodeIndex:
    """What a lookup prepares from the codes (sorted order, tree, tiles), to be reused while they stay.

    Args:
        codes, method, unit_norm: as for `nearest_code`.
        num_points: how many points a query will bring, for `auto`; None for many.

    Attributes:
        method: the method in use, `auto` resolved.
    """

    def __init__(
        self,
        codes: Tensor,
        method: Method | str = "auto",
        *,
        unit_norm: bool = False,
        num_points: int | None = None,
    ) -> None:
        if codes.dim() != 2 or 0 in codes.shape or not codes.is_floating_point():
            raise InputError(
                f"codes must be a floating-point (V, d) with V, d >= 1; given {codes.dtype}, {tuple(codes.shape)}"
            )
        self._codes_device = codes.device
        self._device = with_float64(codes.device)
        self.codebook_size, self.dimension = codes.shape
        self.method = _resolve_method(method, self.dimension, self.codebook_size, num_points, self._device, unit_norm)
        with torch.no_grad(), full_precision(self._device):
            codes = codes.detach().to(self._device)
            # what only queues work takes numbers of any kind, those that are not finite too
            self._queues = _only_queues(self.method, self._device)
            codes = codes if self._queues else codes.double()
            self._original = None if self._queues else _rows_to_search(codes, self.method)
            self._codes = codes if self._original is None else codes[self._original]
            self._search = None if len(self._codes) == 0 else _build(self._codes, self.method)

    @torch.no_grad()
    def query(self, points: Tensor) -> Tensor:
        """Index (n,) int64 of the nearest code of each point (n, d)."""
        if points.dim() != 2 or points.shape[1] != self.dimension or not points.is_floating_point():
            raise InputError(
                f"points must be a floating-point (n, {self.dimension}), as the codes; "
                f"given {points.dtype}, {tuple(points.shape)}"
            )
        if points.device != self._codes_device:
            raise InputError(f"points must be on {self._codes_device}, as the codes; given {points.device}")
        if self._search is None or len(points) == 0:
            return torch.zeros(len(points), dtype=torch.int64, device=points.device)
        with full_precision(self._device):
            points = points.detach().to(self._device)
            if self._queues:
                return self._search.query(points)
            points = points.double()
            finite = points.isfinite().all(dim=1)
            if not finite.all():
                points = torch.where(finite[:, None], points, 0.0)
            index = self._search.query(points)
            if self._original is not None:
                index = self._original[index]
            return index.masked_fill(~finite, 0).to(self._codes_device)


def _resolve_method(
    method: str, dimension: int, codebook_size: int, num_points: int | None, device: torch.device, unit_norm: bool
) -> str:
    look_up("method", method, {"auto": None, **SEARCHES})
    if method == "auto":
        return choose_method(dimension, codebook_size, num_points, device.type, unit_norm, has_kernels(device))
    wanted_dimension = {"sorted": 1, "circle": 2}.get(method, dimension)
    if dimension != wanted_dimension:
        raise InputError(f"method {method!r} needs d = {wanted_dimension}; given d = {dimension}")
    if method == "kdtree" and device.type != "cpu":
        raise InputError(f"method 'kdtree' needs CPU tensors; given {device.type}: use 'triton' or 'matmul'")
    if method == "triton" and device.type == "cuda" and (reason := why_no_kernels(device)) is not None:
        raise InputError(f"method 'triton' cannot be used on {device}: {reason}")
    return method


def _fused_search(codes: Tensor) -> Search:
    from gsq_lightning.quantizers.lookup.triton import FusedSearch  # Triton only where it is used

    return FusedSearch(codes)


def _sorted_search(codes: Tensor, circle: bool) -> Search:
    if not _only_queues("circle" if circle else "sorted", codes.device):
        return SortedSearch(codes, circle)
    from gsq_lightning.quantizers.lookup.sorted_triton import QueuedSortedSearch

    return QueuedSortedSearch(codes, circle)


def _only_queues(method: str, device: torch.device) -> bool:
    """Whether a search by this method waits for nothing: on a GPU, with kernels for what it leaves in doubt."""
    return method == "triton" or (method in ("sorted", "circle") and has_kernels(device))


SEARCHES: dict[str, Callable[[Tensor], Search]] = {
    "sorted": partial(_sorted_search, circle=False),
    "circle": partial(_sorted_search, circle=True),
    "kdtree": TreeSearch,
    "matmul": TiledSearch,
    "triton": _fused_search,
    "brute": BruteSearch,
}


def _build(codes: Tensor, method: str) -> Search:
    if not _only_queues(method, codes.device) and codes.abs().amax() > 1e150:  # squares leave float64
        return LastResort(codes)
    return SEARCHES[method](codes)


def _rows_to_search(codes: Tensor, method: str) -> Tensor | None:
    """Rows to search, ascending; None for all of them."""
    rows: Tensor | None = None
    finite = codes.isfinite().all(dim=1)
    if not finite.all():
        rows = finite.nonzero()[:, 0]
    if method in ("kdtree", "matmul"):
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
    in_order, order = argsort(key)
    if not (in_order[1:] == in_order[:-1]).any():
        return None
    return without_repeats(codes, order).sort().values
