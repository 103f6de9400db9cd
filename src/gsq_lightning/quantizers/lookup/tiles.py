"""Search by matrix products in tiles, with a proven bound on their rounding."""

import torch
from torch import Tensor

from gsq_lightning.quantizers.lookup.arithmetic import FLOAT32_ROUNDING, FLOAT64_ROUNDING, argsort, squared_distance
from gsq_lightning.quantizers.lookup.brute import LastResort


class TiledSearch:
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
            norm, self._order = argsort(norm)
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
        self._last_resort: LastResort | None = None
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
        near = slack < 2.0**64  # beyond, float64 can hardly distinguish codes, and float32 might overflow
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
                self._last_resort = LastResort(self._codes)
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
