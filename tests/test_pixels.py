from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gsq_lightning import InputError
from gsq_lightning.pixels import image_to_picture, image_to_pixels, picture_to_image, pixels_to_image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_pixels_come_back_exactly() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    image = pixels_to_image(pixels)
    assert (float(image[0]), float(image[-1])) == (-1.0, 1.0)
    assert torch.equal(image_to_pixels(image), pixels)


def test_pictures_of_any_kind_are_one_image(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "picture.png")
    expected = torch.from_numpy(PIXELS).permute(2, 0, 1).double() / 127.5 - 1
    for picture in (
        tmp_path / "picture.png",
        str(tmp_path / "picture.png"),
        Image.fromarray(PIXELS),
        PIXELS,
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1)[None],
        expected,
        expected[None],
    ):
        image = picture_to_image(picture)
        assert image.shape == (1, 3, 5, 7)
        torch.testing.assert_close(image[0].double(), expected, atol=1e-6, rtol=0)
    assert np.array_equal(np.asarray(image_to_picture(image)), PIXELS)


def test_pictures_of_three_rows_have_their_channels_last(tmp_path: Path) -> None:
    pixels = PIXELS[:3]
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    for picture in (tmp_path / "picture.png", Image.open(tmp_path / "picture.png"), Image.fromarray(pixels), pixels):
        assert np.array_equal(np.asarray(image_to_picture(picture_to_image(picture))), pixels)


def test_arrays_may_be_flipped_or_read_only() -> None:
    """As OpenCV's channels in the other order are, and Pillow's own arrays."""
    read_only = np.asarray(Image.fromarray(PIXELS))
    assert not read_only.flags.writeable
    for array in (PIXELS[..., ::-1], PIXELS[::-1], read_only):
        assert np.array_equal(np.asarray(image_to_picture(picture_to_image(array))), array)


def test_gray_palettes_and_orientation() -> None:
    gray = PIXELS[..., 0]
    expected = np.repeat(gray[..., None], 3, axis=2)
    for picture in (Image.fromarray(gray), gray):
        assert np.array_equal(np.asarray(image_to_picture(picture_to_image(picture))), expected)
    turned = Image.fromarray(PIXELS)
    turned.getexif()[0x0112] = 6  # to be turned clockwise
    assert np.array_equal(np.asarray(image_to_picture(picture_to_image(turned))), np.rot90(PIXELS, -1))


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    for picture, message in (
        (tmp_path / "broken.png", r"broken\.png cannot be read as a picture"),
        (tmp_path / "missing.png", r"missing\.png cannot be read as a picture"),
        (Image.new("I;16", (4, 4)), "mode I;16, whose range is not that of 8 bits"),
        (np.zeros((4, 4, 3), np.int64), "it must be a path, a Pillow image, uint8"),
        (torch.zeros(2, 3, 4, 4), r"torch.float32 of shape \(2, 3, 4, 4\)"),
        (PIXELS[:0], r"of shape \(3, 0, 7\)"),
        (None, "of the type NoneType; it must be a path"),
        (b"abc", "of the type bytes; it must be a path"),
    ):
        with pytest.raises(InputError, match=message):
            picture_to_image(picture)
