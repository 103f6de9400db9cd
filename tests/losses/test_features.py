from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gsq_lightning.errors import InputError
from gsq_lightning.losses import DINOLoss, DINOPatchLoss, FeatureLoss, ResNetLoss, VGGLoss
from gsq_lightning.pretrained import weights as pretrained


def loaded(kind: type[FeatureLoss], **options: Any) -> FeatureLoss:
    loss = kind(weights="random", **options)  # type: ignore[call-arg]
    loss.load()
    return loss


@pytest.fixture(scope="module")
def dino() -> FeatureLoss:
    return loaded(DINOLoss, input_size=28)


@pytest.fixture(scope="module")
def patches() -> FeatureLoss:
    return loaded(DINOPatchLoss, input_size=28)


@pytest.fixture(scope="module")
def resnet() -> FeatureLoss:
    return loaded(ResNetLoss, input_size=32)


@pytest.fixture(scope="module")
def resnet_features() -> FeatureLoss:
    return loaded(ResNetLoss, input_size=32, output="features")


@pytest.fixture(scope="module")
def vgg() -> FeatureLoss:
    return loaded(VGGLoss, input_size=32)


def network_of(loss: FeatureLoss) -> Any:
    assert loss.network is not None
    return loss.network.network[1]


def dino_class_token(loss: FeatureLoss, x: Tensor) -> Tensor:
    final, _ = network_of(loss).forward_intermediates(x)
    return final[:, 0]


def dino_patch_tokens(loss: FeatureLoss, x: Tensor) -> Tensor:
    final, _ = network_of(loss).transformer.forward_intermediates(x)
    return final[:, 5:]


def resnet_logits(loss: FeatureLoss, x: Tensor) -> Tensor:
    network = network_of(loss)
    return F.linear(network.forward_features(x).mean(dim=(2, 3)), network.fc.weight, network.fc.bias)


def resnet_averages(loss: FeatureLoss, x: Tensor) -> Tensor:
    return network_of(loss).forward_features(x).mean(dim=(2, 3))


def vgg_logits(loss: FeatureLoss, x: Tensor) -> Tensor:
    network = network_of(loss)
    x = network.features(x).expand(-1, -1, 7, 7).flatten(1)  # one position, pooled to 7×7
    first, second, last = (network.classifier[index] for index in (0, 3, 6))
    return last(F.relu(second(F.relu(first(x)))))


KINDS = [
    ("dino", dino_class_token, (2, 384)),
    ("patches", dino_patch_tokens, (2, 4, 384)),
    ("resnet", resnet_logits, (2, 1000)),
    ("resnet_features", resnet_averages, (2, 2048)),
    ("vgg", vgg_logits, (2, 1000)),
]


@pytest.mark.parametrize(("name", "features", "shape"), KINDS, ids=[kind[0] for kind in KINDS])
def test_it_is_the_squared_error_of_the_features(
    name: str,
    features: Callable[[FeatureLoss, Tensor], Tensor],
    shape: tuple[int, ...],
    request: pytest.FixtureRequest,
) -> None:
    loss: FeatureLoss = request.getfixturevalue(name)
    image, reconstruction = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    size = loss.input_size
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    a, b = (features(loss, (F.adaptive_avg_pool2d((x + 1) / 2, size) - mean) / std) for x in (image, reconstruction))
    assert a.shape == shape
    expected = ((a - b) ** 2).sum() / a.numel()
    torch.testing.assert_close(loss(reconstruction, image), expected, rtol=1e-3, atol=1e-9)
    assert expected > 0
    assert float(loss(image, image)) == 0.0


@pytest.mark.parametrize("name", ["dino", "patches", "resnet", "vgg"])
def test_only_the_reconstruction_gets_a_gradient(name: str, request: pytest.FixtureRequest) -> None:
    loss: FeatureLoss = request.getfixturevalue(name)
    loss.train().requires_grad_(True)
    image, reconstruction = (torch.rand(2, 3, 40, 40, requires_grad=True) for _ in range(2))
    loss(reconstruction, image).backward()
    assert image.grad is None
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in network_of(loss).parameters())
    assert not any(module.training for module in network_of(loss).modules())
    assert not loss.state_dict()


def test_vgg_features_are_its_last_map(vgg: FeatureLoss, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(vgg)
    monkeypatch.setattr("gsq_lightning.losses.features.load_vgg16", lambda *_: network)  # it takes a second to build
    loss = loaded(VGGLoss, input_size=64, output="features")
    image, reconstruction = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    a, b = (network.features(((x + 1) / 2 - mean) / std) for x in (image, reconstruction))
    assert a.shape == (1, 512, 2, 2)
    torch.testing.assert_close(loss(reconstruction, image), ((a - b) ** 2).mean())


@pytest.mark.parametrize(
    ("kind", "size", "message"), [(DINOLoss, 256, "multiple of 14"), (ResNetLoss, 16, "32"), (VGGLoss, 0, "32")]
)
def test_sizes_that_do_not_fit_are_refused(kind: type[FeatureLoss], size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(input_size=size)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        (DINOLoss, "model.safetensors of timm/vit_small_patch14_reg4_dinov2.lvd142m"),
        (DINOPatchLoss, "model.safetensors of timm/vit_small_patch14_reg4_dinov2.lvd142m"),
        (ResNetLoss, "model.safetensors of timm/resnet50.a1_in1k"),
        (VGGLoss, "vgg16-397923af.pth"),
    ],
)
def test_weights_are_asked_for_when_training_starts(
    kind: type[FeatureLoss], file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(pretrained, "reachable", lambda url: False)
    loss = kind()  # type: ignore[call-arg]
    with pytest.raises(InputError, match=f"{file} is not in {tmp_path}"):
        loss.load()
