"""The quickstart's training step on a CPU: what each lever brings, as a ratio in one run.

    OMP_NUM_THREADS=1 python benchmarks/cpu_step.py
    OMP_NUM_THREADS=1 python benchmarks/cpu_step.py --rounds 20 --batch 32

Losses, optimizers and average are those of quickstart.yaml once its discriminator is trained, the network is as small
(widths 8, 16, 64, 128); images are noise. Each row keeps what stands above it; losses and gradients stay the same, but
for the last. Time is that of the process (time.process_time), one thread. Rows take turns, in alternating order, and
each ratio is the median of those within a turn, so that other work on the machine meets all of them.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer
from gsq_lightning.discriminators import ProjectedDiscriminator
from gsq_lightning.losses import EfficientNetLoss, LossWeights, Objective
from gsq_lightning.networks.layers import NearestUpsample
from gsq_lightning.optim import PaperAdamW
from gsq_lightning.optim.ema import EMA

CLIP_NORM = 2.0
LATE = 1000  # a step in which all losses count


class Way(NamedTuple):
    """How a step is done."""

    name: str
    one_trunk: bool = True
    one_upsampling: bool = True
    channels_last: bool = True
    bfloat16: bool = False


WAYS = [
    Way("usual", False, False, False),
    Way("+ loss and discriminator share a trunk", True, False, False),
    Way("+ upsampling and its convolution in one", True, True, False),
    Way("+ channels last (model.channels_last)", True, True, True),
    Way("+ bfloat16 (trainer.precision bf16-mixed)", True, True, True, True),
]


class UpsampleThenConvolve(torch.nn.Module):
    """What `NearestUpsample` is made of, one after the other."""

    def __init__(self, both: NearestUpsample) -> None:
        super().__init__()
        self.conv = both.conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Trainee:
    """Networks and optimizers of one way, and its step."""

    def __init__(self, way: Way) -> None:
        torch.manual_seed(0)
        self.way = way
        quantizer = GroupedSphericalQuantizer(32, 512, num_groups=8)
        self.tokenizer = GSQTokenizer(quantizer, (1, 2, 8, 16), 8, 1, 1, upsampling="nearest", norm_groups=2)
        blocks = self.tokenizer.decoder.blocks
        for number, block in enumerate(blocks):
            if isinstance(block, NearestUpsample) and not way.one_upsampling:
                blocks[number] = UpsampleThenConvolve(block)
        self.discriminator, perceptual = ProjectedDiscriminator(), EfficientNetLoss()
        if not way.one_trunk:
            self.discriminator.load()
        self.objective = Objective(LossWeights(perceptual=0.03, adversarial=0.003), self.discriminator, perceptual)
        self.objective.load()
        self.ema = EMA(self.tokenizer, 0.98)
        if way.channels_last:
            for module in (self.tokenizer, self.discriminator, perceptual, self.ema):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.networks = (self.tokenizer, self.discriminator)
        self.optimizers = [PaperAdamW(network.parameters(), lr=1e-3) for network in self.networks]

    def step(self, image: Tensor) -> float:
        """Processor time, in seconds."""
        start = time.process_time()
        if self.way.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with self.objective.within_step():
            with torch.autocast("cpu", torch.bfloat16, enabled=self.way.bfloat16):
                output = self.tokenizer.encode(image)
                reconstruction = self.tokenizer.decode(output.quantized).float()
                last_layer = self.tokenizer.decoder.last_layer
                loss = self.objective.generator(image, output, reconstruction, last_layer, LATE)
            loss.total.backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.way.bfloat16):
                loss = self.objective.discriminate(image, reconstruction.detach())
            loss.total.backward()
        for network, optimizer in zip(self.networks, self.optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
        self.ema.update(self.tokenizer)
        return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8, help="timed steps of each way")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    image = torch.rand(arguments.batch, 3, 64, 64) * 2 - 1
    trainees = [Trainee(way) for way in WAYS]
    for trainee in trainees:
        trainee.step(image)
    turns: list[list[float]] = []
    for number in range(arguments.rounds):
        order = trainees if number % 2 == 0 else trainees[::-1]
        times = {trainee.way.name: trainee.step(image) for trainee in order}
        turns.append([times[way.name] for way in WAYS])

    capability = torch.backends.cpu.get_cpu_capability()
    print(f"\nCPU ({capability}), 1 thread, torch {torch.__version__}; batch {arguments.batch} at 64²\n")
    print("| way | seconds of processor time | usual / this | smallest and largest |")
    print("|---|---|---|---|")
    for number, way in enumerate(WAYS):
        ratios = [turn[0] / turn[number] for turn in turns]
        median = statistics.median(turn[number] for turn in turns)
        print(f"| {way.name} | {median:.3f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} {max(ratios):.2f} |")


if __name__ == "__main__":
    main()
