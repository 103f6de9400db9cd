"""A network over a large map, tile by tile, so that memory does not grow with the map."""

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor


def blend_tiles(network: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scale: Fraction) -> Tensor:
    """Applies a network to overlapping tiles and blends its outputs linearly across the overlaps.

    Networks that look at a whole map, by normalization or attention, see each tile as a map of its own, so that the
    result differs a little from the untiled one.

    Args:
        network: (B, C, H, W) → (B, C', scale·H, scale·W).
        x: (B, C, H, W).
        tile: height and width of a tile; a larger map than this is cut up.
        overlap: of neighbouring tiles, below `tile`.
        scale: of the network; tile, overlap and the map's sizes times it are whole numbers.
    """
    height, width = x.shape[-2:]
    if height <= tile and width <= tile:
        return network(x)
    total, weights = None, x.new_zeros(int(height * scale), int(width * scale))
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            made = network(x[..., top : top + tile, left : left + tile])
            if total is None:
                total = made.new_zeros(*made.shape[:2], *weights.shape)
            rows = slice(int(top * scale), int(top * scale) + made.shape[-2])
            columns = slice(int(left * scale), int(left * scale) + made.shape[-1])
            down, across = (_ramps(size, int(overlap * scale)).to(made) for size in made.shape[-2:])
            weight = down[:, None] * across
            total[..., rows, columns] += made * weight
            weights[rows, columns] += weight
    assert total is not None
    return total / weights


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin: the last one ends with the map."""
    if size <= tile:
        return [0]
    return [*range(0, size - tile, tile - overlap), size - tile]


def _ramps(size: int, overlap: int) -> Tensor:
    """1 in the middle, rising and falling over `overlap` positions at the ends; never 0."""
    position = torch.arange(size, dtype=torch.float32)
    edge = torch.minimum(position, position.flip(0)) + 1
    return (edge / (overlap + 1)).clamp(max=1.0)
