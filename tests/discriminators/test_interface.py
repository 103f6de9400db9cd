import pytest
import torch
from torch import nn

from gsq_lightning.discriminators import Discriminator, PatchDiscriminator, as_discriminator
from gsq_lightning.losses import PerceptualLoss


def test_any_module_serves_as_a_discriminator() -> None:
    network = nn.Conv2d(3, 1, kernel_size=4, stride=4)
    discriminator = as_discriminator(network)
    image, reconstruction = torch.rand(2, 2, 3, 8, 8)
    pair = discriminator.forward_pair(image, reconstruction)
    torch.testing.assert_close(pair.real, network(image))
    torch.testing.assert_close(pair.fake, network(reconstruction))
    assert list(discriminator.parameters()) == list(network.parameters())
    discriminator.load()


def test_a_discriminator_stays_itself() -> None:
    discriminator = PatchDiscriminator(num_layers=1)
    assert as_discriminator(discriminator) is discriminator


@pytest.mark.parametrize("interface", [Discriminator, PerceptualLoss])
def test_a_class_without_forward_cannot_be_made(interface: type[nn.Module]) -> None:
    """It says so when it is made, not after the first batch."""
    incomplete = type("Incomplete", (interface,), {})
    with pytest.raises(TypeError, match="abstract"):
        incomplete()
