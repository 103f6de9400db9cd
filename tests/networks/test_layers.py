import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gsq_lightning.networks.layers import (
    AdaptiveGroupNorm,
    DepthToSpaceUpsample,
    Downsample,
    NearestUpsample,
    ResidualBlock,
    SelfAttention,
)


def identity_convolution(layer: nn.Conv2d) -> None:
    """Makes a convolution copy input channel c to output channel c (mod inputs)."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        for out in range(layer.out_channels):
            layer.weight[out, out % layer.in_channels, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1.0


def test_depth_to_space_reads_channels_as_row_column_channel() -> None:
    upsample = DepthToSpaceUpsample(2)
    with torch.no_grad():
        upsample.conv.weight.zero_()
        upsample.conv.bias.copy_(torch.arange(8.0))
    output = upsample(torch.zeros(1, 2, 1, 1))[0]
    # (row, column, channel): channels 0, 1 are the upper left pixel, 2, 3 the upper right, 4, 5 the lower left
    assert output[0].tolist() == [[0.0, 2.0], [4.0, 6.0]]
    assert output[1].tolist() == [[1.0, 3.0], [5.0, 7.0]]


def test_nearest_upsampling_repeats_each_position() -> None:
    upsample = NearestUpsample(1)
    identity_convolution(upsample.conv)
    assert upsample(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]]]


def test_nearest_upsampling_and_its_convolution_are_one_operation() -> None:
    """Values and gradients are those of the two, one after the other, at borders too."""
    upsample = NearestUpsample(3).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    output, expected = upsample(x), upsample.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    torch.testing.assert_close(output, expected)
    inputs, direction = (x, *upsample.parameters()), torch.randn_like(output)
    for gradient, other in zip(
        *(torch.autograd.grad(one, inputs, direction) for one in (output, expected)), strict=True
    ):
        torch.testing.assert_close(gradient, other)


def test_downsampling_takes_every_second_position() -> None:
    downsample = Downsample(1)
    identity_convolution(downsample.conv)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(downsample(x), x[:, :, ::2, ::2])


def test_adaptive_group_norm_by_hand() -> None:
    layer = AdaptiveGroupNorm(channels=4, latent_channels=3, norm_groups=2)
    x, quantized = torch.randn(2, 4, 6, 5, dtype=torch.float64), torch.randn(2, 3, 3, 2, dtype=torch.float64)
    layer.double()
    groups = x.view(2, 2, 2 * 6 * 5)
    mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, unbiased=False, keepdim=True)
    normalized = ((groups - mean) / torch.sqrt(variance + 1e-6)).view_as(x)
    flat = quantized.view(2, 3, 6)
    scale = torch.sqrt(flat.var(-1, unbiased=True) + 1e-6) @ layer.scale.weight.T + layer.scale.bias
    bias = flat.mean(-1) @ layer.bias.weight.T + layer.bias.bias
    expected = normalized * scale[:, :, None, None] + bias[:, :, None, None]
    torch.testing.assert_close(layer(x, quantized), expected, rtol=1e-5, atol=1e-6)


def test_adaptive_group_norm_of_a_single_position_is_finite() -> None:
    assert AdaptiveGroupNorm(4, 3, norm_groups=2)(torch.randn(1, 4, 2, 2), torch.randn(1, 3, 1, 1)).isfinite().all()


def test_adaptive_group_norm_of_a_constant_latent_has_a_gradient() -> None:
    """All positions with one code, as of an image of one color: the root of a variance of 0 has an infinite slope."""
    quantized = torch.randn(1, 3, 1, 1).expand(1, 3, 4, 4).clone().requires_grad_()
    AdaptiveGroupNorm(4, 3, norm_groups=2)(torch.randn(1, 4, 8, 8), quantized).square().sum().backward()
    assert quantized.grad is not None
    assert quantized.grad.isfinite().all()


def test_attention_by_hand() -> None:
    layer = SelfAttention(4, norm_groups=2).double()
    nn.init.zeros_(layer.query_key_value.bias)
    nn.init.zeros_(layer.projection.bias)
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64)
    normalized = layer.norm(x)[0].flatten(1)  # (C, N)
    weight = layer.query_key_value.weight[:, :, 0, 0]
    query, key, value = (weight @ normalized).chunk(3)
    attention = torch.softmax(query.T @ key / math.sqrt(4), dim=-1)  # (N, N)
    projected = layer.projection.weight[:, :, 0, 0] @ (value @ attention.T)
    torch.testing.assert_close(layer(x)[0].flatten(1), x[0].flatten(1) + projected)


def test_residual_block_adds_its_input() -> None:
    block = ResidualBlock(8, 8, norm_groups=4)
    nn.init.zeros_(block.net[-1].weight)
    nn.init.zeros_(block.net[-1].bias)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(block(x), x)


def assert_uniform(values: torch.Tensor, bound: float) -> None:
    assert 0.9 * bound < float(values.detach().abs().max()) <= bound
    assert float(values.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.2)


@pytest.mark.parametrize(("index", "gain"), [(2, 1.6761), (6, 1.6761 * 0.70711)])
def test_initialization_follows_the_reference(index: int, gain: float) -> None:
    layer = ResidualBlock(64, 64).net[index]
    fan_in = 64 * 9
    assert float(layer.weight.detach().std()) == pytest.approx(gain / math.sqrt(fan_in), rel=0.02)
    assert_uniform(layer.bias, 1 / math.sqrt(fan_in))


def test_a_skip_that_widens_keeps_the_variance() -> None:
    assert float(ResidualBlock(64, 128).skip.weight.detach().std()) == pytest.approx(1 / math.sqrt(64), rel=0.05)


def test_depth_to_space_starts_as_convolutions_of_pytorch() -> None:
    layer = DepthToSpaceUpsample(64).conv
    assert_uniform(layer.weight, 1 / math.sqrt(64 * 9))
    assert_uniform(layer.bias, 1 / math.sqrt(64 * 9))


def test_dropout_drops_whole_channels_in_training_only() -> None:
    block = ResidualBlock(8, 64, dropout=0.5, norm_groups=4)
    seen: list[torch.Tensor] = []
    block.net[6].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 8, 4, 4)
    block(x)
    zeros = (seen[0] == 0).flatten(2).float().mean(dim=2)
    assert set(zeros.flatten().tolist()) == {0.0, 1.0}
    block.eval()
    assert torch.equal(block(x), block(x))
    assert (seen[-1] != 0).all()


def test_an_adaptive_norm_in_float64_computes_in_float64() -> None:
    norm = AdaptiveGroupNorm(8, 4, norm_groups=2).double()
    x, quantized = (torch.randn(2, c, 3, 3, dtype=torch.float64, requires_grad=True) for c in (8, 4))
    assert torch.autograd.gradcheck(norm, (x, quantized))  # finite differences of 1e-6
