"""Tests of the lookup's kernels, by Triton's interpreter on a CPU; tests/test_interpreter.py runs them.

Of scores by tensor cores the bound is tested under a model of how those round that is worse than any measured.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from gsq_lightning.quantizers.lookup import nearest_code, scores, sorted_triton, triton
from gsq_lightning.quantizers.lookup.sorted_triton import QueuedSortedSearch
from tests.quantizers.test_lookup import INPUTS, clustered, gaussian, on_sphere
from tests.waits import Waits


def compare(points: Tensor, codes: Tensor) -> None:
    assert torch.equal(nearest_code(points, codes, "triton"), nearest_code(points, codes, "brute"))


def draws() -> Callable[[int, int], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda rows, dimension: torch.randn(rows, dimension, dtype=torch.float64, generator=generator)


SHAPES = [(1, 300, 70), (2, 513, 65), (3, 64, 64), (5, 129, 1), (8, 200, 33), (16, 200, 40), (64, 70, 20)]


@pytest.mark.parametrize(("dimension", "size", "rows"), [*SHAPES, (3, 1, 9), (4, 2, 9)])
def test_shapes(dimension: int, size: int, rows: int) -> None:
    draw = draws()
    points, codes = draw(rows, dimension), draw(size, dimension)
    compare(points, codes)
    compare(torch.nn.functional.normalize(points), torch.nn.functional.normalize(codes))
    compare((points * 2).round(), (codes * 2).round())  # exact ties, equal codes
    compare(points * 1e-9, torch.nn.functional.normalize(codes))  # beyond float32: the float64 pass
    compare(points * 1e30, codes * 1e30)
    compare(points.bfloat16(), codes.bfloat16())
    compare(points.half().t().contiguous().t(), codes.float().repeat(1, 2)[:, ::2].contiguous())
    compare(points.float().repeat(1, 2)[:, ::2], codes.float().flip(0).repeat(2, 1)[::2])  # strides
    points[0], codes[-1] = torch.nan, torch.inf
    if size > 1:
        compare(points, codes)


@pytest.mark.parametrize("wanted", [1024, 4, 1], ids=["a block of codes to a program", "two", "all"])
@pytest.mark.parametrize(
    ("dimension", "kind"), [(3, triton.DifferenceFilter), (8, triton.TensorCoreFilter)], ids=["differences", "products"]
)
def test_tiles(dimension: int, kind: Any, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "PROGRAMS_WANTED", wanted)
    draw = draws()
    codes = draw(900, dimension)
    near = codes[[5, 300, 700, 40]] + 1e-3 * draw(4, dimension)
    codes[[430, 150, 10]] = near[:3] * 2 - codes[[5, 300, 700]]  # as near, in a tile before or behind
    points = torch.cat([near, near + 1e-12 * draw(4, dimension), near[:1] * torch.nan])
    points[4:7] += 1e-11 * (codes[[430, 150, 10]] - near[:3])  # nearer to the second
    assert kind(codes)(scores.to_columns(points))[1].tolist() == [2, 2, 2, 1] * 2 + [0]
    compare(points, codes)
    codes[800] = codes[5]  # a third tile
    assert kind(codes)(scores.to_columns(points))[1].tolist() == [3, 2, 2, 1] * 2 + [0]
    compare(points, codes)


@pytest.mark.parametrize(("dimension", "size"), [(3, 500), (8, 500), (30, 385)])
def test_many_tiles_to_a_program_and_some_to_the_last(
    dimension: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "PROGRAMS_WANTED", 1)
    draw = draws()
    compare(draw(70, dimension), draw(size, dimension))
    compare((draw(70, dimension) * 2).round(), (draw(size, dimension) * 2).round())


@pytest.mark.parametrize("dimension", [3, 4, 11, 21])
@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name: str, dimension: int) -> None:
    make_points, make_codes = INPUTS[name]
    compare(make_points(33, dimension, 3), make_codes(200, dimension, 4))


def test_inputs_of_codes_that_are_equal_or_not_finite() -> None:
    codes = on_sphere(100, 8, 5)
    codes[3:] = codes[3]  # a collapsed codebook: every point is a tie
    compare(gaussian(300, 8, 6), codes)  # more than one program gathers
    codes[:] = codes[3]
    compare(gaussian(40, 8, 6), codes)
    codes[:] = torch.nan
    assert not nearest_code(gaussian(40, 8, 6), codes, "triton").any()


@pytest.mark.parametrize("dimension", [3, 8])
def test_inputs_close_together_and_far_from_zero(dimension: int) -> None:
    """Where float32 rounds distances away."""
    compare(gaussian(100, dimension, 5) + 1e6, gaussian(500, dimension, 6) + 1e6)


class Unwatched:
    """A kernel, which is Python on a CPU and may look at its numbers."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            with torch._C.DisableTorchFunction(), _disable_current_modes():
                self._kernel[grid](*arguments, **options)

        return launch


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (scores, sorted_triton, triton):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Unwatched(getattr(module, name)))


@pytest.mark.usefixtures("unwatched")
@pytest.mark.parametrize("dimension", [3, 8])
def test_nothing_waits_for_the_device(dimension: int) -> None:
    points, codes = gaussian(40, dimension, 7), on_sphere(90, dimension, 8)
    with Waits() as waits:
        nearest_code(points, codes, "triton")
    assert waits.found == []
    with Waits() as waits:
        nearest_code(points, codes, "brute").any().item()
    assert waits.found


@pytest.mark.usefixtures("unwatched")
@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("name", INPUTS)
def test_sorted_as_on_a_gpu(name: str, dimension: int) -> None:
    make_points, make_codes = INPUTS[name]
    points, codes = make_points(33, dimension, 3), make_codes(130, dimension, 4)
    codes[70:80] = codes[20]  # equal ones, of which the first counts
    if name == "sphere":
        codes[5], codes[6, -1] = torch.nan, torch.inf
    expected = nearest_code(points, codes, "brute")
    with Waits() as waits:
        found = QueuedSortedSearch(codes, dimension == 2).query(points)
    assert torch.equal(found, expected)
    assert waits.found == []
    few = codes[:3].nan_to_num(posinf=9.0)
    expected = nearest_code(points, few, "brute")
    assert torch.equal(QueuedSortedSearch(few, dimension == 2).query(points), expected)
    assert torch.equal(nearest_code(points, few, "circle" if dimension == 2 else "sorted"), expected)


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
    split_codes = scores.SplitCodes(codes, codes_per_block=64, lanes=1)
    split_points, margin = split_codes.split(scores.to_columns(points))
    near = margin.isfinite()
    of_codes = by_tensor_cores(split_points[near], split_codes.matrix[:50], block)
    first, second, *_ = split_codes.frame.tolist()
    center = split_codes.frame[scores.CENTER.value :].numpy()
    scaled = (points[near].numpy() * first - center) * second
    beta = np.exp2(-np.frexp(np.linalg.norm(scaled, axis=1))[1].clip(min=0))[:, None]
    distances = np.square((points[near, None] - codes).numpy() * first * second).sum(axis=2)
    errors = of_codes + beta * distances / 2  # up to a constant of each point
    assert (errors.max(axis=1) - errors.min(axis=1) <= margin[near].numpy()).all()


@pytest.mark.parametrize("rows", [2, 50, 300])
def test_scores_are_of_codes_about_their_mean_that_fill_the_unit_ball(rows: int) -> None:
    codes = -3e4 - gaussian(rows, 5, 6).square() * 1e-7  # all negative, with a tail to one side
    codes[0, :4] = torch.nan
    split_codes = scores.SplitCodes(codes, codes_per_block=64, lanes=1)
    first, second, extent, _, radius = split_codes.frame[:5].tolist()
    center = split_codes.frame[5:].numpy() / first
    finite = codes[1:].numpy()
    assert np.allclose(center, finite.sum(axis=0) / rows, rtol=1e-12, atol=0)  # what is not finite is 0
    assert extent == np.abs(finite).max()
    scaled = (finite - center) * (first * second)
    assert np.isclose(radius, np.linalg.norm(scaled, axis=1).max(), rtol=1e-12)
    assert 0.2 < radius <= 1
    matrix = split_codes.matrix.double().numpy()
    assert len(matrix) % 64 == 0
    wanted = scaled[np.r_[rows - 2, : rows - 1, [rows - 2] * (len(matrix) - rows)]]  # copies, first and at the end
    assert np.allclose(matrix[:, :5] + matrix[:, 5:10], wanted, atol=1e-6)
    assert (matrix[:, 10:15] == matrix[:, :5]).all()
    assert np.allclose(matrix[:, 15] + matrix[:, 16], -np.square(wanted).sum(axis=1) / 2, atol=1e-6)
    assert not matrix[:, 17:].any()


@pytest.mark.parametrize(("dimension", "size", "most"), [(8, 8192, 3.5e-5), (64, 2048, 2.5e-4)])
def test_scores_have_a_margin_small_enough_to_be_of_use(dimension: int, size: int, most: float) -> None:
    """On the sphere, where the best score of 8,192 codes leads by some 1e-2."""
    split_codes = scores.SplitCodes(on_sphere(size, dimension, 1), codes_per_block=128, lanes=4)
    _, margin = split_codes.split(scores.to_columns(on_sphere(100, dimension, 2)))
    first, second, *_ = split_codes.frame.tolist()
    assert float(margin.amax()) / (first * second) ** 2 < most
