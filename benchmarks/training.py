"""Training step: images per second of this library's way of working against the usual one, in one run.

    python benchmarks/training.py                     # a small model on the CPU
    python benchmarks/training.py --device cuda       # f8 at 256², batch 16, bf16
    python benchmarks/training.py --device cuda --recipe f16 --image_size 128 --peak h100
    python benchmarks/training.py --device cuda --profile 30
    python benchmarks/training.py --device cuda --last 3     # in a few minutes

"usual" is how the paper's reference works: a second batch and a second pass of the autoencoder, with its graph, for the
discriminator; its input at 518²; channels first; nothing compiled; optimizers that loop over the weights.
The others switch to this library's way one thing at a time, each row keeping those above it. They are networks,
losses, clipping and optimizers alone. The last row is the product: the recipe with fast.yaml, `TokenizerModule` in a
Trainer, so with the average of the weights, logs, the check of gradients and Lightning's own work, from the start of a
batch to its end; without data loading. All networks have random weights. Rows take turns, so that a change of the
machine's speed meets all of them.

cuDNN tries out its convolutions in all rows, as `trainer.benchmark: true` of the recipes has it, or in none
(`--no-cudnn_benchmark`): a process chooses once for each shape, so that it cannot be a row.

FLOPs are those of a row's own step, counted by torch's FlopCounterMode before anything is compiled, without the lookup;
of the last row those of the row with the same networks, "+ frozen networks compiled".
MFU is their share of the bf16 peak, by its datasheet, of the GPU that `--peak` names. Memory is what a step needs
above all that is loaded. `--profile` shows where the time of the last but one row's step goes, kernel by kernel, and
how long the device is idle.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, TokenizerModule
from gsq_lightning.cli.costs import DEVICES
from gsq_lightning.cli.weights import Objects
from gsq_lightning.discriminators import DifferentiableAugmentation, DINODiscriminator
from gsq_lightning.losses import LPIPS, discriminator_loss, generator_loss
from gsq_lightning.runs.divergence import Divergence

ADVERSARIAL_WEIGHT = 0.1
CLIP_NORM = 2.0


class Way(NamedTuple):
    """How a step is done."""

    name: str = "usual"
    one_batch: bool = False
    fused: bool = False
    channels_last: bool = False
    small_input: bool = False
    looks_once: bool = False
    compiled: bool = False
    compiled_trunks: bool = False
    cuda_graphs: bool = False
    norm_kernels: bool = False


# what each way adds to the one before
LEVERS: list[dict[str, Any]] = [
    {"name": "+ one batch for both networks", "one_batch": True},
    {"name": "+ fused optimizers", "fused": True},
    {"name": "+ channels last (model.channels_last)", "channels_last": True},
    {"name": "+ discriminator at its smaller input", "small_input": True},
    {"name": "+ encoder and decoder compiled", "compiled": True},
    {"name": "+ frozen networks compiled (a recipe with fast.yaml)", "compiled_trunks": True},
    {"name": "+ reconstruction judged once (same_draw)", "looks_once": True},
    {"name": "+ CUDA graphs of what is compiled", "cuda_graphs": True},
    {"name": "+ group norm and SiLU by kernels (a trial, group_norm.py)", "norm_kernels": True},
]
WAYS = list(accumulate(LEVERS, lambda way, lever: way._replace(**lever), initial=Way()))
COMPILED = next(way for way in WAYS if way.compiled_trunks)  # as the product
PRODUCT = "as gsq fit runs it (a recipe with fast.yaml)"
WARM_UP = 3  # steps of the product
RECIPES = {"f8": (1, 2, 2, 4), "f16": (1, 1, 2, 2, 4), "f32": (1, 1, 2, 2, 4, 4)}


class Trainee:
    """Networks and optimizers of one way, and its step."""

    def __init__(self, way: Way, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.way = way
        self.device = torch.device(arguments.device)
        self.tokenizer = GSQTokenizer(
            GroupedSphericalQuantizer(8, 8192),
            channel_multipliers=RECIPES[arguments.recipe],
            base_channels=arguments.base_channels,
            encoder_blocks=arguments.blocks,
            decoder_blocks=arguments.blocks,
            norm_groups=arguments.norm_groups,
        )
        sizes = arguments.discriminator_sizes
        self.discriminator = DINODiscriminator(
            weights="random",
            input_size=sizes[1] if way.small_input else sizes[0],
            augmentation=DifferentiableAugmentation(same_draw=way.looks_once),
        )
        if way.norm_kernels:
            from group_norm import with_kernels  # Triton only where it is used

            with_kernels(self.tokenizer)
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
        self.flops = 0.0  # of a step
        self.memory = 0  # bytes, at most

    def compile(self) -> None:
        mode = "reduce-overhead" if self.way.cuda_graphs else "default"
        if self.way.compiled:
            self.tokenizer.encoder.compile(mode=mode)
            self.tokenizer.decoder.compile(mode=mode)
        if self.way.compiled_trunks:
            for holder in (self.perceptual.network, self.discriminator.trunk):
                assert holder is not None
                holder.network.compile(mode=mode, dynamic=False)

    def prepare(self, image: Tensor) -> None:
        """Counts what a step takes, compiles and warms up."""
        with FlopCounterMode(display=False) as counter:
            self.step(image, image.flip(0))
        self.flops = counter.get_total_flops()
        self.compile()
        for _ in range(3 if image.is_cuda else 1):
            self.step(image, image.flip(0))
        if image.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step(image, image.flip(0))
            self.memory = torch.cuda.max_memory_allocated() - before

    def step(self, image: Tensor, second_image: Tensor) -> None:
        torch.compiler.cudagraph_mark_step_begin()  # nothing of the step before is needed any more
        with self.discriminator.within_step():
            self._step(image, second_image)

    def _step(self, image: Tensor, second_image: Tensor) -> None:
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
    start = time_when_idle()
    trainee.step(image, image.flip(0))
    return time_when_idle() - start


def time_when_idle() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Turns(Callback):
    """Times a Trainer's steps, and before each of them one of every other way.

    Attributes:
        times: seconds of steps, of each way and at last of the Trainer.
        memory: bytes, at most, that a step of the Trainer needs.
    """

    def __init__(self, trainees: Sequence[Trainee], image: Tensor) -> None:
        self.trainees = trainees
        self.image = image
        self.times: list[list[float]] = [[] for _ in range(len(trainees) + 1)]
        self.memory = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= WARM_UP:
            for trainee, times in zip(self.trainees, self.times, strict=False):
                times.append(seconds_of_step(trainee, self.image))
        if self.image.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        self._start = time_when_idle()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= WARM_UP:
            self.times[-1].append(time_when_idle() - self._start)
        if self.image.is_cuda:
            self.memory = torch.cuda.max_memory_allocated() - self._before


def product(arguments: argparse.Namespace) -> TokenizerModule:
    """The module of the recipe with fast.yaml, in the sizes of the other rows."""
    options = [
        *("--config", f"{arguments.recipe}.yaml", "--config", "fast.yaml", "--model.metrics=null"),
        f"--model.tokenizer.base_channels={arguments.base_channels}",
        f"--model.tokenizer.norm_groups={arguments.norm_groups}",
        *(f"--model.tokenizer.{network}_blocks={arguments.blocks}" for network in ("encoder", "decoder")),
        f"--model.discriminator.input_size={arguments.discriminator_sizes[1]}",
        *("--model.discriminator.weights=random", "--model.perceptual_loss.weights=random"),
    ]
    return Objects("plan", options).model


def profile_lines(trainee: Trainee, image: Tensor, rows: int) -> list[str]:
    """The kernels that take longest (on a CPU the operators), and what the rest of a step is."""
    on_gpu = trainee.device.type == "cuda"
    plain = statistics.median(seconds_of_step(trainee, image) for _ in range(3))
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        seconds_of_step(trainee, image)
    times: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if on_gpu == (event.device_type == DeviceType.CUDA):
            times[event.name].append((event.device_time if on_gpu else event.self_cpu_time_total) / 1e6)
    busy = sum(map(sum, times.values()))
    longest = sorted(times.items(), key=lambda item: -sum(item[1]))
    lines = ["| kernel | calls | ms | share of the step |", "|---|---|---|---|"]
    for name, of_kernel in longest[:rows]:
        lines.append(f"| {name[:100]} | {len(of_kernel)} | {sum(of_kernel) * 1e3:.2f} | {sum(of_kernel) / plain:.1%} |")
    others = [time for _, of_kernel in longest[rows:] for time in of_kernel]
    lines.append(f"| others | {len(others)} | {sum(others) * 1e3:.2f} | {sum(others) / plain:.1%} |")
    idle = plain - busy
    lines.append(f"| idle, of {plain * 1e3:.1f} ms unprofiled | | {idle * 1e3:.2f} | {idle / plain:.1%} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recipe", choices=RECIPES, default="f8")
    parser.add_argument("--peak", choices=DEVICES, help="the GPU, for MFU")
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
    parser.add_argument(
        "--cudnn_benchmark",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let cuDNN try out its convolutions, as the recipes do",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each way")
    parser.add_argument("--profile", type=int, metavar="ROWS", help="kernels to list, of the last way")
    parser.add_argument("--last", type=int, metavar="N", help="so many of the ways alone, and the product")
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
    arguments.norm_groups = 32 if arguments.base_channels % 32 == 0 else 8

    torch.backends.cudnn.benchmark = arguments.cudnn_benchmark
    shape = (arguments.batch, 3, arguments.image_size, arguments.image_size)
    image = torch.rand(shape, device=arguments.device) * 2 - 1
    module = product(arguments)  # first, as it fails at once or not at all
    trainees = []
    ways = [way for way in WAYS if cuda or not way.norm_kernels]
    for way in ways if arguments.last is None else ways[-arguments.last :]:
        trainee = Trainee(way, arguments)
        try:
            trainee.prepare(image)
        except RuntimeError as error:  # of the compiler: the other rows are measured all the same
            print(f"{way.name}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        trainees.append(trainee)
    turns = Turns(trainees, image)
    trainer = Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=1,
        precision="bf16-mixed" if cuda else "32-true",
        benchmark=arguments.cudnn_benchmark,
        max_epochs=1,
        callbacks=[Divergence(), turns],  # of `gsq fit` the one that comes to each step
        default_root_dir=tempfile.gettempdir(),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = [image] * (WARM_UP + arguments.rounds)
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]

    where = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{where}, torch {torch.__version__}; batch {arguments.batch} at {arguments.image_size}²,")
    print(f"base_channels {arguments.base_channels}, discriminator at {arguments.discriminator_sizes}\n")
    print("| way | images per second | × the first | GFLOP per image | MFU | GiB of a step |")
    print("|---|---|---|---|---|---|")
    medians = [statistics.median(measured) for measured in turns.times]
    rows = [(trainee.way.name, trainee.flops, trainee.memory) for trainee in trainees]
    flops_of_product = next((trainee.flops for trainee in trainees if trainee.way is COMPILED), 0.0)
    rows.append((PRODUCT, flops_of_product, turns.memory))
    for (name, flops_of_step, bytes_of_step), median in zip(rows, medians, strict=True):
        rate, flops = arguments.batch / median, flops_of_step / arguments.batch
        mfu = f"{rate * flops / DEVICES[arguments.peak].bfloat16:.1%}" if arguments.peak and flops else "–"
        counted = f"{flops / 1e9:.1f}" if flops else "–"
        memory = f"{bytes_of_step / 2**30:.1f}" if cuda else "–"
        print(f"| {name} | {rate:.2f} | {medians[0] / median:.2f} | {counted} | {mfu} | {memory} |")
    if arguments.profile:
        print("", f"{trainees[-1].way.name}:", "", *profile_lines(trainees[-1], image, arguments.profile), sep="\n")


if __name__ == "__main__":
    main()
