import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gsq_lightning.discriminators import PatchDiscriminator
from gsq_lightning.errors import InputError


def test_it_has_the_weights_of_the_reference() -> None:
    """2,765,632 in all: layers of 64, 128, 256, 512 and 1 channels with 4×4 kernels, a bias in the first alone."""
    discriminator = PatchDiscriminator()
    assert sum(weight.numel() for weight in discriminator.parameters()) == 2_765_632
    convolutions = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    assert [convolution.bias is not None for convolution in convolutions] == [True, False, False, False, False]


def test_it_computes_what_pix2pix_does() -> None:
    """Convolutions with LeakyReLU of slope 0.2 between them, the first two of stride 2: in float64."""
    discriminator = PatchDiscriminator(channels=2, num_layers=2, norm="none")
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    first, *others = (module for module in discriminator.modules() if isinstance(module, nn.Conv2d))
    assert first.bias is not None
    x = F.conv2d(image.double(), first.weight.double(), first.bias.double(), stride=2, padding=1)
    for convolution, stride in zip(others, (2, 1, 1), strict=True):
        bias = None if convolution.bias is None else convolution.bias.double()
        x = F.conv2d(torch.where(x > 0, x, 0.2 * x), convolution.weight.double(), bias, stride, padding=1)
    torch.testing.assert_close(discriminator(image), x.float())


@pytest.mark.parametrize(("num_layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_judges_the_patch_that_the_paper_says(num_layers: int, field: int) -> None:
    """pix2pix names the number of layers by receptive fields of 16, 34 (in its code) and 70 pixels."""
    discriminator = PatchDiscriminator(channels=2, num_layers=num_layers, norm="none")
    nn.init.ones_(discriminator.net[0].weight)
    image = torch.rand(1, 3, 112, 112, requires_grad=True)
    logits = discriminator(image)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], image)
    rows, columns = (gradient[0].abs().sum(0) > 0).nonzero(as_tuple=True)
    assert rows.max() - rows.min() + 1 == field
    assert columns.max() - columns.min() + 1 == field


def test_it_starts_as_the_reference_does() -> None:
    """Kaiming's deviation for linear layers, 1/√fan_in, a tenth of it in the last; norms that change nothing."""
    discriminator = PatchDiscriminator()
    convolutions = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    for convolution, inputs, scale in zip(convolutions, (3, 64, 128, 256, 512), (1.0, 1.0, 1.0, 1.0, 0.1), strict=True):
        deviation = scale / (16 * inputs) ** 0.5
        assert float(convolution.weight.detach().std()) == pytest.approx(deviation, rel=0.03)
        assert float(convolution.weight.detach().mean()) == pytest.approx(0.0, abs=0.1 * deviation)
    for norm in (module for module in discriminator.modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()


def test_its_first_logits_are_small() -> None:
    """A deviation of 0.06, as the reference's; pix2pix's start gives 1.15, a verdict before anything is learned."""
    logits = PatchDiscriminator()(torch.rand(4, 3, 128, 128) * 2 - 1)
    assert float(logits.detach().std()) == pytest.approx(0.06, rel=0.25)


def test_a_pair_is_two_calls() -> None:
    discriminator = PatchDiscriminator(channels=4, num_layers=2)
    image, reconstruction = torch.rand(2, 2, 3, 32, 32)
    pair = discriminator.forward_pair(image, reconstruction)
    torch.testing.assert_close(pair.real, discriminator(image))
    torch.testing.assert_close(pair.fake, discriminator(reconstruction))


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_the_smallest_image_has_one_logit_and_a_smaller_one_is_refused(num_layers: int) -> None:
    """3 · 2^n pixels become 3, 2 and 1; one pixel less leaves nothing for the last convolution."""
    discriminator = PatchDiscriminator(channels=2, num_layers=num_layers)
    smallest = 3 * 2**num_layers
    assert discriminator(torch.rand(1, 3, smallest, smallest)).shape == (1, 1, 1, 1)
    for height, width in ((smallest - 1, smallest), (smallest, smallest - 1)):
        with pytest.raises(RuntimeError):
            discriminator.net(torch.rand(1, 3, height, width))
        with pytest.raises(InputError, match=f"at least {smallest} pixels each way, these have {height}×{width}"):
            discriminator(torch.rand(1, 3, height, width))


@pytest.mark.parametrize(("channels", "num_layers"), [(0, 3), (64, 0)])
def test_sizes_that_make_no_sense_are_refused(channels: int, num_layers: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        PatchDiscriminator(channels, num_layers)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(InputError, match="norm is 'Batch'; it must be one of: batch, none"):
        PatchDiscriminator(norm="Batch")  # type: ignore[arg-type]
