"""Search by a k-d tree, for few channels on the CPU."""

import time

import torch
from torch import Tensor

from gsq_lightning.quantizers.lookup.arithmetic import squared_distance
from gsq_lightning.quantizers.lookup.tiles import TiledSearch


class TreeSearch:
    """SciPy's cKDTree. Of equally near codes it takes any: such points are looked up again."""

    def __init__(self, codes: Tensor) -> None:
        from scipy.spatial import cKDTree  # a second of import time, for this method alone

        self._codes = codes
        self._tree = cKDTree(codes.numpy(), leafsize=32, balanced_tree=False, compact_nodes=False)
        self._tiles: TiledSearch | None = None

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
            self._tiles = TiledSearch(self._codes)
        return self._tiles.query(points)
