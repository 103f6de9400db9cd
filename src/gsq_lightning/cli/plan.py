"""`gsq plan`: what a recipe will take on so many GPUs, counted in seconds without one."""

import argparse
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from gsq_lightning.cli.costs import (
    DEVICES,
    Device,
    Parameters,
    StepCosts,
    count_parameters,
    count_step,
    lookup_seconds,
    without_values,
)
from gsq_lightning.cli.fit import prepare_process
from gsq_lightning.cli.help import unknown_option
from gsq_lightning.cli.messages import OneLineParser, fail, one_line_errors
from gsq_lightning.cli.planned_images import IMAGENET_BYTES, PlannedImages, planned_images
from gsq_lightning.cli.weights import Objects
from gsq_lightning.data.batch import per_device_batch_size
from gsq_lightning.data.datamodule import limited
from gsq_lightning.errors import require
from gsq_lightning.runs.divergence import KEPT_BYTES
from gsq_lightning.training import TokenizerModule

IMAGES_OF_A_WORKER = 900  # per second at 256², JPEG of ImageNet's sizes: measured, benchmarks/RESULTS.md
# Share of an H200's bf16 peak that f8.yaml reached at 256², sixteen images a step: benchmarks/RESULTS.md, "On a GPU"
MEASURED_MFU = {True: 0.206, False: 0.172}  # with encoder and decoder compiled, and not; the frozen networks were not
COMPILED_ACTIVATIONS = 0.47  # of what is kept uncompiled; measured there
USABLE_MEMORY = 0.9  # of a GPU: the rest goes to the CUDA context, NCCL and fragmentation
# FLOPs of a forward pass, twice the multiplications that torchvision's tables of models give
INCEPTION = 2 * 5.71e9  # of an image at 299²
VGG16_AT_224 = 2 * 15.47e9  # in proportion to the pixels
# seconds that a CPU takes to issue an operator to a GPU. Assumed: lookups beside an H200 took some 20 µs for each that
# Python calls (benchmarks/RESULTS.md); those of a backward pass take less.
ISSUE = 10e-6
INCEPTION_METRICS = ("rfid", "rfid_pytorch_fid", "rfid_clean_fid", "rkid")


def plan(arguments: list[str]) -> None:
    """Prints parameters, work, memory, time, data rate and sizes on disk of a training.

    Args:
        arguments: as of `gsq fit`, without that word, and those of the plan.

    Raises:
        SystemExit: with code 2 for bad input.
    """
    parser = OneLineParser(
        prog="gsq plan",
        allow_abbrev=False,
        description="What a recipe takes: parameters, FLOPs, memory, time, data rate. Needs no GPU and no weights.",
        epilog="Options of gsq fit change the recipe: --config f16.yaml --data.global_batch_size 256",
    )
    parser.add_argument("--gpus", type=int, help="by default trainer.devices × trainer.num_nodes; auto is 1")
    parser.add_argument("--device", choices=DEVICES, default="h100", help="by its datasheet; h100 by default")
    parser.add_argument("--mfu", type=float, help="share of the peak; by default what was measured on one H200")
    parser.add_argument("--train_images", type=int, help="by default those of the data, or without any ImageNet's")
    parser.add_argument("--val_images", type=int, help="likewise")
    given, rest = parser.parse_known_args(arguments)
    if unknown := unknown_option(rest):
        fail(unknown)
    prepare_process()
    with one_line_errors("plan"):
        for name in ("gpus", "train_images", "val_images"):
            number = getattr(given, name)
            require(number is None or number >= 1, f"--{name} is {number}; it must be at least 1")
        require(given.mfu is None or 0 < given.mfu <= 1, f"--mfu is {given.mfu}; it must be above 0 and at most 1")
        with quiet():
            lines = lines_of(Objects("plan", rest), given)
        print("\n".join(lines))


@dataclass(frozen=True)
class Plan:
    """A training, and what it is planned for.

    Attributes:
        module: with the networks of training.
        parameters, costs: counted.
        data: its data module.
        trainer: options of the Trainer.
        images: of the data.
        gpus: over all nodes.
        autocast: whether it computes in bfloat16.
        given: options of the plan.
    """

    module: TokenizerModule
    parameters: Parameters
    costs: StepCosts
    data: Any
    trainer: Any
    images: PlannedImages
    gpus: int
    autocast: bool
    given: argparse.Namespace

    @property
    def size(self) -> int:
        """Of the square images, in pixels."""
        return int(self.data.image_size)

    @property
    def batch(self) -> int:
        """Images of a step, over all GPUs and accumulated batches."""
        return int(self.data.global_batch_size)

    @property
    def device(self) -> Device:
        return DEVICES[self.given.device]

    @property
    def mfu(self) -> float:
        """Share of the peak."""
        return self.given.mfu or MEASURED_MFU[self.module.compile_networks]

    @property
    def peak(self) -> float:
        """FLOP per second of a GPU, by its datasheet."""
        return self.device.bfloat16 if self.autocast else self.device.tf32

    @property
    def lookup(self) -> float:
        """Seconds of a step."""
        tokenizer = self.module.tokenizer
        vectors = self.batch / self.gpus * tokenizer.tokens_per_image(self.size, self.size)
        return lookup_seconds(tokenizer.quantizer, vectors, self.device)

    @property
    def operators(self) -> int:
        """That a GPU is issued for a step, by its CPU one after another."""
        return self.costs.operators * self.module.accumulate_batches

    @property
    def step(self) -> float:
        """Seconds: of computing, or of issuing the operators where that takes longer."""
        computing = self.batch * self.costs.flops / (self.mfu * self.peak * self.gpus) + self.lookup
        return max(computing, self.operators * ISSUE)

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.batch / self.step

    @property
    def epoch(self) -> int:
        """Optimizer steps."""
        accumulated = self.module.accumulate_batches
        batches = limited(self.images.train // self.batch * accumulated, self.trainer.limit_train_batches)
        return batches // accumulated

    @property
    def run(self) -> int | None:
        """Steps; None without an end."""
        steps, epochs = self.trainer.max_steps, self.trainer.max_epochs
        ends = [] if steps < 0 else [steps]
        ends += [] if epochs is None or epochs < 0 else [epochs * self.epoch]
        return min(ends, default=None)

    @property
    def validated(self) -> int:
        """Images of a validation."""
        batch = self.data.val_batch_size * self.gpus
        batches = limited(math.ceil(self.images.val / batch), self.trainer.limit_val_batches)
        return min(self.images.val, batches * batch)


def lines_of(objects: Any, given: argparse.Namespace) -> list[str]:
    """The table, at most 80 columns wide.

    Args:
        objects: model, datamodule and the Trainer's options.
        given: of the plan.
    """
    module, data, trainer = objects.model, objects.datamodule, objects.config_init.trainer
    require(hasattr(data, "image_size"), f"{type(data).__name__} has no image_size to plan with")
    gpus = given.gpus or gpus_of(trainer)
    per_device_batch_size(data.global_batch_size, gpus, module.accumulate_batches)  # refuses what does not divide
    images = planned_images(data, given.train_images, given.val_images)
    load_without_weights(module)
    require(
        images.train >= data.global_batch_size,
        f"there are {images.train} training images, fewer than data.global_batch_size {data.global_batch_size}",
    )
    parameters = count_parameters(module)
    autocast = trainer.precision == "bf16-mixed"
    with without_values(module):
        costs = count_step(module, data.image_size, autocast)
    planned = Plan(module, parameters, costs, data, trainer, images, gpus, autocast, given)
    origin = "as f8.yaml on an H200" if given.mfu is None else "--mfu"
    return [
        f"{objects.recipe} on {gpus} × {given.device}",
        *("", "model", *_model(planned)),
        *("", "work", *_work(planned)),
        *("", "memory of a GPU", *_memory(planned)),
        *("", f"time, at {planned.mfu:.1%} of {planned.peak / 1e12:,.0f} TFLOP/s ({origin})", *_time(planned)),
        *("", "data", *_data(planned)),
        *("", "disk", _row("checkpoint", _bytes(parameters.checkpoint(module.ema is not None)), "last.ckpt")),
        *("", f"peaks: {planned.device.source}"),
    ]


def gpus_of(trainer: Any) -> int:
    """Over all nodes, of the options of a Trainer; "auto" and -1, those of a machine that is not known, are 1."""
    devices = trainer.devices
    if isinstance(devices, str) and "," in devices:  # indices, such as 0,1
        devices = devices.strip(",").split(",")
    of_a_node = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 1
    return of_a_node * int(trainer.num_nodes)


def load_without_weights(module: TokenizerModule) -> None:
    """The networks of training, on the meta device, with the weights that they would be tested with."""
    for network in (module.discriminator, module.perceptual_loss):
        if hasattr(network, "weights"):
            network.weights = "random"  # type: ignore[union-attr]
    with torch.device("meta"):
        module.load_training_networks()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that random weights make."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _model(planned: Plan) -> Iterator[str]:
    tokenizer, parameters, size = planned.module.tokenizer, planned.parameters, planned.size
    side = size // tokenizer.downsample_factor
    bits = tokenizer.bits_per_image(size, size)
    yield _row("tokenizer", f"{parameters.tokenizer / 1e6:.2f} M parameters", "with the codebook")
    if parameters.discriminator:
        yield _row("discriminator", f"{parameters.discriminator / 1e6:.2f} M parameters", "without its frozen trunk")
    tokens = tokenizer.tokens_per_image(size, size)
    yield _row("tokens", f"{tokens:,} per image", f"{side} × {side} × {tokenizer.quantizer.num_groups}")
    yield _row("bits", f"{bits:,.0f} per image", f"{bits / size**2:.4f} per pixel")


def _work(planned: Plan) -> Iterator[str]:
    costs = planned.costs
    forward = f"{costs.encoder / 1e9:,.1f} + {costs.decoder / 1e9:,.1f} GFLOP"
    yield _row("encoder + decoder", forward, "forward, one image")
    yield _row("tokenizer's step", _flops(costs.tokenizer), "forward and backward, with losses")
    if costs.discriminator:
        yield _row("discriminator's", _flops(costs.discriminator), "forward and backward")
    yield _row("a step", _flops(costs.flops * planned.batch), f"of {planned.batch} images")


def _memory(planned: Plan) -> Iterator[str]:
    module, memory = planned.module, planned.device.memory
    images = per_device_batch_size(planned.batch, planned.gpus, module.accumulate_batches)
    fixed = planned.parameters.memory(module.ema is not None, planned.gpus, planned.autocast)
    of_an_image = planned.costs.memory * (COMPILED_ACTIVATIONS if module.compile_networks else 1)
    largest = max(0, int((USABLE_MEMORY * memory - fixed - KEPT_BYTES) / of_an_image))
    yield _row("weights and states", _bytes(fixed), "two moments, EMA, frozen networks too")
    yield _row("images kept", _bytes(KEPT_BYTES), "at most; they explain skipped steps")
    yield _row("activations", _bytes(images * of_an_image), f"{images} images of {_bytes(of_an_image)} each")
    yield _row("largest batch", f"{largest} images", f"in {USABLE_MEMORY:.0%} of {_bytes(memory)}")
    if images > largest:
        divisors = (times for times in range(2, images + 1) if images % times == 0)
        times = next((times for times in divisors if images // times <= largest), images)
        yield _row("", "does not fit", f"--model.accumulate_batches {module.accumulate_batches * times}")


def _time(planned: Plan) -> Iterator[str]:
    gpus, step = planned.gpus, planned.step
    yield _row("images", f"{planned.rate:,.0f} per second", f"{planned.rate / gpus:,.1f} on each GPU")
    yield _row("a step", f"{step * 1e3:,.1f} ms", f"of {planned.batch} images")
    note = f"to issue {planned.operators:,}, {ISSUE * 1e6:.0f} µs each (assumed)"
    yield _row("its operators", f"{planned.operators * ISSUE * 1e3:,.1f} ms", note)
    yield _row("its lookup", f"{planned.lookup * 1e3:,.2f} ms", f"{planned.lookup / step:.1%}, at the limit of the GPU")
    epoch, run = planned.epoch, planned.run
    yield _row("an epoch", f"{epoch:,} steps", _duration(epoch * step))
    if run is not None:
        hours = run * step * gpus / 3600
        yield _row("the run", f"{run:,} steps", f"{run / max(1, epoch):,.1f} epochs: {_duration(run * step)}")
        yield _row("", f"{hours:,.0f} GPU-hours" if hours >= 10 else f"{hours:.2f} GPU-hours", "")
    if planned.validated:
        names = getattr(planned.module.metrics, "names", [])
        flops = planned.costs.encoder + planned.costs.decoder + _metric_flops(names, planned.size)
        seconds = planned.validated * flops / (planned.mfu * planned.peak * gpus)
        yield _row("a validation", _duration(seconds), f"of {planned.validated:,} images, forward alone")


def _data(planned: Plan) -> Iterator[str]:
    images = planned.images
    yield _row("training images", f"{images.train:,}", images.origin)
    if images.file_bytes is not None:
        mean = "ImageNet's mean" if images.file_bytes == IMAGENET_BYTES else "their mean"
        traffic = f"{planned.rate * images.file_bytes / 1e6:,.0f} MB/s"
        yield _row("to be read", traffic, f"{images.file_bytes / 1e3:,.0f} kB an image, {mean}")
    workers = math.ceil(planned.rate / planned.gpus / IMAGES_OF_A_WORKER)
    yield _row("workers", f"{workers:,} for each GPU", f"of {IMAGES_OF_A_WORKER} images/s, a core each")


def _metric_flops(names: list[str], size: int) -> float:
    """Of the large networks of metrics, for one image and its reconstruction."""
    flops = 2 * VGG16_AT_224 * (size / 224) ** 2 if "lpips_vgg" in names else 0.0
    if any(name in names for name in INCEPTION_METRICS):
        return flops + 2 * INCEPTION
    return flops + (INCEPTION if "inception_score" in names else 0.0)


def _row(name: str, value: str, note: str) -> str:
    return f"  {name:<19}{value:<22}{note}".rstrip()


def _flops(count: float) -> str:
    for unit, name in ((1e12, "TFLOP"), (1e9, "GFLOP")):
        if count >= 10 * unit:
            return f"{count / unit:,.0f} {name}"
    return f"{count / 1e9:,.1f} GFLOP"


def _bytes(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
