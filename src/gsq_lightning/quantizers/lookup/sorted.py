"""Search by sorting: d = 1, and codes on the unit circle."""

import torch
from torch import Tensor

from gsq_lightning.quantizers.lookup.arithmetic import argsort, squared_distance, without_repeats
from gsq_lightning.quantizers.lookup.tiles import TiledSearch


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
        index, settled = self._nearby(points)
        if not settled.all():
            if self._tiles is None:
                self._distinct = self._order.sort().values
                self._tiles = TiledSearch(self._codes[self._distinct])
            index[~settled] = self._distinct[self._tiles.query(points[~settled])]
        return index

    def _nearby(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Of the two codes on either side of each point the nearest (n,), and whether no other is as close."""
        count = len(self._keys)
        key = self._key(points).contiguous()
        place = torch.searchsorted(self._keys, key)
        near = place[:, None] + torch.arange(-2, 2, device=place.device)
        near = near.remainder(count) if self._circle else near.clamp(min=0, max=count - 1)
        distance = squared_distance(points[:, None], self._ordered[near])
        best = distance.amin(dim=1)
        index = torch.where(distance == best[:, None], self._order[near], len(self._codes) - 1).amin(dim=1)
        if self._circle:
            return index, (best < self._beyond(points, key, near)) | (count <= 4)
        # Rounding keeps the order of |x − c|: codes further out are no closer than the outermost seen.
        settled = (best < distance[:, 0]) | (place <= 2)
        return index, settled & ((best < distance[:, 3]) | (place >= count - 2))

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
