"""Search over all codes in float64: the definition, and the fallback of the faster methods."""

import torch
from torch import Tensor

from gsq_lightning.quantizers.lookup.arithmetic import squared_distance


class BruteSearch:
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


class LastResort:
    """`brute` for points no faster method settles, sparing the usual reasons why there are many of them."""

    def __init__(self, codes: Tensor) -> None:
        self._brute = BruteSearch(codes)
        self._extent = codes.abs().amax(dim=0)

    def query(self, points: Tensor) -> Tensor:
        distinct, inverse = torch.unique(points, dim=0, return_inverse=True)  # such as all-zero latents
        index = torch.zeros(len(distinct), dtype=torch.int64, device=points.device)
        # So far out that x − c rounds to x for every code: all distances are the same float64.
        lost = (distinct.abs() >= self._extent * 2.0**55).all(dim=1)
        index[~lost] = self._brute.query(distinct[~lost])
        return index[inverse]
