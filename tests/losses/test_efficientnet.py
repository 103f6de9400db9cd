import io

import pytest
import skimage
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from gsq_lightning.errors import InputError
from gsq_lightning.losses import EfficientNetLoss
from gsq_lightning.pretrained.efficientnet import load_efficientnet_lite0, network_input


@pytest.fixture(scope="module")
def loss() -> EfficientNetLoss:
    loss = EfficientNetLoss()
    loss.load()
    return loss


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """(1, 3, 128, 128) in [-1, 1]: a face."""
    pixels = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None, :, 60:188, 160:288]
    return pixels.float() / 127.5 - 1


def jpeg(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    transforms.to_pil_image((image[0] + 1) / 2).save(buffer, "JPEG", quality=quality)
    return transforms.pil_to_tensor(Image.open(buffer))[None].float() / 127.5 - 1


@torch.no_grad()
def test_it_is_lpips_before_its_calibration(loss: EfficientNetLoss) -> None:
    """Eq. 1 of arXiv 1801.03924 with weights of 1, over timm's network as it comes."""
    image, reconstruction = torch.rand(2, 2, 3, 40, 56) * 2 - 1
    network = load_efficientnet_lite0("pretrained").eval()
    expected = torch.zeros(2)
    for x, y in zip(
        *(
            network.forward_intermediates(network_input(image), intermediates_only=True)
            for image in (reconstruction, image)
        ),
        strict=True,
    ):
        squares = (x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)) ** 2
        expected += squares.sum(dim=1).mean(dim=(1, 2))
    torch.testing.assert_close(loss(reconstruction, image), expected.mean(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_it_grows_with_damage_and_forgives_a_shift(loss: EfficientNetLoss, photograph: Tensor) -> None:
    noise = torch.randn_like(photograph)
    damages = {
        "blur": [transforms.gaussian_blur(photograph, 9, [sigma]) for sigma in (0.8, 1.2, 2.0)],
        "noise": [photograph + strength * noise for strength in (0.03, 0.1, 0.3)],
        "JPEG": [jpeg(photograph, quality) for quality in (60, 25, 8)],
    }
    assert float(loss(photograph, photograph)) == 0.0
    shifted = float(loss(photograph.roll(1, dims=3), photograph))
    for name, images in damages.items():
        distances = [float(loss(image, photograph)) for image in images]
        assert sorted(distances) == distances, name
        assert distances[1] > shifted, name  # although the shift costs more squared error than any of these


def test_the_gradient_is_that_of_finite_differences(loss: EfficientNetLoss, photograph: Tensor) -> None:
    reconstruction = transforms.gaussian_blur(photograph, 9, [1.2])[..., :64, :64].clone().requires_grad_()
    image = photograph[..., :64, :64]
    (gradient,) = torch.autograd.grad(loss(reconstruction, image), reconstruction)
    for direction in (gradient, torch.randn_like(image).sign() * gradient.abs()):
        step = 0.003 * direction / direction.norm()
        with torch.no_grad():
            difference = (loss(reconstruction + step, image) - loss(reconstruction - step, image)) / 2
        assert float(difference) == pytest.approx(float((gradient * step).sum()), rel=0.02, abs=1e-5)


@torch.no_grad()
def test_depths_can_be_weighted(loss: EfficientNetLoss) -> None:
    pair = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    alone = []
    for depth in range(5):
        one = EfficientNetLoss(depth_weights=[float(depth == other) for other in range(5)])
        one.network = loss.network
        alone.append(one(*pair))
    assert min(alone) > 0
    torch.testing.assert_close(loss(*pair), sum(alone))


@torch.no_grad()
def test_it_computes_in_float32(loss: EfficientNetLoss) -> None:
    pair = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    expected = float(loss(*pair))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(loss(*pair)) == expected
        assert float(EfficientNetLoss()(*pair)) == expected  # which loads its network by itself


@pytest.mark.parametrize("weights", [(1.0,) * 4, (0.0,) * 5, (1.0, 1.0, -1.0, 1.0, 1.0)])
def test_depth_weights_that_make_no_sense_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"depth_weights is .* it takes 5 numbers"):
        EfficientNetLoss(depth_weights=weights)


def test_images_that_are_too_small_are_refused(loss: EfficientNetLoss) -> None:
    with pytest.raises(InputError, match="at least 32 pixels each way, these have 31×64"):
        loss(*torch.zeros(2, 1, 3, 31, 64))
