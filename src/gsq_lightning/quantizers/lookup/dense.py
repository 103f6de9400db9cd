"""Search as one matrix product, for exported graphs, which can hold nothing else."""

import torch
from torch import Tensor


def dense_nearest_code(points: Tensor, codes: Tensor) -> Tensor:
    """argmin_j ‖c_j‖²/2 − x·c_j in float64, with one n × V matrix.

    Float64 rounds where float32 latents do not yet differ, so that the indices are those of the exact search, except
    for codes that lie within 1e-15 of equally far.

    Args:
        points: (n, d).
        codes: (V, d).

    Returns:
        (n,) int64; 0 for points that are not finite. Codes that are not are nobody's nearest.
    """
    points, codes = points.double(), codes.double()
    are_points, are_codes = points.isfinite().all(dim=1), codes.isfinite().all(dim=1)
    points, codes = (torch.where(finite[:, None], x, 0.0) for finite, x in ((are_points, points), (are_codes, codes)))
    half_squares = torch.where(are_codes, codes.square().sum(dim=1) / 2, torch.inf)
    nearest = torch.addmm(half_squares, points, codes.mT, alpha=-1.0).argmin(dim=1)
    return torch.where(are_points, nearest, 0)
