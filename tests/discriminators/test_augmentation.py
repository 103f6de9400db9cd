from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gsq_lightning.discriminators import AugmentationDraw, DifferentiableAugmentation
from gsq_lightning.errors import InputError

ALL = ("cutout", "color", "translation", "resize")


def draw_of(**changes: list[Any]) -> AugmentationDraw:
    """For one image: what changes nothing, but for `changes`."""
    parts: dict[str, list[Any]] = {
        "brightness": [0.0],
        "saturation": [1.0],
        "contrast": [1.0],
        "shift": [[0, 0]],
        "hole": [[-100, -100]],
        "zoom": [1.0],
    }
    return AugmentationDraw(**{name: torch.tensor(value) for name, value in (parts | changes).items()})


def numbered_image(height: int, width: int) -> Tensor:
    """No two pixels are equal, and none is black."""
    return torch.arange(1.0, 3 * height * width + 1).view(1, 3, height, width) / 1000


def test_a_draw_that_changes_nothing_changes_nothing() -> None:
    image = torch.rand(1, 3, 16, 20) * 2 - 1
    torch.testing.assert_close(DifferentiableAugmentation(ALL)(image, draw_of()), image)


def test_color_in_numbers() -> None:
    """One gray and one colored pixel, given in [0, 1]; brightness, then saturation, then contrast."""
    image = 2 * torch.tensor([[0.4, 0.1], [0.4, 0.4], [0.4, 0.7]]).view(1, 3, 1, 2) - 1
    augmentation = DifferentiableAugmentation(["color"])

    def pixels(**changes: list[float]) -> np.ndarray:
        return (augmentation(image, draw_of(**changes))[0, :, 0].T.numpy() + 1) / 2

    np.testing.assert_allclose(pixels(brightness=[0.3]), [[0.7, 0.7, 0.7], [0.4, 0.7, 1.0]], atol=1e-6)
    np.testing.assert_allclose(pixels(saturation=[0.5]), [[0.4, 0.4, 0.4], [0.25, 0.4, 0.55]], atol=1e-6)
    np.testing.assert_allclose(pixels(saturation=[0.0]), [[0.4] * 3, [0.4] * 3], atol=1e-6)
    np.testing.assert_allclose(pixels(contrast=[1.5]), [[0.4, 0.4, 0.4], [-0.05, 0.4, 0.85]], atol=1e-6)
    # 0.5 · (0.2 · (x - 0.4)) about the new mean 0.7
    np.testing.assert_allclose(
        pixels(brightness=[0.3], saturation=[0.2], contrast=[0.5]), [[0.7, 0.7, 0.7], [0.67, 0.7, 0.73]], atol=1e-6
    )


def test_a_brightness_of_a_half_turns_gray_into_white_or_black() -> None:
    """On [-1, 1] it would be half as strong as in DiffAugment, which works on [0, 1]."""
    gray = torch.zeros(1, 3, 2, 2)
    augmentation = DifferentiableAugmentation(["color"])
    assert augmentation(gray, draw_of(brightness=[0.5])).eq(1).all()
    assert augmentation(gray, draw_of(brightness=[-0.5])).eq(-1).all()


def test_the_default_is_color_then_translation_then_cutout_on_0_to_1() -> None:
    """The reference's released order, by numpy in float64."""
    image = torch.rand(1, 3, 10, 20) * 2 - 1
    draw = draw_of(brightness=[0.2], saturation=[1.5], contrast=[0.7], shift=[[1, -2]], hole=[[3, 5]])
    x = (image[0].double().numpy() + 1) / 2 + 0.2
    x = x.mean(axis=0) + 1.5 * (x - x.mean(axis=0))
    x = x.mean() + 0.7 * (x - x.mean())
    moved = np.zeros_like(x)
    moved[:, 1:, :-2] = x[:, :-1, 2:]
    moved[:, 3:5, 5:9] = 0.0
    np.testing.assert_allclose(DifferentiableAugmentation()(image, draw)[0], 2 * moved - 1, atol=1e-6)


@pytest.mark.parametrize("shift", [(2, 0), (0, -3), (-1, 2)])
def test_translation_moves_whole_pixels_and_fills_with_black(shift: tuple[int, int]) -> None:
    image = numbered_image(8, 16)
    expected = -np.ones_like(image)
    for row in range(8):
        for column in range(16):
            source = (row - shift[0], column - shift[1])
            if 0 <= source[0] < 8 and 0 <= source[1] < 16:
                expected[:, :, row, column] = image[:, :, source[0], source[1]]
    moved = DifferentiableAugmentation(["translation"])(image, draw_of(shift=[shift]))
    np.testing.assert_allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize(("hole", "rows", "columns"), [((3, 5), (3, 5), (5, 9)), ((-1, 18), (0, 1), (18, 20))])
def test_cutout_is_a_fifth_of_each_side(hole: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    image = numbered_image(10, 20)
    expected = image.clone()
    expected[:, :, slice(*rows), slice(*columns)] = -1
    torch.testing.assert_close(DifferentiableAugmentation(["cutout"])(image, draw_of(hole=[hole])), expected)


def test_resize_magnifies_about_the_center() -> None:
    """On a ramp, bilinear interpolation is exact: twice as large, half as steep."""
    ramp = torch.arange(-7.5, 8.0).view(1, 1, 1, 16).expand(1, 3, 16, 16) / 8  # 0, mid-gray, at the center
    augmentation = DifferentiableAugmentation(["resize"])
    torch.testing.assert_close(augmentation(ramp, draw_of(zoom=[2.0])), ramp / 2)
    half = augmentation(ramp, draw_of(zoom=[0.5]))
    torch.testing.assert_close(half[..., 5:11, 5:11], 2 * ramp[..., 5:11, 5:11])
    assert half[..., :3].eq(-1).all()
    assert half[..., :3, :].eq(-1).all()


def test_draws_have_the_strengths_of_the_paper() -> None:
    draw = DifferentiableAugmentation().draw(torch.empty(20000, 3, 32, 40))
    for values, low, high in [
        (draw.brightness, -0.5, 0.5),
        (draw.saturation, 0.0, 2.0),
        (draw.contrast, 0.5, 1.5),
        (draw.zoom, 0.8, 1.2),
    ]:
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02)
        assert values.std() == pytest.approx((high - low) / 12**0.5, rel=0.02)  # of a uniform distribution
    # 12.5 % of 32 and of 40 pixels, either way
    assert draw.shift[:, 0].unique().tolist() == list(range(-4, 5))
    assert draw.shift[:, 1].unique().tolist() == list(range(-5, 6))
    assert draw.shift.float().mean(0).abs().max() < 0.1
    # of 20 and of 28 pixels 2.5 and 3.5, rounded up as DiffAugment does
    shift = DifferentiableAugmentation().draw(torch.empty(1000, 3, 20, 28)).shift
    assert shift.amax(dim=0).tolist() == [3, 4]


@pytest.mark.parametrize("side", [20, 25])  # holes of 4 and of 5 pixels
def test_cutout_falls_on_both_borders_alike(side: int) -> None:
    augmentation = DifferentiableAugmentation(["cutout"])
    image = torch.ones(20000, 1, side, side)
    cut = (augmentation(image) == -1).float().mean(dim=(0, 1, 3))  # how often each row is touched, on average
    torch.testing.assert_close(cut, cut.flip(0), atol=0.004, rtol=0)
    assert float(cut[side // 2]) == pytest.approx(float(cut.max()), rel=0.1)


def test_images_of_a_batch_are_changed_differently() -> None:
    image = torch.rand(1, 3, 16, 16).expand(8, -1, -1, -1)
    for name in ALL:
        augmented = DifferentiableAugmentation([name])(image)  # type: ignore[list-item]
        assert len(augmented.flatten(1).unique(dim=0)) >= 6, name


def test_the_same_seed_gives_the_same_draw() -> None:
    augmentation = DifferentiableAugmentation(ALL)
    image = torch.rand(4, 3, 16, 16)
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(augmentation.draw(image))
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_exact(name: str) -> None:
    """Each operation is affine in the image: a gradient gives differences exactly, however large."""
    augmentation = DifferentiableAugmentation([name])  # type: ignore[list-item]
    image, change, weight = torch.randn(3, 4, 3, 12, 12)
    image.requires_grad_()
    draw = augmentation.draw(image)
    before = augmentation(image, draw)
    (gradient,) = torch.autograd.grad((weight * before).sum(), image)
    difference = (weight * (augmentation(image + change, draw) - before)).sum()
    torch.testing.assert_close((gradient * change).sum(), difference, rtol=1e-4, atol=1e-3)


def test_same_draw_lasts_for_a_step() -> None:
    augmentation = DifferentiableAugmentation(ALL, same_draw=True)
    image = torch.rand(4, 3, 16, 16)
    with augmentation.within_step():
        first = augmentation(image)
        assert torch.equal(augmentation(image), first)
        assert torch.equal(augmentation(image.clone()), first)
    with augmentation.within_step():
        assert not torch.equal(augmentation(image), first)
    assert not torch.equal(augmentation(image), augmentation(image))


def test_without_same_draw_each_call_draws() -> None:
    augmentation = DifferentiableAugmentation(ALL)
    image = torch.rand(4, 3, 16, 16)
    with augmentation.within_step():
        assert not torch.equal(augmentation(image), augmentation(image))


def test_it_does_nothing_in_eval_mode() -> None:
    image = torch.rand(4, 3, 16, 16)
    assert torch.equal(DifferentiableAugmentation(ALL).eval()(image), image)


def test_it_computes_in_float32_under_autocast() -> None:
    augmentation = DifferentiableAugmentation(ALL)
    image = torch.rand(4, 3, 16, 16).bfloat16()
    draw = augmentation.draw(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        augmented = augmentation(image, draw)
    assert augmented.dtype == torch.float32
    torch.testing.assert_close(augmented, augmentation(image.float(), draw))


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(InputError, match="'colour'; it must be one of: color, translation, cutout, resize"):
        DifferentiableAugmentation(["colour"])  # type: ignore[list-item]


def test_an_empty_policy_is_refused() -> None:
    with pytest.raises(InputError, match="the augmentation policy is empty; leave the augmentation out"):
        DifferentiableAugmentation([])
