import warnings
from pathlib import Path

import lpips
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from gsq_lightning.errors import InputError
from gsq_lightning.losses import LPIPS


@pytest.fixture(scope="module")
def vgg16() -> nn.Module:
    """torchvision's convolutions with random weights."""
    torch.manual_seed(1)
    return make_layers(cfgs["D"]).eval()


@pytest.fixture(scope="module")
def published(vgg16: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "vgg16-397923af.pth"
    torch.save({f"features.{name}": value for name, value in vgg16.state_dict().items()}, path)
    return str(path)


@pytest.fixture(scope="module")
def loss(published: str) -> LPIPS:
    loss = LPIPS(published)
    loss.load()
    return loss


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    return (image + 0.3 * torch.randn_like(image)).clamp(-1, 1), image


@torch.no_grad()
def lpips_by_hand(vgg16: nn.Module, first: Tensor, second: Tensor) -> float:
    """Eq. 1 of arXiv 1801.03924 over torchvision's network, with the weights that the lpips package ships."""
    linear = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth", "cpu", weights_only=True)
    shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).view(2, 3, 1, 1)
    total = torch.zeros(len(first))
    x = (torch.cat([first, second]) - shift) / scale
    taps = [3, 8, 15, 22, 29]  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
    for number, layer in enumerate(vgg16.children()):
        x = layer(x)
        if number in taps:
            unit = x / x.norm(dim=1, keepdim=True)
            a, b = unit.chunk(2)
            weight = linear[f"lin{taps.index(number)}.model.1.weight"]
            total += (weight * (a - b) ** 2).sum(dim=1).mean(dim=(1, 2))
    return float(total.mean())


def test_it_is_lpips(loss: LPIPS, vgg16: nn.Module, pair: tuple[Tensor, Tensor]) -> None:
    expected = lpips_by_hand(vgg16, *pair)
    assert expected > 1e-3
    assert float(loss(*pair)) == pytest.approx(expected, rel=1e-3)
    assert float(loss(pair[1], pair[1])) == 0.0


def test_it_is_the_lpips_package(loss: LPIPS, vgg16: nn.Module, pair: tuple[Tensor, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips asks torchvision by an argument that is deprecated
        package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    names = dict(vgg16.state_dict())
    own = {name: value for name, value in package.state_dict().items() if name.startswith("net.slice")}
    for name in own:
        _, _, layer, kind = name.split(".")
        own[name] = names[f"{layer}.{kind}"]
    package.load_state_dict(own, strict=False)
    torch.testing.assert_close(loss(*pair), package(*pair).mean().detach(), rtol=1e-5, atol=1e-7)


def test_unit_range_feeds_what_the_reference_feeds(loss: LPIPS, published: str, pair: tuple[Tensor, Tensor]) -> None:
    unit = LPIPS(published, input_range="unit")
    unit.network = loss.network
    reconstruction, image = pair
    torch.testing.assert_close(unit(*pair), loss((reconstruction + 1) / 2, (image + 1) / 2))
    assert float(unit(*pair)) != pytest.approx(float(loss(*pair)), rel=0.05)


def test_training_leaves_it_as_it_is(loss: LPIPS, pair: tuple[Tensor, Tensor]) -> None:
    loss.train().requires_grad_(True)
    assert loss.network is not None
    assert float(loss(*pair)) == float(loss(*pair))  # dropout would differ
    assert not list(loss.parameters())
    assert not loss.state_dict()
    reconstruction = pair[0].requires_grad_()
    loss(reconstruction, pair[1]).backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in loss.network.network.parameters())


def test_a_step_against_its_gradient_brings_images_nearer(loss: LPIPS, pair: tuple[Tensor, Tensor]) -> None:
    reconstruction = pair[0].requires_grad_()
    before = loss(reconstruction, pair[1])
    (gradient,) = torch.autograd.grad(before, reconstruction)
    step = 0.05 / gradient.norm()
    after = loss(reconstruction.detach() - step * gradient, pair[1])
    assert (before - after).item() == pytest.approx(0.05 * gradient.norm().item(), rel=0.2)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other.pth' does not hold the weights of"):
        LPIPS(str(tmp_path / "other.pth")).load()
