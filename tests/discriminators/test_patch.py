import pytest
import torch
from torch import nn

from gsq_lightning.discriminators import PatchDiscriminator
from gsq_lightning.errors import InputError


def test_it_has_the_weights_of_pix2pix() -> None:
    """Layers of 64, 128, 256, 512 and 1 channels with 4×4 kernels; no bias where a batch norm follows."""
    convolutions = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1)
    biases, batch_norms = 64 + 1, 2 * (128 + 256 + 512)
    assert sum(weight.numel() for weight in PatchDiscriminator().parameters()) == convolutions + biases + batch_norms


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


def test_it_starts_as_pix2pix_does() -> None:
    discriminator = PatchDiscriminator()
    kernels = torch.cat([m.weight.detach().flatten() for m in discriminator.modules() if isinstance(m, nn.Conv2d)])
    scales = torch.cat([m.weight.detach() for m in discriminator.modules() if isinstance(m, nn.BatchNorm2d)])
    assert kernels.mean().abs() < 1e-4
    assert float(kernels.std()) == pytest.approx(0.02, rel=0.01)
    assert float(scales.mean()) == pytest.approx(1.0, abs=0.005)
    assert float(scales.std()) == pytest.approx(0.02, rel=0.1)


def test_a_pair_is_two_calls() -> None:
    discriminator = PatchDiscriminator(channels=4, num_layers=2)
    image, reconstruction = torch.rand(2, 2, 3, 32, 32)
    pair = discriminator.forward_pair(image, reconstruction)
    torch.testing.assert_close(pair.real, discriminator(image))
    torch.testing.assert_close(pair.fake, discriminator(reconstruction))


@pytest.mark.parametrize(("channels", "num_layers"), [(0, 3), (64, 0)])
def test_sizes_that_make_no_sense_are_refused(channels: int, num_layers: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        PatchDiscriminator(channels, num_layers)
