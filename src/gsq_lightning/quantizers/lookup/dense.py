"""Search as one matrix product, for exported graphs, which can hold nothing else."""

import torch
from torch import Tensor


def dense_nearest_code(points: Tensor, codes: Tensor) -> Tensor:
    """argmin_j ‖c_j‖²/2 − x·c_j in float64, with an n × V matrix.

    Float64 rounds where float32 latents do not yet differ, so that the indices are those of the exact search, except
    for codes that lie within 1e-15 of equally far.

    Args:
        points: (n, d).
        codes: (V, d).

    Returns:
        (n,) int64; 0 for points that are not finite.
    """
    points, codes = points.double(), codes.double()
    scores = codes.square().sum(dim=1) / 2 - points @ codes.mT
    nearest = torch.where(scores.isnan(), torch.inf, scores).argmin(dim=1)
    return torch.where(points.isfinite().all(dim=1), nearest, 0)
