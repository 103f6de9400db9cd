import math
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.discriminators import StyleGANDiscriminator
from gsq_lightning.discriminators.stylegan import FORMS, BlurPool, DownBlock, Form
from gsq_lightning.errors import InputError


def test_its_widths_are_the_papers() -> None:
    """Width 128, multipliers 2, 4, 4, 4, 4, counted by hand."""

    def convolution(kernel: int, inputs: int, outputs: int) -> int:
        return kernel**2 * inputs * outputs + outputs

    expected = convolution(3, 3, 128)
    for inputs, outputs in [(128, 256), (256, 512), (512, 512), (512, 512), (512, 512)]:
        expected += convolution(3, inputs, inputs) + convolution(3, inputs, outputs) + inputs * outputs
    expected += convolution(3, 512, 512) + (4 * 4 * 512 * 512 + 512) + (512 + 1)
    with torch.device("meta"):
        assert sum(weight.numel() for weight in StyleGANDiscriminator().parameters()) == expected


def test_the_papers_form_has_as_many_weights_as_its_reference() -> None:
    with torch.device("meta"):
        assert sum(weight.numel() for weight in StyleGANDiscriminator(form="gsq").parameters()) == 22_163_201


@pytest.mark.parametrize("border", ["constant", "reflect"])
def test_blur_pool_is_a_filter_and_every_second_pixel(border: Literal["constant", "reflect"]) -> None:
    image = torch.rand(2, 3, 8, 12)
    kernel = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    pool = BlurPool(3, border)
    for blurred, original in zip(pool(image).flatten(0, 1), image.flatten(0, 1), strict=True):
        padded = np.pad(original.numpy(), 1, mode=border)
        expected = convolve2d(padded, kernel, mode="valid")[::2, ::2]
        np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-6)


def test_skip_of_a_block_is_blurred_and_scaled() -> None:
    block = DownBlock(2, 2, FORMS["magvit"])
    nn.init.zeros_(block.residual[3].weight)
    nn.init.zeros_(block.residual[3].bias)
    nn.init.eye_(block.skip[1].weight[:, :, 0, 0])
    image = torch.rand(1, 2, 8, 8)
    torch.testing.assert_close(block(image), BlurPool(2, "constant")(image) / math.sqrt(2))


def reference(discriminator: StyleGANDiscriminator, image: Tensor) -> Tensor:
    """The GSQ paper's form from its description, in float64: slope 0.01, first convolution to the new width, then
    the blur with a reflected border, a second convolution; a blurred and biased 1×1 skip, added without a factor;
    one convolution, the mean over space, two linear layers.
    """
    weights = iter([parameter.detach().double() for parameter in discriminator.parameters()])

    def convolved(x: Tensor, padding: int = 1) -> Tensor:
        return F.conv2d(x, next(weights), next(weights), padding=padding)

    def leaky(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.01 * x)

    def halved(x: Tensor) -> Tensor:
        padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
        taps = np.array([1, 3, 3, 1]) / 8
        rows = sum(tap * padded[:, :, i : i + padded.shape[2] - 3 : 2] for i, tap in enumerate(taps))
        return torch.from_numpy(sum(tap * rows[..., i : i + padded.shape[3] - 3 : 2] for i, tap in enumerate(taps)))

    x = leaky(convolved(image.double()))
    for _ in range(discriminator.num_blocks):
        residual = leaky(convolved(halved(leaky(convolved(x)))))
        x = residual + convolved(halved(x), padding=0)
    x = leaky(convolved(x)).mean(dim=(2, 3))
    x = leaky(x @ next(weights).T + next(weights))
    return x @ next(weights).T + next(weights)


def test_the_papers_form_from_its_description() -> None:
    discriminator = StyleGANDiscriminator(channels=4, multipliers=(2, 3), form="gsq")
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    torch.testing.assert_close(discriminator(image).double(), reference(discriminator, image), rtol=1e-4, atol=1e-5)


def test_the_papers_form_starts_as_pytorchs_layers_do() -> None:
    """Weights and biases uniform in ±1/√fan_in, for two layers of it."""
    discriminator = StyleGANDiscriminator(channels=32, multipliers=(1,), form="gsq")
    for layer, inputs in ((discriminator.net[0], 27), (discriminator.net[-3], 32)):
        bound = inputs**-0.5
        for values in (layer.weight.detach(), layer.bias.detach()):
            assert float(values.abs().max()) <= bound
            assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.25)


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
    smallest = StyleGANDiscriminator(channels=4, multipliers=(1, 2), form="gsq")
    assert smallest(torch.rand(2, 3, 4, 8)).shape == (2, 1)


@pytest.mark.parametrize("size", [(96, 128), (128, 100), (64, 64)])
def test_sizes_that_do_not_fit_are_refused(size: tuple[int, int]) -> None:
    discriminator = StyleGANDiscriminator(channels=4, multipliers=(2, 4, 4, 4, 4))
    with pytest.raises(InputError, match=f"multiples of 32 and at least 128, and got {size[0]}×{size[1]}"):
        discriminator(torch.rand(1, 3, *size))


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="multipliers"):
        StyleGANDiscriminator(multipliers=())
    with pytest.raises(InputError, match="form is 'stylegan2'; it must be one of: magvit, gsq"):
        StyleGANDiscriminator(form="stylegan2")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["magvit", "gsq"])
def test_it_learns_to_tell_smooth_from_rough(form: Form) -> None:
    discriminator = StyleGANDiscriminator(channels=8, multipliers=(1, 1), form=form)
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
