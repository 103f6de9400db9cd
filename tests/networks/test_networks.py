from typing import Any

import pytest
import torch
from torch import nn

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, InputError
from gsq_lightning.networks import NetworkShape
from gsq_lightning.networks.layers import AdaptiveGroupNorm, ResidualBlock, SelfAttention

DEEPER = {"encoder_blocks": [4, 3, 4, 3, 4, 4], "decoder_blocks": [3, 4, 3, 4, 4, 4]}


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ({}, 75_201_683),
        ({"channel_multipliers": [1, 2, 2, 4]}, 75_201_683),
        ({"channel_multipliers": [1, 2, 2, 4], "middle_attention": True}, 77_304_979),
        ({"channel_multipliers": [1, 2, 4, 4]}, 98_220_947),
        ({"channel_multipliers": [1, 2, 4, 4], "middle_attention": True}, 100_324_243),
        ({"channel_multipliers": [1, 1, 2, 2, 4]}, 77_126_675),
        ({"channel_multipliers": [1, 2, 2, 2, 4]}, 82_885_523),
        ({"channel_multipliers": [1, 1, 2, 4, 4]}, 100_145_939),
        ({"channel_multipliers": [1, 2, 2, 4, 4], **DEEPER}, 165_817_235),
    ],
)
def test_parameter_counts_of_the_released_networks(arguments: dict[str, Any], parameters: int) -> None:
    """Counted on the authors' networks with D = 16, V = 262,144, G = 1, the codebook included."""
    with torch.device("meta"):
        tokenizer = GSQTokenizer(GroupedSphericalQuantizer(16, 262_144), **arguments)
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == parameters
    assert {layer.num_groups for layer in tokenizer.modules() if isinstance(layer, nn.GroupNorm)} == {32}


def test_shape_and_tokenizer_have_the_same_defaults() -> None:
    with torch.device("meta"):
        assert GSQTokenizer(GroupedSphericalQuantizer(16, 8)).shape == NetworkShape(16)


def build(**arguments: Any) -> GSQTokenizer:
    settings: dict[str, Any] = {
        "channel_multipliers": (1, 2),
        "base_channels": 8,
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "norm_groups": 4,
        **arguments,
    }
    return GSQTokenizer(GroupedSphericalQuantizer(8, 16, 2), **settings)


@pytest.mark.parametrize(
    "arguments",
    [
        {"adaptive_norm": False},
        {"upsampling": "nearest"},
        {"middle_attention": True, "encoder_blocks": 2, "decoder_blocks": 2},
        {"attention_factors": [2]},
        {"dropout": 0.1},
        {"residual_kernel_size": 1},
        {"input_kernel_size": 5, "output_kernel_size": 1},
        {"encoder_blocks": [0, 2, 1], "decoder_blocks": [2, 0, 1]},
    ],
)
def test_every_option_trains_every_weight(arguments: dict[str, Any]) -> None:
    tokenizer = build(**arguments)
    output = tokenizer.encode(torch.rand(2, 3, 8, 12) * 2 - 1)
    reconstruction = tokenizer.decode(output.quantized)
    assert reconstruction.shape == (2, 3, 8, 12)
    (reconstruction.square().mean() + output.loss).backward()
    assert [name for name, weight in tokenizer.named_parameters() if weight.grad is None] == []


def kernel_sizes(network: nn.Module) -> list[int]:
    return [layer.kernel_size[0] for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def test_kernel_sizes_reach_their_convolutions() -> None:
    """The decoder's first convolution has the residual size, the encoder's last is 1×1, as in released checkpoints."""
    tokenizer = build(residual_kernel_size=5, input_kernel_size=7, output_kernel_size=1)
    for network, first, last in ((tokenizer.encoder, 7, 1), (tokenizer.decoder, 5, 1)):
        sizes = kernel_sizes(network)
        assert (sizes[0], sizes[-1]) == (first, last)
        assert set(sizes[1:-1]) == {1, 3, 5}  # 1 where the width changes, 3 where the size does


def test_group_norms_have_the_eps_of_the_released_checkpoints() -> None:
    tokenizer = build(middle_attention=True, encoder_blocks=2, decoder_blocks=2)
    for module in tokenizer.modules():
        if isinstance(module, SelfAttention | AdaptiveGroupNorm):
            assert module.norm.eps == 1e-6
        elif isinstance(module, ResidualBlock):
            assert (module.net[0].eps, module.net[3].eps) == (1e-5, 1e-5)
    assert tokenizer.encoder.final[0].eps == tokenizer.decoder.final[0].eps == 1e-5


def test_last_convolutions_keep_the_variance_through_their_activation() -> None:
    tokenizer = build(base_channels=64)
    for network, fan_in in ((tokenizer.encoder, 128), (tokenizer.decoder, 64 * 9)):
        assert float(network.final[-1].weight.detach().std()) == pytest.approx(1.6761 / fan_in**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, 0),
        ({"middle_attention": True, "encoder_blocks": 2, "decoder_blocks": 2}, 2),  # one between two middle blocks
        ({"attention_factors": [2]}, 2),  # after a level's own block at each end, not after the one that widens
        ({"attention_factors": [2], "encoder_blocks": 3, "decoder_blocks": [0, 0, 4]}, 3),
    ],
)
def test_attention_stands_where_it_is_asked_for(arguments: dict[str, Any], count: int) -> None:
    tokenizer = build(**arguments)
    layers = [layer for layer in tokenizer.modules() if isinstance(layer, SelfAttention)]
    assert len(layers) == count
    seen: list[torch.Size] = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    tokenizer(torch.zeros(1, 3, 8, 8))
    assert seen == [(4, 4)] * count  # half the image's, the network's lowest too


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel_multipliers": ()}, "one number of at least 1 per level"),
        ({"channel_multipliers": (1, 0)}, "at least 1 per level"),
        ({"base_channels": 10}, "base_channels 10 is not a multiple of norm_groups 4"),
        ({"encoder_blocks": [1, 1]}, "or 3 of at least 0"),
        ({"decoder_blocks": -1}, "decoder_blocks is -1"),
        ({"residual_kernel_size": 2}, "must be odd"),
        ({"dropout": 1.0}, "below 1"),
        ({"output_kernel_size": 4}, "output_kernel_size is 4"),
        ({"upsampling": "pixel_shuffle"}, "upsampling is 'pixel_shuffle'; it must be one of: depth_to_space, nearest"),
        ({"attention_factors": [3]}, r"\[3\] do not occur in this network; its maps are at \[1, 2\]"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**arguments)
