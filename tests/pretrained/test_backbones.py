from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import AlexNet_Weights, VGG16_Weights
from torchvision.transforms.v2 import functional as F

from gsq_lightning.errors import InputError
from gsq_lightning.pretrained.backbones import (
    ALEXNET,
    DINOV2,
    IMAGENET_MEAN,
    IMAGENET_STD,
    RESNET50,
    VGG16,
    ImageNetInput,
    load_dinov2,
    load_resnet50,
    load_vgg16,
)
from gsq_lightning.pretrained.weights import PublishedWeights


@pytest.mark.parametrize(
    ("name", "published"),
    [("vit_small_patch14_reg4_dinov2.lvd142m", DINOV2), ("resnet50.a1_in1k", RESNET50)],
)
def test_timm_takes_the_same_files_and_normalization(name: str, published: PublishedWeights) -> None:
    config = timm.get_pretrained_cfg(name)
    assert config.hf_hub_id == published.repository
    assert (config.mean, config.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_torchvision_takes_the_same_files() -> None:
    assert VGG16_Weights.IMAGENET1K_V1.url == VGG16.url
    assert AlexNet_Weights.IMAGENET1K_V1.url == ALEXNET.url


def test_input_is_averaged_over_areas_and_normalized() -> None:
    image = torch.rand(2, 3, 8, 12) * 2 - 1
    unit = (image + 1) / 2
    blocks = unit.view(2, 3, 4, 2, 4, 3).mean(dim=(3, 5))  # 2×3 pixels to one
    expected = F.normalize(blocks, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(ImageNetInput(4)(image), expected)
    same_size = F.normalize(unit[..., :8], list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(ImageNetInput(8)(image[..., :8]), same_size)


def test_input_is_float32() -> None:
    image = (torch.rand(1, 3, 8, 8) * 2 - 1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normalized = ImageNetInput(4)(image)
    torch.testing.assert_close(normalized, ImageNetInput(4)(image.float()), rtol=0, atol=0)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """DINOv2 with random weights on a grid of 5×5, under timm's names."""
    torch.manual_seed(0)
    state = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=70, init_values=1.0).state_dict()
    return state | {"cls_token": torch.randn(1, 1, 384), "reg_token": torch.randn(1, 4, 384)}


def test_dinov2_is_read_from_the_hubs_file(published: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(published, tmp_path / "model.safetensors")
    network = load_dinov2(str(tmp_path / "model.safetensors"), 70)
    torch.testing.assert_close(dict(network.state_dict()), published, rtol=0, atol=0)
    # another size: positions between the published ones, everything else as it was
    smaller = load_dinov2(str(tmp_path / "model.safetensors"), 56).state_dict()
    assert [name for name in published if not torch.equal(smaller[name], published[name])] == ["pos_embed"]
    assert smaller["pos_embed"].shape == (1, 16, 384)
    torch.testing.assert_close(smaller["pos_embed"].mean(), published["pos_embed"].mean(), rtol=0.1, atol=1e-4)


def test_dinov2_is_read_from_metas_file(published: dict[str, Tensor], tmp_path: Path) -> None:
    """There positions include the class token's, and names differ."""
    state = dict(published)
    of_class = torch.randn(1, 1, 384)
    state["register_tokens"] = state.pop("reg_token")
    state["cls_token"] = state["cls_token"] - of_class
    state["pos_embed"] = torch.cat([of_class, state["pos_embed"]], dim=1)
    state["mask_token"] = torch.zeros(1, 384)
    torch.save(state, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    network = load_dinov2(str(tmp_path / "dinov2_vits14_reg4_pretrain.pth"), 70)
    torch.testing.assert_close(dict(network.state_dict()), published, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("load", [load_resnet50, load_vgg16])
def test_weights_of_another_network_are_refused(load, published: dict[str, Tensor], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "model.safetensors"
    save_file({"norm.weight": published["norm.weight"]}, path)
    with pytest.raises(InputError, match=r"not the weights of (ResNet-50|VGG-16)") as error:
        load(str(path))
    assert len(str(error.value)) < 600


def test_random_weights_are_the_same_each_time() -> None:
    first, second = (load_dinov2("random", 28).state_dict() for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
