import math

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from torch import nn

from gsq_lightning.discriminators import StyleGANDiscriminator
from gsq_lightning.discriminators.stylegan import BlurPool, DownBlock
from gsq_lightning.errors import InputError


def test_its_widths_are_the_papers() -> None:
    """Width 128, multipliers 2, 4, 4, 4, 4, counted by hand."""

    def convolution(kernel: int, inputs: int, outputs: int) -> int:
        return kernel**2 * inputs * outputs + outputs

    expected = convolution(3, 3, 128)
    for inputs, outputs in [(128, 256), (256, 512), (512, 512), (512, 512), (512, 512)]:
        expected += convolution(3, inputs, inputs) + convolution(3, inputs, outputs) + inputs * outputs
    expected += convolution(3, 512, 512) + (4 * 4 * 512 * 512 + 512) + (512 + 1)
    assert sum(weight.numel() for weight in StyleGANDiscriminator().parameters()) == expected


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1), (1, 1)])
def test_blur_pool_is_a_filter_and_every_second_pixel(taps: tuple[float, ...]) -> None:
    image = torch.rand(2, 3, 8, 12)
    kernel = np.outer(taps, taps) / sum(taps) ** 2
    before = (len(taps) - 1) // 2
    for blurred, original in zip(BlurPool(3, taps)(image).flatten(0, 1), image.flatten(0, 1), strict=True):
        padded = np.pad(original.numpy(), before)
        expected = convolve2d(padded, kernel, mode="valid")[::2, ::2]
        np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-6)


def test_skip_of_a_block_is_blurred_and_scaled() -> None:
    block = DownBlock(2, 2, (1, 3, 3, 1))
    nn.init.zeros_(block.residual[3].weight)
    nn.init.zeros_(block.residual[3].bias)
    nn.init.eye_(block.skip[1].weight[:, :, 0, 0])
    image = torch.rand(1, 2, 8, 8)
    torch.testing.assert_close(block(image), BlurPool(2, (1, 3, 3, 1))(image) / math.sqrt(2))


def test_head_sees_every_position_where_the_map_is_4_by_4() -> None:
    """No averaging at the size that the depth is made for: 128² with the paper's five blocks, 16² with two."""
    discriminator = StyleGANDiscriminator(channels=4, multipliers=(1, 2))
    first, activation, last = list(discriminator.net.children())[-3:]
    image = torch.rand(3, 3, 16, 16)
    maps = image
    for layer in discriminator.net[:6]:
        maps = layer(maps)
    assert maps.shape == (3, 8, 4, 4)
    torch.testing.assert_close(discriminator(image), last(activation(first(maps.reshape(3, -1)))))


def test_one_set_of_weights_takes_several_sizes() -> None:
    discriminator = StyleGANDiscriminator(channels=4, multipliers=(1, 2))
    for height, width in [(16, 16), (32, 16), (20, 24)]:
        assert discriminator(torch.rand(2, 3, height, width)).shape == (2, 1)


@pytest.mark.parametrize("size", [(96, 128), (128, 100), (64, 64)])
def test_sizes_that_do_not_fit_are_refused(size: tuple[int, int]) -> None:
    discriminator = StyleGANDiscriminator(channels=4, multipliers=(2, 4, 4, 4, 4))
    with pytest.raises(InputError, match=f"multiples of 32 and at least 128, and got {size[0]}×{size[1]}"):
        discriminator(torch.rand(1, 3, *size))


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="multipliers"):
        StyleGANDiscriminator(multipliers=())
    with pytest.raises(InputError, match="blur_filter"):
        StyleGANDiscriminator(blur_filter=(1, -1))


def test_it_learns_to_tell_smooth_from_rough() -> None:
    discriminator = StyleGANDiscriminator(channels=8, multipliers=(1, 1))
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=3e-3)
    for _ in range(60):
        smooth = torch.rand(8, 3, 1, 1).expand(-1, -1, 16, 16)
        rough = torch.rand(8, 3, 16, 16)
        pair = discriminator.forward_pair(smooth, rough)
        loss = nn.functional.softplus(-pair.real).mean() + nn.functional.softplus(pair.fake).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert discriminator(torch.rand(8, 3, 1, 1).expand(-1, -1, 16, 16)).min() > 0
    assert discriminator(torch.rand(8, 3, 16, 16)).max() < 0
