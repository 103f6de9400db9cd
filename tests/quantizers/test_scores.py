"""The bound on scores by tensor cores, under a model of how those round that is worse than any that was measured."""

import numpy as np
import pytest
from torch import Tensor

from gsq_lightning.quantizers.lookup.scores import SplitCodes
from tests.quantizers.test_lookup import INPUTS, clustered, gaussian, on_sphere


def cut(values: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """To 24 bits below the leading bit of `largest`, towards zero."""
    quantum = np.exp2(np.floor(np.log2(np.where(largest > 0, largest, 1.0))) - 23)
    return np.trunc(values / quantum) * quantum


def by_tensor_cores(points: Tensor, codes: Tensor, block: int) -> np.ndarray:
    """(n, K) and (V, K) → (n, V): exact products; each block's addends and its sum cut to 24 bits, never rounded."""
    x, c = points.double().numpy(), codes.double().numpy()
    total = np.zeros((len(x), len(c)))
    for start in range(0, x.shape[1], block):
        addends = [x[:, None, k] * c[None, :, k] for k in range(start, start + block)] + [total]
        largest = np.abs(addends).max(axis=0)
        total = sum(cut(addend, largest) for addend in addends)
        total = cut(total, np.abs(total))
    return total


SAME_SIGN = (lambda *a: gaussian(*a).abs(), lambda *a: gaussian(*a).abs())
FAR_FROM_CODES = (lambda *a: gaussian(*a) * np.float64(10.0) ** (gaussian(a[0], 1, 9) * 4), gaussian)
CASES = {
    **INPUTS,
    "all of one sign": SAME_SIGN,
    "latents of a cluster": (clustered, clustered),
    "from near to far": FAR_FROM_CODES,
    "so far that float64 rounds more": (lambda *a: gaussian(*a) * 2.0**45, gaussian),
}


@pytest.mark.parametrize("block", [4, 16])
@pytest.mark.parametrize("dimension", [4, 9, 33])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:overflow")
def test_scores_differ_from_the_true_ones_by_less_than_the_margin(name: str, dimension: int, block: int) -> None:
    """Of any two codes: so that the best one is the nearest where it leads by more."""
    make_points, make_codes = CASES[name]
    points, codes = make_points(20, dimension, 3), make_codes(50, dimension, 4)
    split_codes = SplitCodes(codes)
    split_points, margin = split_codes.split(points)
    near = margin.isfinite()
    scores = by_tensor_cores(split_points[near], split_codes.matrix, block)
    scaled = (points[near].numpy() * float(split_codes._first) - split_codes._center.numpy()) * float(
        split_codes._second
    )
    beta = np.exp2(-np.frexp(np.linalg.norm(scaled, axis=1))[1].clip(min=0))[:, None]
    distances = np.square((points[near, None] - codes).numpy() * float(split_codes.scale)).sum(axis=2)
    errors = scores + beta * distances / 2  # up to a constant of each point
    assert (errors.max(axis=1) - errors.min(axis=1) <= margin[near].numpy()).all()


@pytest.mark.parametrize(("dimension", "most"), [(8, 3.5e-5), (64, 2.5e-4)])
def test_the_margin_is_small_enough_to_be_of_use(dimension: int, most: float) -> None:
    """On the sphere, where the best score of 8,192 codes leads by some 1e-2."""
    split_codes = SplitCodes(on_sphere(8192, dimension, 1))
    _, margin = split_codes.split(on_sphere(100, dimension, 2))
    assert float((margin / split_codes.scale.square()).amax()) < most
