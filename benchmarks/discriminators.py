"""What the discriminators cost: arithmetic of a training step, and images per second.

    python benchmarks/discriminators.py                  # operations alone; the machine may be busy
    python benchmarks/discriminators.py --time           # images per second too, on two idle cores
    python benchmarks/discriminators.py --time --device cuda --batch 32

A step is what training does: logits of the reconstruction and the gradient in its pixels, for the tokenizer; logits of
both images and the gradients in the weights of the discriminator. Weights are random; the arithmetic is the same.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from gsq_lightning.discriminators import (
    DINODiscriminator,
    Discriminator,
    PatchDiscriminator,
    ProjectedDiscriminator,
    StyleGANDiscriminator,
)


class Case(NamedTuple):
    """A discriminator, and the side of the images that it is given."""

    name: str
    discriminator: Discriminator
    size: int


CASES = [
    Case("DD at 518²", DINODiscriminator("random", input_size=518), 256),
    Case("DD at 224²", DINODiscriminator("random", input_size=224), 256),
    Case("projected", ProjectedDiscriminator("random"), 256),
    Case("projected", ProjectedDiscriminator("random"), 224),
    Case("projected", ProjectedDiscriminator("random"), 64),
    Case("NLD", PatchDiscriminator(), 256),
    Case("SGD", StyleGANDiscriminator(), 256),
]


def step(discriminator: Discriminator, image: torch.Tensor) -> None:
    """Gradients of the tokenizer's adversarial loss in pixels, and of the discriminator's in its weights."""
    reconstruction = image.clone().requires_grad_()
    discriminator.requires_grad_(False)
    discriminator(reconstruction).mean().backward()
    discriminator.requires_grad_(True)
    real, fake = discriminator.forward_pair(image, reconstruction.detach())
    (fake.mean() - real.mean()).backward()


def operations(case: Case) -> float:
    """Multiplications and additions of a step, in units of 1e9 for one image."""
    counter = FlopCounterMode(display=False)
    with counter:
        step(case.discriminator, torch.rand(2, 3, case.size, case.size) * 2 - 1)
    return counter.get_total_flops() / 2 / 1e9


def images_per_second(case: Case, batch: int, device: torch.device, rounds: int) -> float:
    """Of steps, the median of several."""
    image = torch.rand(batch, 3, case.size, case.size, device=device) * 2 - 1
    discriminator = case.discriminator.to(device)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            step(discriminator, image)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return batch / statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="measure images per second too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    print("| discriminator | images | weights | 10⁹ operations per image and step | images per second |")
    print("|---|---|---|---|---|")
    for case in CASES:
        case.discriminator.load()
        weights = sum(weight.numel() for weight in case.discriminator.parameters())
        work = operations(case)
        speed = "–"
        if arguments.time:
            device = torch.device(arguments.device)
            speed = f"{images_per_second(case, arguments.batch, device, arguments.rounds):.3g}"
        print(f"| {case.name} | {case.size}² | {weights:,} | {work:.4g} | {speed} |", flush=True)


if __name__ == "__main__":
    main()
