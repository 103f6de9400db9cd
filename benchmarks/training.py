"""Training step: images per second of this library's way of working against the usual one, in one run.

    python benchmarks/training.py                     # a small model on the CPU
    python benchmarks/training.py --device cuda       # f8 at 256², batch 16, bf16

"usual" is how the paper's reference works: a second batch and a second pass of the autoencoder, with its graph, for the
discriminator; its input at 518²; channels first; nothing compiled; optimizers that loop over the weights.
The others switch to this library's way one thing at a time, each row keeping those above it. All networks have random
weights; the arithmetic is the same. Rows take turns, so that a change of the machine's speed meets all of them.
"""

import argparse
import statistics
import time
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer
from gsq_lightning.discriminators import DifferentiableAugmentation, DINODiscriminator
from gsq_lightning.losses import LPIPS, discriminator_loss, generator_loss

ADVERSARIAL_WEIGHT = 0.1
CLIP_NORM = 2.0


class Way(NamedTuple):
    """How a step is done."""

    name: str
    one_batch: bool = True
    fused: bool = True
    channels_last: bool = True
    small_input: bool = True
    compiled: bool = False


WAYS = [
    Way("usual", one_batch=False, fused=False, channels_last=False, small_input=False),
    Way("+ one batch for both networks", fused=False, channels_last=False, small_input=False),
    Way("+ fused optimizers", channels_last=False, small_input=False),
    Way("+ channels last (f8.yaml with model.channels_last)", small_input=False),
    Way("+ discriminator at its smaller input", compiled=False),
    Way("+ compiled (f8.yaml + fast.yaml)", compiled=True),
]


class Trainee:
    """Networks and optimizers of one way, and its step."""

    def __init__(self, way: Way, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.way = way
        self.device = torch.device(arguments.device)
        groups = 32 if arguments.base_channels % 32 == 0 else 8
        self.tokenizer = GSQTokenizer(
            GroupedSphericalQuantizer(8, 8192),
            base_channels=arguments.base_channels,
            encoder_blocks=arguments.blocks,
            decoder_blocks=arguments.blocks,
            norm_groups=groups,
        )
        sizes = arguments.discriminator_sizes
        self.discriminator = DINODiscriminator(
            weights="random",
            input_size=sizes[1] if way.small_input else sizes[0],
            augmentation=DifferentiableAugmentation(),
        )
        self.perceptual = LPIPS(weights="random")
        for network in (self.discriminator, self.perceptual):
            network.load()
        for module in (self.tokenizer, self.discriminator, self.perceptual):
            module.to(self.device)
            if way.channels_last:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizers = [
            torch.optim.AdamW(
                network.parameters(),
                lr=2e-4,
                betas=(0.9, 0.99),
                weight_decay=0.05,
                fused=way.fused or None,
                foreach=None if way.fused else False,
            )
            for network in (self.tokenizer, self.discriminator)
        ]
        if way.compiled:
            self.tokenizer.encoder.compile()
            self.tokenizer.decoder.compile()

    def step(self, image: Tensor, second_image: Tensor) -> None:
        if self.way.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext():
            output = self.tokenizer.encode(image)
            reconstruction = self.tokenizer.decode(output.quantized)
            self.discriminator.requires_grad_(False)
            adversarial = generator_loss(self.discriminator(reconstruction), "non_saturating")
            self.discriminator.requires_grad_(True)
            loss = (reconstruction.float() - image).square().mean() + output.loss
            loss = loss + self.perceptual(reconstruction, image) + ADVERSARIAL_WEIGHT * adversarial
        self._update(loss, self.tokenizer, self.optimizers[0])
        with torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext():
            if not self.way.one_batch:
                image = second_image
                reconstruction = self.tokenizer(image)
            real, fake = self.discriminator.forward_pair(image, reconstruction.detach())
            loss = discriminator_loss(real, fake, "hinge")
        self._update(loss, self.discriminator, self.optimizers[1])

    def _update(self, loss: Tensor, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()


def seconds_of_step(trainee: Trainee, image: Tensor) -> float:
    if trainee.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    trainee.step(image, image.flip(0))
    if trainee.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--image_size", type=int, help="default: 256 on CUDA, 64 elsewhere")
    parser.add_argument("--batch", type=int, help="default: 16 on CUDA, 4 elsewhere")
    parser.add_argument("--base_channels", type=int, help="default: 128 on CUDA, 32 elsewhere")
    parser.add_argument("--blocks", type=int, help="default: 2 on CUDA, 1 elsewhere")
    parser.add_argument(
        "--discriminator_sizes",
        type=int,
        nargs=2,
        help="usual and smaller input; default: 518 224 on CUDA, 126 56 else",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each way")
    arguments = parser.parse_args()
    cuda = arguments.device.startswith("cuda")
    for name, on_cuda, elsewhere in (
        ("image_size", 256, 64),
        ("batch", 16, 4),
        ("base_channels", 128, 32),
        ("blocks", 2, 1),
        ("discriminator_sizes", [518, 224], [126, 56]),
    ):
        if getattr(arguments, name) is None:
            setattr(arguments, name, on_cuda if cuda else elsewhere)

    shape = (arguments.batch, 3, arguments.image_size, arguments.image_size)
    image = torch.rand(shape, device=arguments.device) * 2 - 1
    trainees = [Trainee(way, arguments) for way in WAYS]
    for trainee in trainees:
        for _ in range(3 if cuda else 1):
            trainee.step(image, image.flip(0))  # warm up, compile
    times: list[list[float]] = [[] for _ in trainees]
    for _ in range(arguments.rounds):
        for trainee, measured in zip(trainees, times, strict=True):
            measured.append(seconds_of_step(trainee, image))

    where = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{where}, torch {torch.__version__}; batch {arguments.batch} at {arguments.image_size}²,")
    print(f"base_channels {arguments.base_channels}, discriminator at {arguments.discriminator_sizes}\n")
    print("| way | images per second | × usual |")
    print("|---|---|---|")
    medians = [statistics.median(measured) for measured in times]
    for way, median in zip(WAYS, medians, strict=True):
        print(f"| {way.name} | {arguments.batch / median:.2f} | {medians[0] / median:.2f} |")
    if cuda:
        print(f"\npeak memory with all of them loaded: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
