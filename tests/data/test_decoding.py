"""Odd files that folders of images hold: decoded right, or named."""

import errno
import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gsq_lightning import InputError
from gsq_lightning.data.batch import UnreadableImage
from gsq_lightning.data.dataset import OnError, SourceImages
from gsq_lightning.data.decoding import decode_image, decode_plain_jpeg, image_suffixes
from gsq_lightning.data.sampler import SampleKey
from gsq_lightning.data.sources import FolderSource
from gsq_lightning.data.transforms import ResizeAndCrop, short_side_for
from gsq_lightning.pixels import image_to_pixels, picture_to_image

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def rgb(path: Path) -> np.ndarray:
    return decode_image(path.read_bytes()).permute(1, 2, 0).numpy()


def images_of(folder: Path, on_error: OnError = "raise") -> SourceImages:
    return SourceImages(FolderSource(folder), ResizeAndCrop(8, 8), on_error=on_error)


def test_gray_palette_and_transparent_images(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(rgb(tmp_path / "gray.png"), PIXELS[..., :1].repeat(3, axis=2))

    Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]])).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(rgb(tmp_path / "rgba.png"), PIXELS)

    palette = Image.fromarray(PIXELS // 128 * 255).quantize(8)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(rgb(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 40, 90), dtype=np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(rgb(tmp_path / "cmyk.jpg").astype(int) - flat).max() <= 3


def test_sixteen_bit_png_under_a_jpegs_name(tmp_path: Path) -> None:
    deep = PIXELS[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (tmp_path / "deep.png").rename(tmp_path / "deep.JPEG")
    np.testing.assert_array_equal(rgb(tmp_path / "deep.JPEG"), PIXELS[..., :1].repeat(3, axis=2))


def png_of(header: bytes, content: bytes) -> bytes:
    parts = ((b"IHDR", header), (b"IDAT", content), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in parts
    )


def packed_in(form: str, gray: np.ndarray, **tags: Any) -> bytes:
    """A gray image (H, W) in a file of some form, its values as they are."""
    height, width = gray.shape
    buffer = io.BytesIO()
    if form == "png":
        Image.fromarray(gray.astype(np.uint16)).save(buffer, "PNG")
    elif form == "rgb png":
        rows = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in gray)
        return png_of(struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0), zlib.compress(rows))
    elif form in ("pgm", "ppm"):
        magic, channels, greatest = {"pgm": ("P5", 1), "ppm": ("P6", 3)}[form] + (tags["greatest"],)
        return f"{magic} {width} {height} {greatest}\n".encode() + gray.astype(">u2").repeat(channels).tobytes()
    elif form == "pfm":
        return f"Pf {width} {height} -1.0\n".encode() + gray[::-1].astype("<f4").tobytes()
    else:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(buffer, gray.astype(form.removeprefix("tiff ")), **tags)
    return buffer.getvalue()


GRAY = PIXELS[..., 0].copy()
GRAY[0, :2] = 0, 255
TWELVE_BITS = GRAY.astype(np.int64) * 4095 // 255
SIXTEEN_BITS = GRAY.astype(np.int64) * 257
DECLARES_12_BITS = {"extratags": [(281, 3, 1, 4095, True)]}


@pytest.mark.parametrize(
    ("form", "values", "tags"),
    [
        ("png", SIXTEEN_BITS, {}),
        ("rgb png", SIXTEEN_BITS, {}),
        ("pgm", SIXTEEN_BITS, {"greatest": 65535}),
        ("ppm", SIXTEEN_BITS, {"greatest": 65535}),
        ("pgm", TWELVE_BITS, {"greatest": 4095}),
        ("ppm", TWELVE_BITS, {"greatest": 4095}),
        ("pgm", GRAY.astype(np.int64) * 1023 // 255, {"greatest": 1023}),
        ("tiff uint16", SIXTEEN_BITS, {}),
        ("tiff >u2", SIXTEEN_BITS, {}),
        ("tiff uint16", 65535 - SIXTEEN_BITS, {"photometric": "miniswhite"}),
        ("tiff uint8", 255 - GRAY, {"photometric": "miniswhite"}),
        ("tiff uint16", TWELVE_BITS, DECLARES_12_BITS),
        ("tiff uint16", 4095 - TWELVE_BITS, DECLARES_12_BITS | {"photometric": "miniswhite"}),
        ("tiff float32", GRAY / 255, {}),
        ("tiff float32", 1 - GRAY / 255, {"photometric": "miniswhite"}),
        ("pfm", GRAY / 255, {}),
    ],
)
def test_gray_is_scaled_from_the_range_that_its_file_declares(
    form: str, values: np.ndarray, tags: dict[str, Any], tmp_path: Path
) -> None:
    content = packed_in(form, values, **tags)
    decoded = decode_image(content)
    expected = torch.from_numpy(GRAY).expand(3, -1, -1)
    assert (decoded.int() - expected.int()).abs().max() <= 1
    for picture in read_as_picture(content, tmp_path):
        assert torch.equal(picture, decoded)


def read_as_picture(content: bytes, folder: Path) -> Iterator[torch.Tensor]:
    """As `encode_image` reads it: by its path, and opened."""
    (folder / "picture").write_bytes(content)
    yield image_to_pixels(picture_to_image(folder / "picture"))[0]
    yield image_to_pixels(picture_to_image(Image.open(folder / "picture")))[0]


@pytest.mark.parametrize(
    ("form", "values", "tags", "message"),
    [
        ("png", TWELVE_BITS, {}, "end near 4095 of 65535: it seems to have fewer bits"),
        ("rgb png", TWELVE_BITS, {}, "seems to have fewer bits"),
        ("png", GRAY.astype(np.int64) * 16383 // 255, {}, "end near 16383"),
        ("pgm", TWELVE_BITS, {"greatest": 65535}, "seems to have fewer bits"),
        ("ppm", TWELVE_BITS, {"greatest": 65535}, "seems to have fewer bits"),
        ("tiff uint16", TWELVE_BITS, {}, "seems to have fewer bits"),
        ("tiff uint16", SIXTEEN_BITS, DECLARES_12_BITS, "declares values up to 4095 and has some up to 65535"),
        ("tiff int16", GRAY, {}, "its values are signed"),
        ("tiff int8", GRAY // 2, {}, "its values are signed"),
        ("tiff int32", GRAY, {}, "its values are signed"),
        ("tiff uint32", SIXTEEN_BITS, {}, "32-bit integers, and their range is not known"),
        ("tiff float32", GRAY, {}, "floats from 0 to 255, and only the range from 0 to 1 is known"),
        ("tiff float32", SIXTEEN_BITS, {}, "floats from 0 to 65535"),
        ("tiff float32", GRAY / 127.5 - 1, {}, "floats from -1 to 1"),
        ("tiff float32", np.where(GRAY > 9, GRAY / 255, np.nan), {}, "floats from nan"),
        ("pfm", GRAY, {}, "floats from 0 to 255"),
    ],
)
def test_gray_of_an_unknown_range_is_refused_rather_than_black_or_white(
    form: str, values: np.ndarray, tags: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = packed_in(form, values, **tags)
    with pytest.raises(ValueError, match=message):
        decode_image(content)
    (tmp_path / "picture").write_bytes(content)
    for picture in (tmp_path / "picture", Image.open(tmp_path / "picture")):
        with pytest.raises(InputError, match=rf"cannot be read.*{message}"):
            picture_to_image(picture)


def test_a_black_image_of_16_bits_is_black() -> None:
    assert decode_image(packed_in("png", np.zeros((4, 4)))).max() == 0


def test_orientation_alpha_and_profiles_are_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    see_through = np.dstack([PIXELS, np.zeros_like(GRAY)])
    Image.fromarray(see_through).save(tmp_path / "odd.png", exif=exif, icc_profile=b"profile")
    np.testing.assert_array_equal(rgb(tmp_path / "odd.png"), PIXELS)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PNG of 16 bits"])
def test_pictures_differ_from_images_in_their_orientation_alone(tmp_path: Path, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    pixels = GRAY.astype(np.uint16) * 257 if form == "PNG of 16 bits" else PIXELS
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form.split()[0], exif=exif)
    expected = np.repeat(GRAY[..., None], 3, axis=2) if form == "PNG of 16 bits" else PIXELS
    stored = np.rot90(expected, -1) if form == "TIFF" else expected  # which Pillow turns by itself
    np.testing.assert_array_equal(decode_image(buffer.getvalue()).permute(1, 2, 0), stored)
    for picture in read_as_picture(buffer.getvalue(), tmp_path):
        np.testing.assert_array_equal(picture.permute(1, 2, 0), np.rot90(expected, -1))


def test_all_suffixes_of_single_pictures_that_pillow_reads_are_images() -> None:
    expected = {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif"}
    assert expected | {".tiff", ".gif", ".jp2", ".j2k", ".tga"} <= image_suffixes()
    assert not {".eps", ".ps", ".pdf", ".mpg", ".mpeg", ".h5", ".hdf", ".fits", ".wmf", ".grib"} & image_suffixes()


def test_postscript_is_not_run_whatever_its_name(tmp_path: Path) -> None:
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    with pytest.raises(ValueError, match="no image of a known format"):
        decode_image(content)
    (tmp_path / "picture.jpg").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a picture: its content is no image of a known format"):
        picture_to_image(tmp_path / "picture.jpg")


def test_the_first_picture_of_an_animation(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (10, 200)]
    pictures[0].save(tmp_path / "moving.gif", save_all=True, append_images=pictures[1:])
    assert rgb(tmp_path / "moving.gif").max() == 10


def test_broken_exif_does_not_matter(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", quality=95)
    whole = buffer.getvalue()
    broken = b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage"
    segment = b"\xff\xe1" + struct.pack(">H", len(broken) + 2) + broken
    (tmp_path / "exif.jpg").write_bytes(whole[:2] + segment + whole[2:])
    (tmp_path / "plain.jpg").write_bytes(whole)
    np.testing.assert_array_equal(rgb(tmp_path / "exif.jpg"), rgb(tmp_path / "plain.jpg"))
    for picture in read_as_picture((tmp_path / "exif.jpg").read_bytes(), tmp_path):
        np.testing.assert_array_equal(picture.permute(1, 2, 0), rgb(tmp_path / "plain.jpg"))


def bomb() -> bytes:
    """A PNG of 60,000 × 60,000 pixels in a few bytes."""

    return png_of(struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), zlib.compress(b""))


def truncated() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS.repeat(20, axis=0).repeat(20, axis=1)).save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def rare() -> bytes:
    """A DDS texture of a kind that Pillow has not implemented, for which its errors are others."""
    return struct.pack("<4s7I44x8I20x", b"DDS ", 124, 0x1007, 4, 4, 0, 0, 0, 32, 8192, 0, 0, 0, 0, 0, 0) + bytes(64)


@pytest.mark.parametrize(
    "content", [b"", b"no picture", truncated(), bomb(), rare()], ids=["empty", "text", "truncated", "bomb", "rare"]
)
def test_what_cannot_be_decoded_is_named_or_skipped(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd name 猫.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"odd name 猫.jpg cannot be read as an image"):
        images_of(tmp_path)[SampleKey(0, 0)]
    skipped = images_of(tmp_path, "skip")[SampleKey(0, 0)]
    assert isinstance(skipped, UnreadableImage)
    assert skipped.path.endswith("odd name 猫.jpg")


def test_a_strip_that_would_be_resized_to_gigabytes_is_named_or_skipped(tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 1)).save(tmp_path / "strip.png")
    with pytest.raises(InputError, match="60000×1 pixels are too narrow: with a short side of 256 it would be huge"):
        SourceImages(FolderSource(tmp_path), ResizeAndCrop(256, 256))[SampleKey(0, 0)]


@pytest.mark.parametrize(
    ("size", "ratio", "short"), [(56, 0.56, 100), (256, 0.875, 292), (256, 1.0, 256), (7, 0.5, 14)]
)
def test_the_short_side_of_a_crop_ratio(size: int, ratio: float, short: int) -> None:
    assert short_side_for(size, ratio) == short


def test_a_file_that_vanished_is_named_or_skipped(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "here.png")
    images = images_of(tmp_path, "skip")
    (tmp_path / "here.png").unlink()
    assert isinstance(images[SampleKey(0, 0)], UnreadableImage)


def test_a_disk_that_is_gone_is_no_unreadable_image(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "disk" / "here.png")
    images = images_of(tmp_path / "disk", "skip")
    (tmp_path / "disk").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"here.png was not read: No such file .* the system's fault, not the image's"):
        images[SampleKey(0, 0)]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
def test_what_the_system_fails_to_read_is_no_unreadable_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "good.png")
    images = images_of(tmp_path, "skip")

    def fail(*arguments: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(InputError, match=f"good.png was not read: {os.strerror(number)}"):
        images[SampleKey(0, 0)]


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "b.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    Image.fromarray(PIXELS).save(tmp_path / "deep" / "er" / "a.jpg")
    assert list(FolderSource(tmp_path).names) == ["b.PNG", "deep/er/a.jpg"]


@pytest.mark.parametrize("size", [(1, 1), (17, 9), (40, 64)])
@pytest.mark.parametrize("color", ["RGB", "L"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 30}]
)
def test_jpeg_is_decoded_as_pillow_does(size: tuple[int, int], color: str, options: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    smooth = Image.fromarray(PIXELS).resize(size, Image.Resampling.BICUBIC).convert(color)
    smooth.save(buffer, "JPEG", **options)
    decoded = decode_image(buffer.getvalue())
    np.testing.assert_array_equal(decoded.permute(1, 2, 0).numpy(), np.asarray(Image.open(buffer).convert("RGB")))
    assert decode_plain_jpeg(buffer.getvalue()) is not None  # it went the fast way


def test_jpeg_with_something_after_its_end_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG")
    whole = decode_image(buffer.getvalue())
    assert torch.equal(decode_image(buffer.getvalue() + b"appended by a camera"), whole)
