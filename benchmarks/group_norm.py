"""Group norm and SiLU in one, channels last, by kernels of its own: a trial, which the networks do not use yet.

    python benchmarks/group_norm.py          # needs a CUDA device

PyTorch's group norm copies a channels-last map, and so does the compiler's, as its group norm has channels first: on an
H200 16 % of a compiled step (benchmarks/RESULTS.md). Here both passes read the map twice and write it once, in the
layout it has. Compared, forward and backward, at the maps of f8 at 256²: PyTorch's, compiled, and these kernels, each
followed by the convolution that comes next, which gets what layout they give. `python benchmarks/training.py` has the
whole step with them as its last row but one.

Sums are of squares about the mean, channel by channel (Chan, Golub, LeVeque, 1979), in float32.
"""

import sys
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

TILE = 4096  # numbers that a program has at once
PARTS = 64  # of an image's positions, about


@triton.jit
def _moments_kernel(  # type: ignore[no-untyped-def]
    x,  # (B, positions, C)
    means_out,  # (B, parts, C) float32
    squares_out,  # (B, parts, C): of distances to the mean, summed
    positions,
    channels,
    tiles,  # of a part
    rows: tl.constexpr,
    width: tl.constexpr,  # the next power of two of C
):
    part, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, width)
    is_channel = channel < channels
    mean = tl.zeros((width,), tl.float32)
    squares = mean
    count = 0.0
    for tile in range(tiles):
        row = (part * tiles + tile) * rows + tl.arange(0, rows)
        mask = (row < positions)[:, None] & is_channel[None, :]
        value = tl.load(x + (image * positions + row[:, None]) * channels + channel[None, :], mask=mask, other=0.0)
        value = value.to(tl.float32)
        here = tl.minimum(tl.maximum(positions - (part * tiles + tile) * rows, 0), rows).to(tl.float32)
        own = tl.sum(value, axis=0) / tl.maximum(here, 1.0)
        distance = tl.where(mask, value - own[None, :], 0.0)
        both = tl.maximum(count + here, 1.0)
        squares += tl.sum(distance * distance, axis=0) + (own - mean) * (own - mean) * count * here / both
        mean += (own - mean) * here / both
        count += here
    place = (image * tl.num_programs(0) + part) * channels + channel
    tl.store(means_out + place, mean, mask=is_channel)
    tl.store(squares_out + place, squares, mask=is_channel)


@triton.jit
def _of_groups(values, group, groups: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums over the channels of a group, (C,) → (C,)."""
    is_of = group[None, :] == tl.arange(0, groups)[:, None]
    sums = tl.sum(tl.where(is_of, values[None, :], 0.0), axis=1)
    return tl.sum(tl.where(is_of, sums[:, None], 0.0), axis=0)


@triton.jit
def _statistics_kernel(  # type: ignore[no-untyped-def]
    means,  # (B, parts, C)
    squares,  # (B, parts, C)
    mean_out,  # (B, C) float32: of the channel's group
    rstd_out,  # (B, C): 1 / standard deviation
    positions,
    channels,
    parts,
    positions_per_part,
    per_group,  # channels
    eps,
    width: tl.constexpr,
    groups: tl.constexpr,  # the next power of two
):
    image = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, width)
    is_channel = channel < channels
    mean = tl.zeros((width,), tl.float32)
    total = mean
    count = 0.0
    for part in range(parts):
        place = (image * parts + part) * channels + channel
        here = tl.minimum(positions - part * positions_per_part, positions_per_part).to(tl.float32)
        own = tl.load(means + place, mask=is_channel, other=0.0)
        total += tl.load(squares + place, mask=is_channel, other=0.0)
        total += (own - mean) * (own - mean) * count * here / (count + here)
        mean += (own - mean) * here / (count + here)
        count += here
    group = channel // per_group
    of_group = _of_groups(mean, group, groups) / per_group
    total += tl.where(is_channel, count * (mean - of_group) * (mean - of_group), 0.0)
    variance = _of_groups(total, group, groups) / (count * per_group)
    tl.store(mean_out + image * channels + channel, of_group, mask=is_channel)
    tl.store(rstd_out + image * channels + channel, 1 / tl.sqrt(variance + eps), mask=is_channel)


@triton.jit
def _apply_kernel(  # type: ignore[no-untyped-def]
    x, mean, rstd, weight, bias, out, positions, channels, rows: tl.constexpr, width: tl.constexpr
):
    image = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    channel = tl.arange(0, width)
    is_channel = channel < channels
    mask = (row < positions)[:, None] & is_channel[None, :]
    place = (image * positions + row[:, None]) * channels + channel[None, :]
    factor = tl.load(rstd + image * channels + channel, mask=is_channel, other=0.0)
    factor *= tl.load(weight + channel, mask=is_channel, other=0.0)
    offset = tl.load(bias + channel, mask=is_channel, other=0.0)
    distance = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    distance -= tl.load(mean + image * channels + channel, mask=is_channel, other=0.0)[None, :]
    z = distance * factor[None, :] + offset[None, :]
    tl.store(out + place, z * tl.sigmoid(z), mask=mask)


@triton.jit
def _gradient_of_z(x, gradient, mean, rstd, weight, bias):  # type: ignore[no-untyped-def]
    """Of the output of the norm, and the normalized map; of tiles and what belongs to their channels."""
    normal = (x.to(tl.float32) - mean[None, :]) * rstd[None, :]
    z = normal * weight[None, :] + bias[None, :]
    sigmoid = tl.sigmoid(z)
    return gradient.to(tl.float32) * sigmoid * (1 + z * (1 - sigmoid)), normal


@triton.jit
def _gradient_sums_kernel(  # type: ignore[no-untyped-def]
    x,  # (B, positions, C)
    gradient,  # likewise
    mean,
    rstd,
    weight,
    bias,
    sums_out,  # (B, parts, C): of gradients of the norm's output
    products_out,  # (B, parts, C): of those times the normalized map
    positions,
    channels,
    tiles,
    rows: tl.constexpr,
    width: tl.constexpr,
):
    part, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, width)
    is_channel = channel < channels
    mean_here = tl.load(mean + image * channels + channel, mask=is_channel, other=0.0)
    rstd_here = tl.load(rstd + image * channels + channel, mask=is_channel, other=0.0)
    weight_here = tl.load(weight + channel, mask=is_channel, other=0.0)
    bias_here = tl.load(bias + channel, mask=is_channel, other=0.0)
    sums = tl.zeros((width,), tl.float32)
    products = sums
    for tile in range(tiles):
        row = (part * tiles + tile) * rows + tl.arange(0, rows)
        mask = (row < positions)[:, None] & is_channel[None, :]
        place = (image * positions + row[:, None]) * channels + channel[None, :]
        value = tl.load(x + place, mask=mask, other=0.0)
        of_output = tl.load(gradient + place, mask=mask, other=0.0)  # 0 outside, and so is the other
        of_z, normal = _gradient_of_z(value, of_output, mean_here, rstd_here, weight_here, bias_here)
        sums += tl.sum(of_z, axis=0)
        products += tl.sum(of_z * normal, axis=0)
    place = (image * tl.num_programs(0) + part) * channels + channel
    tl.store(sums_out + place, sums, mask=is_channel)
    tl.store(products_out + place, products, mask=is_channel)


@triton.jit
def _gradient_statistics_kernel(  # type: ignore[no-untyped-def]
    sums,  # (B, parts, C)
    products,
    weight,
    bias_gradient_out,  # (B, C): of each image
    weight_gradient_out,
    sum_out,  # (B, C): over the channel's group, weighted, a mean
    product_out,
    channels,
    parts,
    per_group,
    count,  # of numbers in a group
    width: tl.constexpr,
    groups: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, width)
    is_channel = channel < channels
    total = tl.zeros((width,), tl.float32)
    product = total
    for part in range(parts):
        place = (image * parts + part) * channels + channel
        total += tl.load(sums + place, mask=is_channel, other=0.0)
        product += tl.load(products + place, mask=is_channel, other=0.0)
    place = image * channels + channel
    tl.store(bias_gradient_out + place, total, mask=is_channel)
    tl.store(weight_gradient_out + place, product, mask=is_channel)
    of_channel = tl.load(weight + channel, mask=is_channel, other=0.0)
    group = channel // per_group
    tl.store(sum_out + place, _of_groups(total * of_channel, group, groups) / count, mask=is_channel)
    tl.store(product_out + place, _of_groups(product * of_channel, group, groups) / count, mask=is_channel)


@triton.jit
def _gradient_kernel(  # type: ignore[no-untyped-def]
    x, gradient, mean, rstd, weight, bias, sum_in, product_in, out, positions, channels,
    rows: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    channel = tl.arange(0, width)
    is_channel = channel < channels
    mask = (row < positions)[:, None] & is_channel[None, :]
    place = (image * positions + row[:, None]) * channels + channel[None, :]
    of_channel = image * channels + channel
    rstd_here = tl.load(rstd + of_channel, mask=is_channel, other=0.0)
    weight_here = tl.load(weight + channel, mask=is_channel, other=0.0)
    of_z, normal = _gradient_of_z(
        tl.load(x + place, mask=mask, other=0.0),
        tl.load(gradient + place, mask=mask, other=0.0),
        tl.load(mean + of_channel, mask=is_channel, other=0.0),
        rstd_here,
        weight_here,
        tl.load(bias + channel, mask=is_channel, other=0.0),
    )
    of_sum = tl.load(sum_in + of_channel, mask=is_channel, other=0.0)
    of_product = tl.load(product_in + of_channel, mask=is_channel, other=0.0)
    result = of_z * weight_here[None, :] - of_sum[None, :] - normal * of_product[None, :]
    tl.store(out + place, result * rstd_here[None, :], mask=mask)


class Sizes:
    """How a map (B, C, H, W) is divided."""

    def __init__(self, x: Tensor) -> None:
        self.batch, self.channels, height, width = x.shape
        self.positions = height * width
        self.width = triton.next_power_of_2(self.channels)
        self.rows = max(1, TILE // self.width)
        blocks = triton.cdiv(self.positions, self.rows)
        self.tiles = triton.cdiv(blocks, PARTS)
        self.parts = triton.cdiv(blocks, self.tiles)
        self.blocks = blocks

    @property
    def per_part(self) -> int:
        return self.tiles * self.rows


@torch.library.custom_op("gsq_benchmarks::group_norm_silu", mutates_args=())
def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """SiLU of the group norm of x (B, C, H, W), channels last; mean and 1/std (B, C) float32, of a channel's group."""
    x = x.contiguous(memory_format=torch.channels_last)
    sizes = Sizes(x)
    means = x.new_empty(sizes.batch, sizes.parts, sizes.channels, dtype=torch.float32)
    squares = torch.empty_like(means)
    mean = x.new_empty(sizes.batch, sizes.channels, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    out = torch.empty_like(x, dtype=dtype)
    per_group = sizes.channels // groups
    with torch.cuda.device_of(x):
        _moments_kernel[(sizes.parts, sizes.batch)](
            *(x, means, squares, sizes.positions, sizes.channels, sizes.tiles), rows=sizes.rows, width=sizes.width
        )
        _statistics_kernel[(sizes.batch,)](
            *(means, squares, mean, rstd, sizes.positions, sizes.channels, sizes.parts, sizes.per_part, per_group, eps),
            width=sizes.width,
            groups=triton.next_power_of_2(groups),
        )
        _apply_kernel[(sizes.blocks, sizes.batch)](
            *(x, mean, rstd, weight, bias, out, sizes.positions, sizes.channels), rows=sizes.rows, width=sizes.width
        )
    return out, mean, rstd


@group_norm_silu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    statistics = x.new_empty(x.shape[:2], dtype=torch.float32)
    out = torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)
    return out, statistics, torch.empty_like(statistics)


@torch.library.custom_op("gsq_benchmarks::group_norm_silu_backward", mutates_args=())
def group_norm_silu_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, and of weight and bias by image, (B, C)."""
    x, gradient = (one.contiguous(memory_format=torch.channels_last) for one in (x, gradient))
    sizes = Sizes(x)
    sums = mean.new_empty(sizes.batch, sizes.parts, sizes.channels)
    products = torch.empty_like(sums)
    by_bias, by_weight, of_sum, of_product = (torch.empty_like(mean) for _ in range(4))
    out = torch.empty_like(x)
    per_group = sizes.channels // groups
    layout = {"rows": sizes.rows, "width": sizes.width}
    with torch.cuda.device_of(x):
        _gradient_sums_kernel[(sizes.parts, sizes.batch)](
            *(x, gradient, mean, rstd, weight, bias, sums, products, sizes.positions, sizes.channels, sizes.tiles),
            **layout,
        )
        _gradient_statistics_kernel[(sizes.batch,)](
            *(sums, products, weight, by_bias, by_weight, of_sum, of_product, sizes.channels, sizes.parts, per_group),
            sizes.positions * per_group,
            width=sizes.width,
            groups=triton.next_power_of_2(groups),
        )
        _gradient_kernel[(sizes.blocks, sizes.batch)](
            *(x, gradient, mean, rstd, weight, bias, of_sum, of_product, out, sizes.positions, sizes.channels),
            **layout,
        )
    return out, by_weight, by_bias


@group_norm_silu_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=torch.channels_last),
        torch.empty_like(mean),
        torch.empty_like(mean),
    )


def _keep(ctx: object, inputs: tuple[object, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, ctx.groups, *_ = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(x, weight, bias, *output[1:])  # type: ignore[attr-defined]
    ctx.mark_non_differentiable(*output[1:])  # type: ignore[attr-defined]


def _backward(ctx: object, gradient: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, rstd = ctx.saved_tensors  # type: ignore[attr-defined]
    of_x, of_weight, of_bias = group_norm_silu_backward(gradient, x, weight, bias, mean, rstd, ctx.groups)  # type: ignore[attr-defined]
    return of_x, of_weight.sum(dim=0), of_bias.sum(dim=0), None, None, None


group_norm_silu.register_autograd(_backward, setup_context=_keep)


class GroupNormSiLU(nn.Module):
    """In place of a group norm whose output goes to a SiLU alone."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → likewise, channels last; under autocast in its type, which a convolution would cast it to."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return group_norm_silu(x, self.weight, self.bias, self.groups, self.eps, dtype)[0]


def with_kernels(network: nn.Module) -> None:
    """Changes each group norm that a SiLU follows."""
    for part in network.modules():
        if isinstance(part, nn.Sequential):
            for place in range(len(part) - 1):
                norm, after = part[place], part[place + 1]
                if isinstance(norm, nn.GroupNorm) and isinstance(after, nn.SiLU):
                    part[place], part[place + 1] = GroupNormSiLU(norm), nn.Identity()


def milliseconds(step: Callable[[], None]) -> float:
    for _ in range(3):
        step()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 10


def main() -> int:
    if not torch.cuda.is_available():
        print("group_norm.py needs a CUDA device", file=sys.stderr)
        return 1
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, bf16, batch 16, 3×3 convolution behind\n")
    print("| map | PyTorch, ms | compiled, ms | kernels, ms | kernels, largest difference |\n|---|---|---|---|---|")
    for channels, side in [(128, 256), (128, 128), (256, 128), (256, 64), (512, 32)]:
        convolution = nn.Conv2d(channels, channels, 3, padding=1).cuda().to(memory_format=torch.channels_last)
        norm = nn.GroupNorm(32, channels).cuda()
        x = torch.randn(16, channels, side, side, device="cuda", dtype=torch.bfloat16)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        plain = nn.Sequential(norm, nn.SiLU(), convolution)
        ways = [plain, torch.compile(plain), nn.Sequential(GroupNormSiLU(norm), convolution)]

        def step(way: Callable[[Tensor], Tensor], x: Tensor = x) -> None:
            with torch.autocast("cuda", torch.bfloat16):
                loss = way(x).float().square().mean()
            loss.backward()

        times = [milliseconds(lambda way=way: step(way)) for way in ways]  # type: ignore[misc]
        with torch.autocast("cuda", torch.bfloat16):
            difference = (F.silu(norm(x)).bfloat16() - GroupNormSiLU(norm)(x)).abs().max()
        print(f"| {channels}×{side}² | " + " | ".join(f"{time:.2f}" for time in times) + f" | {difference:.1e} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
