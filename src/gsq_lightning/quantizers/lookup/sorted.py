"""Search by sorting: d = 1, and codes on the unit circle."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from gsq_lightning.quantizers.lookup.arithmetic import argsort, squared_distance, without_repeats
from gsq_lightning.quantizers.lookup.tiles import TiledSearch


class Settles(Protocol):
    """The float64 search of some points alone, which waits for nothing."""

    def everywhere(self, points: Tensor, doubtful: Tensor, index: Tensor) -> Tensor:
        """(d, n) float64, (n,) bool and (n,) int64 → the index, put right where a point is doubtful."""


class SortedSearch:
    """d = 1, or d = 2 around the unit circle: one sorted key, two codes on either side of the point.

    Args:
        codes: (V, d) float64, finite.
        circle: by the angle.
    """

    def __init__(self, codes: Tensor, circle: bool) -> None:
        self._circle = circle
        key = self._key(codes)
        keys, order = argsort(key)
        if (keys[1:] == keys[:-1]).any():
            order = without_repeats(codes, order)
            keys = key.index_select(0, order)
        self._codes, self._keys, self._order = codes, keys.contiguous(), order
        self._ordered = codes.index_select(0, order)
        radius = torch.linalg.vector_norm(codes, dim=1)
        self._least_radius, self._greatest_radius = radius.amin(), radius.amax()
        self._tiles: TiledSearch | None = None

    def _key(self, codes: Tensor) -> Tensor:
        """What codes and points are sorted by, (n,)."""
        return torch.atan2(codes[:, 1], codes[:, 0]) if self._circle else codes[:, 0].contiguous()

    def query(self, points: Tensor) -> Tensor:
        index, _, settled = self._nearby(points, len(self._keys))
        if not settled.all():
            if self._tiles is None:
                self._distinct = self._order.sort().values
                self._tiles = TiledSearch(self._codes[self._distinct])
            index[~settled] = self._distinct[self._tiles.query(points[~settled])]
        return index

    def _nearby(self, points: Tensor, count: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the two codes on either side of each point the nearest (n,), its squared distance, and whether no other is
        as close; of the first `count` codes in order."""
        key = self._key(points).contiguous()
        place = torch.searchsorted(self._keys, key)
        near = place[:, None] + torch.arange(-2, 2, device=place.device)
        near = near.remainder(count) if self._circle else near.clamp(min=0).clamp(max=count - 1)
        distance = squared_distance(points[:, None], self._ordered[near])
        best = distance.amin(dim=1)
        index = torch.where(distance == best[:, None], self._order[near], len(self._codes) - 1).amin(dim=1)
        if self._circle:
            return index, best, (best < self._beyond(points, key, near)) | (count <= 4)
        # Rounding keeps the order of |x − c|: codes further out are no closer than the outermost seen.
        settled = (best < distance[:, 0]) | (place <= 2)
        return index, best, settled & ((best < distance[:, 3]) | (place >= count - 2))

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


class QueuedSortedSearch(SortedSearch):
    """The same on a GPU, without waiting for it: it alone knows how many codes differ, and which points are settled.

    Args:
        codes: (V, d) float64; those that are not finite are chosen only where all are.
        circle: by the angle.
        search: of columns (d, V): finds the nearest code of points that two codes on either side do not settle.
    """

    def __init__(self, codes: Tensor, circle: bool, search: Callable[[Tensor], Settles]) -> None:
        self._circle = circle
        finite = codes.isfinite().all(dim=1)
        self._codes = codes = torch.where(finite[:, None], codes, torch.inf)
        self._rest = search(codes.t().contiguous())
        keys, order = torch.where(finite, self._key(codes), torch.inf).sort(stable=True)
        ordered = codes.index_select(0, order)
        is_new = torch.ones_like(finite)
        is_new[1:] = (ordered[1:] != ordered[:-1]).any(dim=1)
        run = is_new.cumsum(dim=0) - 1
        # the codes that differ come first, each with its lowest index; what follows is out of reach
        self._order = torch.zeros_like(order).scatter_reduce(0, run, order, "amin", include_self=False)
        self._keys = torch.full_like(keys, torch.inf).scatter(0, run, keys)
        self._ordered = codes.index_select(0, self._order)
        self._count = (is_new & finite.index_select(0, order)).sum().clamp(min=1)
        radius = torch.linalg.vector_norm(codes, dim=1)
        self._least_radius = radius.amin()  # infinite ones are not less
        self._greatest_radius = torch.where(finite, radius, 0.0).amax()

    def query(self, points: Tensor) -> Tensor:
        index, best, settled = self._nearby(points, self._count)
        settled &= best.isfinite()
        return self._rest.everywhere(points.t().contiguous(), ~settled, index)
