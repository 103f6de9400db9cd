"""Speed, memory and exactness of the nearest-code lookup, against the usual way and against a library.

    python benchmarks/lookup.py                                  # all shapes of the paper's Table 13
    python benchmarks/lookup.py --n 8192 --shape 2 262144 --shape 8 262144
    python benchmarks/lookup.py --device cuda                    # compiles its kernels at first: minutes
    python benchmarks/lookup.py --device cuda --mismatches 1000000000 --shape 8 8192
    python benchmarks/lookup.py --quick

In one run, on the same inputs, for each (d, V) of Table 13 (f8 at D = 8 from Fig. 4 as well) and each n:

- ours: `nearest_code(..., "auto")`, building its index included, as a training step does it;
- expanded: ‖x‖² + ‖c‖² − 2 x·cᵀ in float32 and an argmin, over as many rows at once as memory holds;
- library: vector-quantize-pytorch's `VectorQuantize` in eval mode, with cosine similarity on the sphere;
- flash-kmeans (on CUDA, where it is installed: pip install flash-kmeans): the assignment step of a k-means library;
- cdist (with --cdist): `torch.cdist` in float32 and an argmin.

On CUDA two more columns have ours alone: with its index kept, as in evaluation, and replayed as a CUDA graph, index
included, which leaves out what Python takes to launch its kernels. With --mismatches so
many lookups of new random points are compared with the float64 search, and nothing else is done.

Ours always runs on all n rows. The others run on as many as fit `--budget` seconds; their time is then scaled
to n and marked ≈. Time is the median of three runs, or of as many as fit. Extra memory is the peak above the
inputs: resident memory of a process of its own (Linux) or the CUDA allocator's. "Exact" is the share of a
sample of the lookups that equals a float64 search over all codes; ours below 100 % ends with exit code 1.

Measure on an idle machine: ours takes many short parallel steps, and each waits for its slowest thread.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gsq_lightning.quantizers.lookup import CodeIndex, nearest_code
from gsq_lightning.quantizers.lookup.devices import has_kernels


class Shape(NamedTuple):
    dimension: int
    codebook_size: int
    normalized: bool
    codes_on_sphere: bool = False  # also without normalization


# Table 13, each (d, V) once. The paper drops the normalization at d = 1 and 2; its trap has d = 2 with it. Without it
# codes begin on the sphere all the same, where they lie so dense that float32 leaves nearly all points in doubt.
TABLE_13 = [
    Shape(1, 262144, False),
    Shape(2, 262144, True),
    Shape(2, 262144, False),
    Shape(2, 262144, False, codes_on_sphere=True),
    *(Shape(d, 262144, True) for d in (4, 8, 16, 32)),
    *(Shape(d, 8192, True) for d in (4, 8, 16, 32, 64)),
]
QUICK = [Shape(2, 65536, True), Shape(8, 8192, True), Shape(32, 8192, True)]

Search = Callable[[Tensor, Tensor], Tensor]


class Baseline(NamedTuple):
    search: Search
    bytes_per_pair: int  # of the n × V matrices it holds at once


def make_inputs(shape: Shape, rows: int, device: str) -> tuple[Tensor, Tensor]:
    """(n, d) points and (V, d) codes in float32, each on the sphere or Gaussian (uniform in [-1, 1] at d = 1)."""
    generator = torch.Generator().manual_seed(0)
    drawn = []
    on_sphere = (shape.normalized, shape.normalized or shape.codes_on_sphere)
    for count, normalized in zip((rows, shape.codebook_size), on_sphere, strict=True):
        if shape.dimension == 1:
            drawn.append(torch.rand(count, 1, generator=generator) * 2 - 1)
            continue
        values = torch.randn(count, shape.dimension, generator=generator)
        drawn.append(torch.nn.functional.normalize(values, dim=1) if normalized else values)
    return drawn[0].to(device), drawn[1].to(device)


def ours(shape: Shape) -> Search:
    def search(points: Tensor, codes: Tensor) -> Tensor:
        return nearest_code(points, codes, unit_norm=shape.normalized)

    return search


def expanded(points: Tensor, codes: Tensor) -> Tensor:
    distance = points.pow(2).sum(dim=1, keepdim=True) + codes.pow(2).sum(dim=1) - 2 * points @ codes.t()
    return distance.argmin(dim=1)


def by_cdist(points: Tensor, codes: Tensor) -> Tensor:
    return torch.cdist(points, codes).argmin(dim=1)


def library(shape: Shape, codes: Tensor) -> Search | None:
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:
        return None
    quantizer = VectorQuantize(dim=shape.dimension, codebook_size=shape.codebook_size, use_cosine_sim=shape.normalized)
    quantizer = quantizer.to(codes.device).eval()
    quantizer._codebook.embed.data.copy_(codes[None])

    @torch.no_grad()
    def search(points: Tensor, codes: Tensor) -> Tensor:
        return quantizer(points[None])[1][0]

    return search


def flash_kmeans() -> Search | None:
    try:
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton
    except ImportError:
        return None

    def search(points: Tensor, codes: Tensor) -> Tensor:
        return euclid_assign_triton(points[None], codes[None], points.square().sum(dim=1)[None])[0].long()

    return search


def graphed(search: Search, points: Tensor, codes: Tensor) -> Search:
    """The same, recorded once on these very tensors and replayed."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        search(points, codes)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        index = search(points, codes)

    def replay(points: Tensor, codes: Tensor) -> Tensor:
        graph.replay()
        return index

    return replay


def baselines(shape: Shape, codes: Tensor, with_cdist: bool) -> dict[str, Baseline]:
    found = {"expanded": Baseline(expanded, 12)}  # the sum, the product, twice the product
    from_library = library(shape, codes)
    if from_library is not None:
        found["library"] = Baseline(from_library, 20)  # distances and a one-hot matrix of int64 and float32
    from_kmeans = flash_kmeans() if codes.is_cuda else None
    if from_kmeans is not None:
        found["flash-kmeans"] = Baseline(from_kmeans, 1)
    if with_cdist:
        found["cdist"] = Baseline(by_cdist, 8)
    return found


def free_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def rows_at_once(baseline: Baseline, codebook_size: int, device: str) -> int:
    return max(1, int(0.6 * free_memory(device)) // (baseline.bytes_per_pair * codebook_size))


def in_chunks(search: Search, rows: int) -> Search:
    def chunked(points: Tensor, codes: Tensor) -> Tensor:
        return torch.cat([search(part, codes) for part in points.split(rows)])

    return chunked


def seconds(search: Search, points: Tensor, codes: Tensor) -> float:
    if points.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    search(points, codes)
    if points.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


class Timing(NamedTuple):
    seconds: float  # for all n rows
    rows: int  # that were run


def measure_time(search: Search, points: Tensor, codes: Tensor, budget: float, whole: bool = False) -> Timing:
    first = min(len(points), 128)
    seconds(search, points[:first], codes)  # warm-up: imports, thread pools, Triton's compiler
    rows = len(points)
    if not whole:
        per_row = seconds(search, points[:first], codes) / first
        rows = max(first, min(rows, int(budget / per_row)))
    runs = [seconds(search, points[:rows], codes)]
    while len(runs) < 3 and sum(runs) + runs[0] < budget:
        runs.append(seconds(search, points[:rows], codes))
    return Timing(statistics.median(runs) * len(points) / rows, rows)


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure_peak(search: Search, points: Tensor, codes: Tensor) -> int:
    """Bytes above what is held before the call."""
    search(points[:2], codes[:64] if search is expanded else codes)  # libraries loaded, pools started
    if points.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        search(points, codes)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed would hide new use
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    search(points, codes)
    return resident("VmHWM") - before


def peaks_in_own_process(shape: Shape, rows: dict[str, int], arguments: argparse.Namespace) -> dict[str, int]:
    """Peak of each method in bytes, for as many rows as given; empty where the system cannot tell."""
    if arguments.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        return {}
    request = json.dumps({"shape": shape, "rows": rows, "device": arguments.device})
    command = [sys.executable, __file__, "--peaks", request]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def print_peaks(request: str) -> None:
    asked = json.loads(request)
    shape = Shape(*asked["shape"])
    points, codes = make_inputs(shape, max(asked["rows"].values()), asked["device"])
    searches = {"ours": ours(shape)}
    searches |= {name: baseline.search for name, baseline in baselines(shape, codes, True).items()}
    peaks = {name: measure_peak(searches[name], points[:rows], codes) for name, rows in asked["rows"].items()}
    print(json.dumps(peaks))


def exact_share(index: Tensor, points: Tensor, codes: Tensor) -> float:
    """Share of `index` that a float64 search over all codes finds too."""
    if points.is_cuda:
        return (index == nearest_code(points, codes, "brute")).double().mean().item()
    points, codes = points.double().cpu(), codes.double().cpu()
    exact = torch.stack([(point - codes).square_().sum(dim=1).argmin() for point in points])
    return (index.cpu() == exact).double().mean().item()


def float64_search(codes: Tensor) -> Callable[[Tensor], Tensor]:
    """Over all codes; on a GPU by one kernel, which stores no distances."""
    if not has_kernels(codes.device):
        return lambda points: nearest_code(points, codes, "brute")
    from gsq_lightning.quantizers.lookup.scores import to_columns
    from gsq_lightning.quantizers.lookup.triton import Float64Search

    search = Float64Search(to_columns(codes))

    def nearest(points: Tensor) -> Tensor:
        everywhere = torch.ones(len(points), dtype=torch.bool, device=points.device)
        return search.everywhere(to_columns(points), everywhere, torch.zeros_like(everywhere, dtype=torch.int64))

    return nearest


def count_mismatches(shape: Shape, lookups: int, device: str) -> int:
    """Of lookups of random points in batches of 131,072, how many differ from the float64 search."""
    _, codes = make_inputs(shape, 1, device)
    index, generator = CodeIndex(codes, unit_norm=shape.normalized), torch.Generator(device).manual_seed(1)
    search = float64_search(codes)
    first = torch.randn(4096, shape.dimension, generator=generator, device=device)
    assert torch.equal(search(first), nearest_code(first, codes, "brute"))
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    for start in range(0, lookups, 131072):
        points = torch.randn(min(131072, lookups - start), shape.dimension, generator=generator, device=device)
        if shape.normalized:
            points = torch.nn.functional.normalize(points, dim=1)
        wrong += (index.query(points) != search(points)).sum()
    return int(wrong)


def milliseconds(timing: Timing | None, rows: int) -> str:
    if timing is None:
        return "–"
    return f"{'≈ ' if timing.rows < rows else ''}{timing.seconds * 1e3:,.3g}"


def compare(shape: Shape, rows: int, arguments: argparse.Namespace) -> float:
    """Prints one line of the table; returns the exact share of ours."""
    points, codes = make_inputs(shape, rows, arguments.device)
    rivals = baselines(shape, codes, arguments.cdist)
    names = rival_names(arguments)
    method = CodeIndex(codes, unit_norm=shape.normalized, num_points=rows).method
    sample = min(rows, max(32, 2**26 // codes.numel()))

    time_ours = measure_time(ours(shape), points, codes, arguments.budget, whole=True)
    times: dict[str, Timing] = {}
    shares = {"ours": exact_share(ours(shape)(points, codes)[:sample], points[:sample], codes)}
    fitting: dict[str, int] = {}
    for name, rival in rivals.items():
        fitting[name] = rows_at_once(rival, shape.codebook_size, arguments.device)
        times[name] = measure_time(in_chunks(rival.search, fitting[name]), points, codes, arguments.budget)
        shares[name] = exact_share(rival.search(points[:sample], codes), points[:sample], codes)

    peaks: dict[str, str] = {}
    if not arguments.no_memory:
        # A baseline's matrices grow with its rows: up to 512 are run, the rest is scaled.
        asked = {name: min(rows, fitting[name], 512) for name in rivals}
        for name, peak in peaks_in_own_process(shape, {"ours": rows, **asked}, arguments).items():
            scale = min(rows, fitting[name]) / asked[name] if name in asked else 1.0
            peaks[name] = f"{'≈ ' if scale > 1 else ''}{peak * scale / 2**20:,.0f}"

    cells = [
        str(shape.dimension),
        str(shape.codebook_size),
        f"{rows:,}",
        "sphere" if shape.normalized else "no norm, at the start" if shape.codes_on_sphere else "no norm",
        method,
        milliseconds(time_ours, rows),
        *(milliseconds(timing, rows) for timing in on_cuda(shape, points, codes, method, arguments)),
        *(milliseconds(times.get(name), rows) for name in names),
        *(f"{times[name].seconds / time_ours.seconds:,.1f}×" if name in times else "–" for name in names),
        *(peaks.get(name, "–") for name in ["ours", *names]),
        *(f"{shares[name]:.1%}" if name in shares else "–" for name in ["ours", *names]),
    ]
    print("| " + " | ".join(cells) + " |", flush=True)
    if any(fitting[name] < rows for name in rivals):
        limits = ", ".join(f"{name} {fitting[name]:,}" for name in rivals if fitting[name] < rows)
        print(f"memory holds fewer than {rows:,} rows × {shape.codebook_size} codes: {limits}", file=sys.stderr)
    return shares["ours"]


def rival_names(arguments: argparse.Namespace) -> list[str]:
    return [
        *("expanded", "library"),
        *(["flash-kmeans"] if arguments.device == "cuda" else []),
        *(["cdist"] if arguments.cdist else []),
    ]


def on_cuda(
    shape: Shape, points: Tensor, codes: Tensor, method: str, arguments: argparse.Namespace
) -> list[Timing | None]:
    """Ours with its index kept, and as a CUDA graph, which takes a method that waits for nothing."""
    if not points.is_cuda:
        return []
    index = CodeIndex(codes, unit_norm=shape.normalized)
    kept = measure_time(lambda points, _: index.query(points), points, codes, arguments.budget, whole=True)
    if method != "triton":
        return [kept, None]
    replay = graphed(ours(shape), points, codes)
    return [kept, measure_time(replay, points, codes, arguments.budget, whole=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Nearest-code lookup: speed, memory, exactness.")
    parser.add_argument("--n", type=int, nargs="+", default=[8192, 131072], help="numbers of lookups")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", type=int, nargs=2, action="append", metavar=("D", "V"), help="only these (d, V)")
    parser.add_argument("--budget", type=float, default=5.0, help="seconds for each time measured")
    parser.add_argument("--quick", action="store_true", help="three small shapes, 2,048 lookups, 0.5 s each")
    parser.add_argument("--cdist", action="store_true", help="torch.cdist as well")
    parser.add_argument("--no-memory", action="store_true", help="skip peak memory (it starts a process each)")
    parser.add_argument("--mismatches", type=int, metavar="N", help="compare N lookups with float64, no times")
    parser.add_argument("--peaks", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peaks is not None:
        print_peaks(arguments.peaks)
        return 0

    shapes = QUICK if arguments.quick else TABLE_13
    if arguments.quick:
        arguments.n, arguments.budget = [2048], 0.5
    if arguments.shape is not None:
        shapes = [shape for shape in TABLE_13 if [shape.dimension, shape.codebook_size] in arguments.shape]
        if not shapes:
            known = ", ".join(f"{shape.dimension} {shape.codebook_size}" for shape in TABLE_13)
            parser.error(f"--shape must name (d, V) from: {known}")

    if arguments.mismatches is not None:
        print("| d | V | lookups | mismatches |\n|---|---|---|---|")
        found = [count_mismatches(shape, arguments.mismatches, arguments.device) for shape in shapes]
        for shape, wrong in zip(shapes, found, strict=True):
            print(f"| {shape.dimension} | {shape.codebook_size} | {arguments.mismatches:,} | {wrong} |")
        return 1 if any(found) else 0

    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {device}, budget {arguments.budget} s\n")
    names = rival_names(arguments)
    header = ["d", "V", "n", "inputs", "ours: method", "ours, ms", *(f"{name}, ms" for name in names)]
    if arguments.device == "cuda":
        header[6:6] = ["index kept, ms", "CUDA graph, ms"]
    header += [f"{name} / ours" for name in names]
    header += [f"{name}, MiB" for name in ["ours", *names]] + [f"{name}, exact" for name in ["ours", *names]]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    shares = [compare(shape, rows, arguments) for rows in arguments.n for shape in shapes]
    if min(shares) < 1.0:
        print("ours differs from the float64 search", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
