"""What a training step takes: floating-point operations and memory, counted without a GPU.

The step runs as in training, over tensors that have shapes and no values (FakeTensorMode). A FLOP is a multiplication
or an addition, of matrix products, convolutions and attention alone; the rest is limited by memory traffic and counts
in none of the usual figures. The lookup of the nearest code is not run, see `lookup_seconds`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gsq_lightning.quantizers import GroupedSphericalQuantizer, Quantizer, QuantizerOutput
from gsq_lightning.quantizers.lookup import choose_method
from gsq_lightning.quantizers.lookup.devices import TENSOR_CORES_FROM
from gsq_lightning.training import TokenizerModule

TERA, GIGA = 1e12, 2**30


class Device(NamedTuple):
    """A GPU by its datasheet, dense figures.

    Attributes:
        bfloat16, tf32: tensor cores, FLOP per second; of float16 as of bfloat16.
        float32: ordinary units, FLOP per second.
        memory: bytes.
        source: where the figures are from.
    """

    bfloat16: float
    tf32: float
    float32: float
    memory: float
    source: str


_HOPPER = (989.4 * TERA, 494.7 * TERA, 66.9 * TERA)
_AMPERE = (312 * TERA, 156 * TERA, 19.5 * TERA)
_NVIDIA = "https://www.nvidia.com/en-us/data-center"
DEVICES = {
    "h100": Device(*_HOPPER, 80 * GIGA, f"{_NVIDIA}/h100/"),  # SXM
    "h200": Device(*_HOPPER, 141 * GIGA, f"{_NVIDIA}/h200/"),
    "b200": Device(2250 * TERA, 1125 * TERA, 75 * TERA, 180 * GIGA, f"{_NVIDIA}/hgx/"),
    "a100": Device(*_AMPERE, 80 * GIGA, f"{_NVIDIA}/a100/"),
    "a100-40gb": Device(*_AMPERE, 40 * GIGA, f"{_NVIDIA}/a100/"),
    "l40s": Device(362 * TERA, 183 * TERA, 91.6 * TERA, 48 * GIGA, f"{_NVIDIA}/l40s/"),
    "rtx4090": Device(
        *(165.2 * TERA, 82.6 * TERA, 82.6 * TERA, 24 * GIGA),
        "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
    ),
}


class StepCosts(NamedTuple):
    """What a training step takes, for one image.

    Attributes:
        encoder, decoder: FLOPs of their forward pass.
        tokenizer, discriminator: FLOPs of each network's step, forward and backward.
        kept: bytes that the larger of the two steps keeps for its backward pass.
        largest: bytes of the largest tensor among them.
        operators: that a step issues to the device, for any number of images; without the optimizers'.
    """

    encoder: float
    decoder: float
    tokenizer: float
    discriminator: float
    kept: float
    largest: float
    operators: int

    @property
    def flops(self) -> float:
        return self.tokenizer + self.discriminator

    @property
    def memory(self) -> float:
        """Bytes: what is kept, and three tensors that a backward pass has at hand."""
        return self.kept + 3 * self.largest


class Parameters(NamedTuple):
    """How many parameters a module has.

    Attributes:
        tokenizer, discriminator: all parameters of each; the codebook is the tokenizer's.
        trained: parameters of both that get gradients.
        frozen: bytes of the pretrained networks of losses and discriminator.
    """

    tokenizer: int
    discriminator: int
    trained: int
    frozen: int

    def memory(self, averages: bool, ranks: int, autocast: bool) -> float:
        """Bytes on each GPU: weights, gradients, Adam's two moments and the averaged weights, all in float32; with
        several ranks, the copy in which gradients are exchanged, and DistributedDataParallel's buckets, which it
        allocates although its own exchange is off; with autocast, a copy of the weights in bfloat16."""
        per_trained = 4 * (1 + 2) + (4 + 4 if ranks > 1 else 0) + (2 if autocast else 0)
        weights = self.tokenizer * (2 if averages else 1) + self.discriminator
        return 4 * weights + per_trained * self.trained + self.frozen

    def checkpoint(self, averages: bool) -> float:
        """Bytes: weights, averaged weights, Adam's two moments."""
        return 4 * (self.tokenizer * (2 if averages else 1) + self.discriminator + 2 * self.trained)


def count_parameters(module: TokenizerModule) -> Parameters:
    """Counts the parameters of a module whose training networks are loaded."""
    networks = [module.tokenizer, *([] if module.discriminator is None else [module.discriminator])]
    numbers = [sum(one.numel() for one in network.parameters()) for network in networks]
    trained = sum(one.numel() for network in networks for one in network.parameters() if one.requires_grad)
    held = {inner for part in _parts(module) for hidden in getattr(part, "_held", ()) for inner in hidden.parameters()}
    return Parameters(numbers[0], sum(numbers[1:]), trained, sum(one.numel() * one.element_size() for one in held))


def without_values(module: nn.Module) -> FakeTensorMode:
    """Replaces all weights and buffers of a module, frozen networks included, by fake tensors, and returns the mode in
    which the module computes on them. (The meta device would do, but has no autocast.)"""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for part in _parts(module):
            for name, weight in part._parameters.items():
                if weight is not None:
                    empty = torch.empty(weight.shape, dtype=weight.dtype)
                    part._parameters[name] = nn.Parameter(empty, weight.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return mode


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """A module, its submodules, and its frozen networks, which `modules()` does not list."""
    for part in module.modules():
        yield part
        for held in getattr(part, "_held", ()):
            yield from _parts(held)


def count_step(module: TokenizerModule, image_size: int, autocast: bool) -> StepCosts:
    """Counts what a training step takes once all losses are in effect. Called within the mode of `without_values`.

    Args:
        module: after `without_values`.
        image_size: of the square images.
        autocast: matrix products in bfloat16, norms and losses in float32, as CUDA's autocast has it.
    """
    batch = 2  # so that batch norms have something to average
    module.train()
    image = torch.empty(batch, 3, image_size, image_size)
    tokenizer, objective, late = module.tokenizer, module.objective, 10**9
    weights = {one.untyped_storage()._cdata for part in _parts(module) for one in part.parameters(recurse=False)}
    with objective.within_step(), _Operators() as operators, _Autocast(weights) if autocast else nullcontext():
        with _kept_tensors(weights) as kept:
            with _flops() as encoder, torch.set_grad_enabled(module.trained == "all"):
                latent = tokenizer.latent(image)
            with _flops() as decoder:
                output = _without_lookup(tokenizer.quantizer, latent.float())
                reconstruction = tokenizer.decode(output.quantized)
            with _flops() as losses:
                last_layer = tokenizer.decoder.last_layer
                loss = objective.generator(image, output, reconstruction, last_layer, late).total
        with _flops() as backward:
            loss.backward()
        kept_second: dict[int, int] = {}
        with _flops() as discriminator:
            if module.discriminator is not None:
                with _kept_tensors(weights) as kept_second:
                    loss = objective.discriminate(image, reconstruction.detach()).total
                loss.backward()
    larger = max(list(kept.values()), list(kept_second.values()), key=sum)
    first = encoder() + decoder() + losses() + backward()
    return StepCosts(
        encoder=encoder() / batch,
        decoder=decoder() / batch,
        tokenizer=first / batch,
        discriminator=discriminator() / batch,
        kept=sum(larger) / batch,
        largest=max(larger) / batch,
        operators=operators.count,
    )


def lookup_seconds(quantizer: Quantizer, vectors: float, device: Device) -> float:
    """Seconds of an exact lookup at the peak rate of the device; 0 where it sorts (d = 1, and d = 2 on the circle).

    For each pair of a vector and a code, tensor cores multiply 3d + 2 float16 numbers, padded to a multiple of 16, and
    ordinary units compare, at a fourth of their FLOP per second; the slower of the two counts. Below four channels
    ordinary units do all: a subtraction, a multiplication and an addition per channel, and the comparison.

    Args:
        quantizer: with one codebook of V codes in d = D/G dimensions; of others the time is 0.
        vectors: that are looked up.
        device: its datasheet.
    """
    if not isinstance(quantizer, GroupedSphericalQuantizer):
        return 0.0
    dimension, codebook_size = quantizer.group_channels, quantizer.codebook_size
    on_circle = quantizer.normalization == "l2"
    if choose_method(dimension, codebook_size, int(vectors), "cuda", on_circle) in ("sorted", "circle"):
        return 0.0
    if dimension < TENSOR_CORES_FROM:
        return vectors * codebook_size * (4 * dimension + 4) / device.float32
    padded = 16 * math.ceil((3 * dimension + 2) / 16)
    return vectors * codebook_size * max(2 * padded / device.bfloat16, 4 / device.float32)


def _without_lookup(quantizer: Quantizer, latent: Tensor) -> QuantizerOutput:
    """The output of a quantizer without the search: each latent vector is taken as its own code."""
    shape = (len(latent), *latent.shape[2:], quantizer.num_groups)
    return QuantizerOutput(latent, torch.empty(shape, dtype=torch.int64), latent.square().mean(), {})


@contextmanager
def _flops() -> Iterator[Callable[[], float]]:
    with FlopCounterMode(display=False) as counter:
        yield lambda: float(counter.get_total_flops())


@contextmanager
def _kept_tensors(weights: set[int]) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd saves for the backward pass, except the storages of weights."""
    kept: dict[int, int] = {}
    held: list[Any] = []  # keeps storages alive, so that no address is used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            held.append(storage)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


class _Operators(TorchDispatchMode):
    """Counts the operators that run on the device: those that compute or copy, not views or empty tensors."""

    IDLE = (torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty_strided)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        idle = func.namespace != "aten" or func.is_view or func.overloadpacket in self.IDLE
        self.count += not idle
        return func(*args, **(kwargs or {}))


class _Autocast(TorchFunctionMode):
    """CUDA's autocast for the operations that these networks have; torch's own needs a GPU.

    Args:
        weights: storages of weights, to which those of their copies are added.
    """

    LOW = (
        torch.conv1d,
        torch.conv2d,
        torch.conv_transpose2d,
        nn.functional.linear,
        nn.functional.scaled_dot_product_attention,
        torch.matmul,
    )
    HIGH = (nn.functional.group_norm, nn.functional.layer_norm, nn.functional.mse_loss, torch.softmax)

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self._weights = weights
        self._copies: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dtype = torch.bfloat16 if func in self.LOW else torch.float32 if func in self.HIGH else None
        if dtype is not None:
            args = [self._cast(one, dtype) for one in args]
            kwargs = {name: self._cast(one, dtype) for name, one in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        cast = value.to(dtype)
        if value.untyped_storage()._cdata in self._weights:
            self._weights.add(cast.untyped_storage()._cdata)
            self._copies.append(cast)
        return cast
