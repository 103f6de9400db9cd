"""Codebook gradients, dense or sparse: time of a backward pass and an optimizer step for the codebook alone.

    python benchmarks/codebook_gradient.py [--device cuda]

dense: `F.embedding`, fused AdamW over all rows. sparse: `F.embedding(sparse=True)`, SparseAdam over the rows in use; it
has no weight decay, and AdamW refuses sparse gradients. Medians; both take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

SHAPES = [(2, 262144), (8, 262144), (16, 262144), (8, 8192), (64, 8192)]


def step(dimension: int, size: int, lookups: int, device: str, sparse: bool) -> Callable[[], None]:
    codebook = torch.nn.Parameter(torch.randn(size, dimension, device=device))
    target = torch.randn(lookups, dimension, device=device)
    indices = torch.randint(size, (lookups,), device=device)
    optimizer: torch.optim.Optimizer
    if sparse:
        optimizer = torch.optim.SparseAdam([codebook], lr=1e-4)
    else:
        optimizer = torch.optim.AdamW([codebook], lr=1e-4, fused=True)

    def run() -> None:
        F.mse_loss(F.embedding(indices, codebook, sparse=sparse), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def milliseconds(run: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lookups", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(f"{arguments.lookups} lookups, {arguments.device}, torch {torch.__version__}\n")
    print("| d | V | dense, ms | sparse, ms | sparse / dense |")
    print("|---|---|---|---|---|")
    for dimension, size in SHAPES:
        runs = [step(dimension, size, arguments.lookups, arguments.device, sparse) for sparse in (False, True)]
        times: list[list[float]] = [[], []]
        for _ in range(arguments.rounds):
            for run, measured in zip(runs, times, strict=True):
                measured.append(milliseconds(run, arguments.device))
        dense, sparse = (statistics.median(measured[2:]) for measured in times)
        print(f"| {dimension} | {size} | {dense:.1f} | {sparse:.1f} | {sparse / dense:.1f} |")


if __name__ == "__main__":
    main()
