"""The lookup against a float64 search over all codes, written here in NumPy."""

import importlib.util
import os
import re
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gsq_lightning.quantizers import lookup
from gsq_lightning.quantizers.lookup import CodeIndex, choose_method, devices, nearest_code, tree
from gsq_lightning.quantizers.lookup.brute import LastResort

# (d, V) of the paper's Table 13 and Fig. 4
PAPER_SHAPES = [
    *((d, 8192) for d in (4, 8, 16, 32, 64)),
    *((d, 262144) for d in (1, 2, 4, 8, 16, 32)),
    *((d, v) for d in (8, 64) for v in (16384, 65536, 524288)),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small operations on a busy machine spend their time waiting for the other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def methods_for(dimension: int) -> list[str]:
    of_dimension = {1: ["sorted"], 2: ["circle"]}.get(dimension, [])
    return ["auto", *of_dimension, "kdtree", "matmul", "brute"]


def float64_search(points: Tensor, codes: Tensor) -> Tensor:
    columns = codes.double().t().contiguous().numpy()
    found = []
    for point in points.double().numpy():
        with np.errstate(over="ignore"):
            # in the order of the channels: NumPy's own sums have another
            distances = sum(np.square(x - column) for x, column in zip(point, columns, strict=True))
        found.append(np.argmin(distances))
    return torch.tensor(found, dtype=torch.int64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(rows: int, dimension: int, seed: int) -> Tensor:
    return torch.randn(rows, dimension, dtype=torch.float64, generator=seeded(seed))


def on_sphere(rows: int, dimension: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(gaussian(rows, dimension, seed), dim=1)


@pytest.mark.parametrize(("dimension", "codebook_size"), PAPER_SHAPES)
def test_paper_shapes(dimension: int, codebook_size: int) -> None:
    make = gaussian if dimension == 1 else on_sphere  # the paper drops the normalization at d = 1
    codes = make(codebook_size, dimension, 1)
    points = make(max(6, min(256, 2**23 // (codebook_size * dimension))), dimension, 2)
    expected = float64_search(points, codes)
    for method in methods_for(dimension):
        if method != "kdtree" or dimension <= 8:  # above, a tree of this size looks into every leaf
            assert torch.equal(nearest_code(points, codes, method, unit_norm=dimension > 1), expected), method


def clustered(rows: int, dimension: int, seed: int) -> Tensor:
    """The start of training without a spherical init: codes U(-1/V, 1/V), a few of them already moved."""
    codes = (torch.rand(rows, dimension, dtype=torch.float64, generator=seeded(seed)) * 2 - 1) / rows
    codes[::29] += gaussian(len(codes[::29]), dimension, seed)
    return codes


INPUTS = {
    "sphere": (on_sphere, on_sphere),
    "gaussian": (gaussian, gaussian),
    "uniform": (lambda *a: gaussian(*a).sign() * gaussian(*a).abs().clamp(max=1), gaussian),
    "latents inside the sphere": (lambda *a: gaussian(*a) * 0.1, on_sphere),
    "latents near its center": (lambda *a: gaussian(*a) * 1e-8, on_sphere),
    "latents far outside": (lambda *a: gaussian(*a) * 1e5, on_sphere),
    "clustered codes": (gaussian, clustered),
    "clipped": (lambda *a: (3 * gaussian(*a)).clamp(-1, 1), lambda *a: (3 * gaussian(*a)).clamp(-1, 1)),
    "codes a hair apart": (gaussian, lambda *a: 1 + 1e-9 * gaussian(*a)),
    "one code far out": (on_sphere, lambda *a: torch.cat([on_sphere(*a)[1:], on_sphere(*a)[:1] * 1e6])),
    "a zero code": (on_sphere, lambda *a: torch.cat([on_sphere(*a)[1:], on_sphere(*a)[:1] * 0])),
    "not quite unit norm": (on_sphere, lambda *a: on_sphere(*a).float().double() * 1.0001),
    "all shifted": (lambda *a: gaussian(*a) + 1000, lambda *a: gaussian(*a) + 1000),
    "tiny": (lambda *a: gaussian(*a) * 1e-30, lambda *a: gaussian(*a) * 1e-30),
    "huge": (lambda *a: gaussian(*a) * 1e30, lambda *a: gaussian(*a) * 1e30),
    "huge latents": (lambda *a: gaussian(*a) * 1e30, on_sphere),
    # float32 holds the coordinates, but not all squares of their differences
    "huge and clustered": (
        lambda *a: 2.0**88 * (1 + 1e-7 * gaussian(*a)),
        lambda *a: 2.0**88 * (1 + 1e-7 * gaussian(*a)),
    ),
    # codes with the same coordinates in other orders: rounding alone, in the order of adding, says which is nearest
    "as far but for rounding": (
        lambda *a: (gaussian(*a)[:, :1].round() * 0.1).expand(*a[:2]),
        lambda *a: gaussian(*a).round() * 0.1,
    ),
    "some squares beyond float64": (lambda *a: gaussian(*a) * 1e156, lambda *a: gaussian(*a).round() * 1e156),
    "squares beyond float64": (lambda *a: gaussian(*a) * 1e200, lambda *a: gaussian(*a) * 1e200),
    "huge latents beyond float64": (lambda *a: gaussian(*a) * 1e200, on_sphere),
    "squares that float64 barely holds": (lambda *a: gaussian(*a) * 1e-161, lambda *a: gaussian(*a) * 1e-161),
    "squares below float64": (lambda *a: gaussian(*a) * 1e-200, lambda *a: gaussian(*a) * 1e-200),
}


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_all_kinds(name: str, dimension: int) -> None:
    make_points, make_codes = INPUTS[name]
    points, codes = make_points(150, dimension, 3), make_codes(700, dimension, 4)
    expected = float64_search(points, codes)
    for method in methods_for(dimension):
        assert torch.equal(nearest_code(points, codes, method), expected), method


@pytest.mark.parametrize("dimension", [1, 2, 3])
@pytest.mark.parametrize("unused", [False, True])
def test_the_last_resort_leaves_out_no_point_that_is_nearer_to_some_codes(dimension: int, unused: bool) -> None:
    """The further out, the less of a code a distance holds, and from 2^55 on nothing."""
    codes = gaussian(200, dimension, 40)
    if unused:
        codes[:, 0] = 0  # a channel in which all are alike
    points = torch.cat([gaussian(20, dimension, 41).sign() * 2.0**power for power in range(30, 62)])
    expected = float64_search(points, codes)
    assert torch.equal(LastResort(codes).query(points), expected)


@pytest.mark.parametrize("dimension", [1, 2, 3, 8, 16])
def test_exact_ties_go_to_the_lowest_index(dimension: int) -> None:
    # Small integers and halves: float64 is exact, many codes are equally far, many are equal.
    codes = (gaussian(2000, dimension, 5) * 1.5).round()
    points = torch.cat([(gaussian(200, dimension, 6) * 3).round() / 2, torch.zeros(3, dimension)])
    expected = float64_search(points, codes)
    for method in methods_for(dimension):
        assert torch.equal(nearest_code(points, codes, method), expected), method


def test_ties_on_the_circle() -> None:
    corners = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    codes = corners[torch.randint(4, (1000,), generator=seeded(7))]
    points = torch.cat([corners, corners + corners[[1, 2, 3, 0]], torch.zeros(1, 2)])
    expected = float64_search(points, codes)
    for method in methods_for(2):
        assert torch.equal(nearest_code(points, codes, method, unit_norm=True), expected), method


@pytest.mark.parametrize("dimension", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neither_dtype_nor_autocast_nor_tf32_costs_precision(dtype: torch.dtype, dimension: int) -> None:
    points, codes = on_sphere(200, dimension, 8).to(dtype), on_sphere(5000, dimension, 9).to(dtype)
    expected = float64_search(points, codes)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            for method in methods_for(dimension):
                assert torch.equal(nearest_code(points, codes, method), expected), method
        assert torch.get_float32_matmul_precision() == "medium"  # the caller's setting is given back
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dimension", [1, 2, 4, 16])
def test_points_that_are_not_finite_get_index_0(dimension: int) -> None:
    points, codes = gaussian(60, dimension, 10), gaussian(300, dimension, 11)
    expected = float64_search(points, codes)
    for row, value in ((3, torch.nan), (10, torch.inf), (59, -torch.inf)):
        points[row, -1] = value
        expected[row] = 0
    for method in methods_for(dimension):
        assert torch.equal(nearest_code(points, codes, method), expected), method


@pytest.mark.parametrize("dimension", [1, 2, 4, 16])
def test_codes_that_are_not_finite_are_never_chosen(dimension: int) -> None:
    points, codes = gaussian(60, dimension, 12), gaussian(300, dimension, 13)
    codes[0], codes[7, 0], codes[100, -1] = torch.nan, torch.inf, -torch.inf
    codes[150:200] = codes[20]  # equal ones among the finite, of which the first counts
    finite = codes.isfinite().all(dim=1)
    expected = finite.nonzero()[:, 0][float64_search(points, codes[finite])]
    for method in methods_for(dimension):
        assert torch.equal(nearest_code(points, codes, method), expected), method
        no_finite_code = nearest_code(points, torch.full_like(codes, torch.nan), method)
        assert torch.equal(no_finite_code, torch.zeros(60, dtype=torch.int64)), method


@pytest.mark.parametrize("dimension", [1, 2, 3, 16])
@pytest.mark.parametrize("codebook_size", [1, 2, 3, 4, 5, 33])
def test_few_codes_and_few_points(codebook_size: int, dimension: int) -> None:
    codes = on_sphere(codebook_size, dimension, 14)
    for rows in (0, 1, 2, 65):
        points = gaussian(rows, dimension, 15)
        for method in methods_for(dimension):
            index = nearest_code(points, codes, method)
            assert index.dtype == torch.int64
            assert torch.equal(index, float64_search(points, codes)), method


@pytest.mark.parametrize("codebook_size", range(3, 9))
def test_few_codes_around_a_circle_that_is_none(codebook_size: int) -> None:
    """Of so different norms that the nearest code often lies far from the two at either side."""
    codes = gaussian(codebook_size, 2, 16) * torch.logspace(-1, 1, codebook_size)[:, None]
    points = 3 * gaussian(2000, 2, 17)
    assert torch.equal(nearest_code(points, codes, "circle"), float64_search(points, codes))


def test_what_cannot_be_looked_up_is_refused_in_one_line() -> None:
    points, codes = torch.zeros(5, 3), torch.zeros(7, 3)
    for bad in (torch.zeros(0, 3), torch.zeros(7), torch.zeros(7, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"^codes must be .*given"):
            nearest_code(points, bad)
    for bad in (torch.zeros(5, 4), torch.zeros(3), torch.zeros(5, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"^points must be .*\(n, 3\).*given"):
            nearest_code(bad, codes)
    with pytest.raises(ValueError, match="points must be on cpu, as the codes; given meta"):
        nearest_code(points.to("meta"), codes)
    with pytest.raises(ValueError, match="'sorted' needs d = 1; given d = 3"):
        nearest_code(points, codes, "sorted")
    with pytest.raises(ValueError, match="'circle' needs d = 2; given d = 3"):
        nearest_code(points, codes, "circle")
    with pytest.raises(ValueError, match="method is 'kdtrees'; it must be one of: auto, sorted, circle, kdtree"):
        nearest_code(points, codes, "kdtrees")  # type: ignore[arg-type]


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation inside returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor):
                self.elements = max(self.elements, item.untyped_storage().nbytes() // item.element_size())
        return result


@pytest.mark.parametrize(
    ("dimension", "method"),
    [(1, "sorted"), (2, "circle"), (2, "kdtree"), (2, "matmul"), (8, "kdtree"), (16, "matmul"), (1, "brute")],
)
@pytest.mark.parametrize("name", ["sphere", "latents near its center", "clipped"])
def test_memory_is_not_n_times_v(name: str, dimension: int, method: lookup.Method) -> None:
    make_points, make_codes = INPUTS[name]
    rows, codebook_size = 1024, 16384
    points, codes = make_points(rows, dimension, 19), make_codes(codebook_size, dimension, 20)
    tracemalloc.start()  # what NumPy and SciPy take
    with LargestTensor() as largest:
        nearest_code(points, codes, method)
    _, numpy_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert largest.elements <= rows * codebook_size / 4
    assert numpy_peak <= rows * codebook_size


def test_memory_does_not_grow_with_n_times_v() -> None:
    elements = []
    for factor in (1, 4):
        points, codes = on_sphere(2048 * factor, 16, 21), on_sphere(8192 * factor, 16, 22)
        with LargestTensor() as largest:
            nearest_code(points, codes, "matmul")
        elements.append(largest.elements)
    assert elements[1] <= 4 * elements[0]  # 16 times as many pairs


def test_index_can_be_reused() -> None:
    codes = on_sphere(3000, 4, 23)
    index = CodeIndex(codes)
    assert index.method == "kdtree"
    for seed in (24, 25):
        points = on_sphere(100, 4, seed)
        assert torch.equal(index.query(points), float64_search(points, codes))


def test_tree_hands_slow_points_to_matmul(monkeypatch: pytest.MonkeyPatch) -> None:
    points, codes = on_sphere(500, 3, 26), on_sphere(1000, 3, 27)
    clock = count(step=60)
    monkeypatch.setattr(tree.time, "perf_counter", lambda: float(next(clock)))  # a minute per slice
    index = CodeIndex(codes, "kdtree")
    assert torch.equal(index.query(points), float64_search(points, codes))
    assert next(clock) == 120  # the tree was asked once


def test_automatic_choice() -> None:
    assert choose_method(1, 262144, 8192, "cpu") == "sorted"
    assert choose_method(2, 262144, 8192, "cpu", unit_norm=True) == "circle"
    assert choose_method(2, 262144, 8192, "cpu") == "kdtree"
    assert choose_method(8, 262144, 8192, "cpu") == "kdtree"
    assert choose_method(8, 262144, 10, "cpu") == "matmul"  # too few points to pay for a tree
    assert choose_method(3, 262144, 10, "cpu") == "kdtree"
    assert choose_method(8, 8192, 8192, "cpu") == "matmul"  # few enough codes for it
    assert choose_method(16, 262144, 8192, "cpu") == "matmul"
    assert choose_method(1, 262144, 8192, "cuda") == "sorted"
    assert choose_method(8, 262144, 8192, "cuda") == "triton"
    assert choose_method(8, 262144, 8192, "cuda", kernels=False) == "matmul"


def test_gradients_stay_outside() -> None:
    points = gaussian(20, 4, 28).requires_grad_()
    codes = torch.nn.Parameter(gaussian(50, 4, 29))
    index = nearest_code(points, codes)
    assert not index.requires_grad
    assert torch.equal(index, float64_search(points.detach(), codes.detach()))


def test_works_inside_a_compiled_function() -> None:
    points, codes = gaussian(20, 2, 30), gaussian(50, 2, 31)

    @torch.compile(backend="eager", fullgraph=True)
    def double_then_find(points: Tensor) -> Tensor:
        return nearest_code(points * 2, codes) + 1

    assert torch.equal(double_then_find(points), float64_search(points * 2, codes) + 1)


class Compiled:
    """Compiles what is launched, to machine code for a GPU that is not there, and launches nothing.

    Attributes:
        found: the results, by the kernel's name.
    """

    def __init__(self, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from triton import knobs
        from triton.backends.compiler import GPUTarget
        from triton.runtime import driver

        from gsq_lightning.quantizers.lookup import scores, sorted_triton, triton

        self.found: dict[str, list[Any]] = defaultdict(list)
        self._target = GPUTarget("cuda", capability, 32)
        monkeypatch.setattr(driver, "_active", self)
        monkeypatch.setattr(knobs.runtime, "interpret", True)  # the search takes tensors on a CPU
        for module in (scores, sorted_triton, triton):
            for name, kernel in [(name, kernel) for name, kernel in vars(module).items() if name.endswith("_kernel")]:
                monkeypatch.setattr(kernel, "device_caches", defaultdict(kernel.create_binder))
                monkeypatch.setattr(module, name, self._launcher(name, kernel))

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self._target

    def _launcher(self, name: str, kernel: Any) -> Any:
        found = self.found[name]

        class Launcher:
            def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
                def launch(*arguments: Any, **options: Any) -> None:
                    assert "enable_fp_fusion" in options  # Triton 3.9 warns of its default
                    assert min(grid) >= 1
                    assert max(grid[1:], default=1) < 2**16
                    result = kernel.warmup(*arguments, grid=grid, **options)
                    assert result.metadata.shared <= 99 * 1024  # what a program may have on the smallest of these GPUs
                    # quotients and roots are rounded correctly, nothing is flushed to zero
                    assert not re.search(r"\.(approx|full|ftz)\b", result.asm["ptx"])
                    if all(result is not other for other in found):
                        found.append(result)

                return launch

        return Launcher()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton's interpreter runs on the CPU")
@pytest.mark.parametrize(
    ("capability", "product", "types"),
    [
        (80, "mma.sync.", ".f32.f16.f16"),
        (90, "wgmma.mma_async.", ".f32.f16.f16"),
        (100, "tcgen05.mma.", "kind::f16"),
        (120, "mma.sync.", ".f32.f16.f16"),
    ],
    ids=["A100", "H100", "B200", "RTX 50"],
)
def test_scores_compile_to_tensor_cores_and_distances_to_unfused_float64(
    capability: int, product: str, types: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To machine code, without a GPU: a fused multiply-add would round otherwise than the float64 search."""
    from gsq_lightning.quantizers.lookup.sorted_triton import QueuedSortedSearch
    from gsq_lightning.quantizers.lookup.triton import FusedSearch

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = Compiled(capability, monkeypatch)
    # Triton makes a constant of 1, and another kernel for multiples of 16
    for rows, size, dimension in [(1, 1, 3), (1, 1, 8), (100, 300, 3), (100, 300, 16), (64, 256, 32), (64, 256, 64)]:
        kind = torch.float32 if rows == 1 else torch.float64
        FusedSearch(torch.zeros(size, dimension, dtype=kind)).query(torch.zeros(rows, dimension, dtype=kind))
    found = compiled.found
    for of_product in found["_score_kernel"]:
        lines = [line for line in of_product.asm["ptx"].splitlines() if product in line]
        assert lines
        assert all(types in line for line in lines)
    for prepared in [*found["_split_points_kernel"], *found["_split_codes_kernel"]]:
        assert "cvt.rn.f16.f64" in prepared.asm["ptx"]  # rounded once, to nearest
    for differences in found["_difference_kernel"]:
        assert "fma.rn.f32" in differences.asm["ptx"]
    for rows, size in [(1, 1), (100, 300)]:
        for dimension in (1, 2):
            codes = torch.zeros(size, dimension, dtype=torch.float64)
            QueuedSortedSearch(codes, dimension == 2).query(codes[:rows])
            of_keys = found["_sorted_kernel"][-1].asm["sass"]
            assert "DMUL" in of_keys
            assert dimension == 2 or "DFMA" not in of_keys  # the sine has some
    for exact in [*found["_tile_kernel"], *found["_search_kernel"]]:
        distances = exact.asm["sass"]
        assert "DMUL" in distances
        assert "DADD" in distances
        assert "DFMA" not in distances
    assert all(found.values())


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton's interpreter runs on the CPU")
def test_triton_refuses_cpu_tensors() -> None:
    with pytest.raises(ValueError, match="'triton' needs tensors on a CUDA device; given cpu"):
        nearest_code(torch.zeros(5, 3), torch.zeros(7, 3), "triton")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("dimension", [1, 2, 3, 8, 16, 64])
def test_cuda_agrees_with_the_cpu(name: str, dimension: int) -> None:
    make_points, make_codes = INPUTS[name]
    points, codes = make_points(500, dimension, 32), make_codes(3000, dimension, 33)
    expected = nearest_code(points, codes, "brute")
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        for method in [*methods_for(dimension), "triton"]:
            if method != "kdtree" and (method != "triton" or devices.has_kernels(torch.device("cuda", 0))):
                index = nearest_code(points.cuda(), codes.cuda(), method)
                assert torch.equal(index.cpu(), expected), method
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
