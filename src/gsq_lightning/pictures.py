"""Image files in 8-bit RGB, whatever their kind: what data modules and `GSQTokenizer.encode_image` read."""

import io
from functools import cache

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

# formats that Pillow opens and that are no single pictures: documents (some start other programs), videos, and arrays
# of scientific data
NO_PICTURES = frozenset(
    {"BUFR", "EPS", "FITS", "FLI", "GRIB", "HDF5", "IPTC", "MCIDAS", "MIC", "MPEG", "PDF", "SPIDER", "WMF"}
)

BITS, PHOTOMETRIC, MAX_SAMPLE_VALUE, SAMPLE_FORMAT = 258, 262, 281, 339  # tags of TIFF 6.0
WHITE_IS_ZERO, SIGNED = 0, 2
MAX_OF_14_BITS = 2**14 - 1


@cache
def picture_formats() -> list[str]:
    """Formats of single pictures that Pillow reads here."""
    Image.init()
    return [name for name in Image.ID if name not in NO_PICTURES]


def read_rgb(content: bytes, upright: bool = False) -> Image.Image:
    """The first picture of an image file in 8-bit RGB, by its content whatever its name, as `to_rgb` has it.

    Args:
        content: of the file.
        upright: turned as its EXIF orientation says; else as stored.

    Raises:
        ValueError: where it is damaged, no image, huge, or of an unknown range.
    """
    try:
        with Image.open(io.BytesIO(content), formats=picture_formats()) as image:
            return to_rgb(image, upright)
    except UnidentifiedImageError as error:
        raise ValueError("its content is no image of a known format") from error
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # what Pillow's readers make of damaged files
        raise ValueError(str(error) or type(error).__name__) from error


def to_rgb(image: ImageFile.ImageFile, upright: bool = False) -> Image.Image:
    """The first picture of an opened file in 8-bit RGB.

    - Transparency is dropped: the colors below it are seen. Color profiles (ICC, gamma) are ignored.
    - Gray of 16 bits, and of 9 to 15 that the file declares (TIFF, PGM, JPEG 2000), is scaled from its declared range
      to 0…255; so is gray of floats in [0, 1]. White-is-zero TIFFs are inverted.
    - Refused, as their range is unknown: 32-bit and signed integers, other floats, and 16 bits of which the upper two
      are unused, for that is mostly 10, 12 or 14 bits in 16 without a declaration.

    Args:
        image: opened, and not loaded yet.
        upright: turned as its EXIF orientation says; else as stored.

    Raises:
        ValueError: where its range is unknown; and what Pillow does for damaged files.
    """
    rgb = _as_stored(image)
    if upright:  # asked after it is loaded, as Pillow itself turns a TIFF then
        rgb.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
        rgb = ImageOps.exif_transpose(rgb)
    return rgb


def _as_stored(image: ImageFile.ImageFile) -> Image.Image:
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    if SIGNED in np.atleast_1d(tags.get(SAMPLE_FORMAT, 1)):
        raise ValueError("its values are signed, and their range is not known; convert it to 8 bits")
    layout = str(image.tile[0][3]) if image.tile else ""  # as Pillow names that of the file: I;16B, RGB;16L, …
    is_16_bit = ";16" in layout or ", 65535)" in layout
    if not image.mode.startswith(("I", "F")):
        rgb = image.convert("RGB")
        if is_16_bit:  # which Pillow has cut to 8
            refuse_unused_bits(257 * int(np.asarray(rgb).max()))
        return rgb
    values = np.asarray(image).astype(np.float32)
    white = 1.0
    if image.mode == "F":
        refuse_unknown_range(float(values.min()), float(values.max()))
    elif image.mode == "I" and image.format not in ("PNG", "PPM"):  # whose 16 bits Pillow reads as 32
        raise ValueError("its values are 32-bit integers, and their range is not known; convert it to 8 bits")
    else:
        declared, greatest = int(np.max(tags.get(MAX_SAMPLE_VALUE, 0))), int(values.max())
        bits = declared.bit_length() or int(np.max(tags.get(BITS, 16)))
        white = 2.0**bits - 1.0
        if greatest > white:
            raise ValueError(f"it declares values up to {declared} and has some up to {greatest}")
        if bits >= 16 and is_16_bit:
            refuse_unused_bits(greatest)
    gray = 255.0 * values / white
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        gray = 255.0 - gray
    return Image.fromarray(gray.clip(0, 255).round().astype(np.uint8)).convert("RGB")


def refuse_unknown_range(least: float, greatest: float) -> None:
    """Raises ValueError for floats that do not lie in [0, 1], but for what resizing may add to it."""
    if not -0.002 <= least <= greatest <= 1.002:
        raise ValueError(
            f"its values are floats from {least:g} to {greatest:g}, and only the range from 0 to 1 is known; convert "
            "it to 8 bits"
        )


def refuse_unused_bits(greatest: int) -> None:
    """Raises ValueError for a 16-bit image whose greatest value is so small that it is one of fewer bits."""
    if 0 < greatest <= MAX_OF_14_BITS:
        raise ValueError(
            f"its 16-bit values end near {greatest} of 65535: it seems to have fewer bits, which the file does not "
            "declare; convert it to 8 bits"
        )
