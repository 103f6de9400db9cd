"""uint8 pixels ⇄ images in [-1, 1], and pictures of any kind as such images."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gsq_lightning.errors import InputError, first_line, require

if TYPE_CHECKING:
    from PIL.Image import Image

ROUNDING = 1e-3  # in [0, 255]: above the float32 error of `pixels_to_image` and back
PILLOW_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")


def pixels_to_image(pixels: Tensor) -> Tensor:
    """uint8 in [0, 255] → float32 in [-1, 1]; `image_to_pixels` inverts it exactly."""
    return pixels.to(torch.float32, memory_format=torch.contiguous_format) / 127.5 - 1.0


def image_to_pixels(image: Tensor, truncate: bool = False) -> Tensor:
    """[-1, 1], any float type → uint8 in [0, 255], clamped.

    Args:
        image: any shape.
        truncate: round down, as the GSQ paper's reference does for FID, instead of to the nearest.
    """
    values = (image.float().clamp(-1.0, 1.0) + 1.0) * 127.5
    return ((values + ROUNDING).floor() if truncate else values.round()).to(torch.uint8)


def image_of(batch: Any) -> Tensor:
    """The image of a batch: the batch itself, its item "image", or its first item."""
    if isinstance(batch, Tensor):
        return batch
    image: Tensor = batch["image"] if isinstance(batch, Mapping) else batch[0]
    return image


def check_float(image: Tensor) -> None:
    """Raises InputError for an image that is no float."""
    if not image.is_floating_point():
        raise InputError(
            f"the image is {image.dtype}; it must be float in [-1, 1]: gsq_lightning.pixels.pixels_to_image makes "
            "it of uint8, and GSQTokenizer.encode_image takes pictures as they are"
        )


def check_range(image: Tensor, may_overshoot: bool = False) -> None:
    """Raises InputError for an image that is clearly in [0, 255], NaN or infinite, and warns of one that seems not to
    be in [-1, 1].

    Args:
        image: float, of any shape.
        may_overshoot: it comes out of a network, and may go beyond, or be NaN or infinite.
    """
    if image.numel() == 0:
        return
    lowest, highest = (float(end) for end in image.detach().aminmax())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        require(may_overshoot, "the image has values that are NaN or infinite; it must be in [-1, 1]")
    elif highest > 16.0:
        raise InputError(f"the image has values up to {highest:g}; it must be in [-1, 1]: x / 127.5 - 1 for [0, 255]")
    elif 0.0 <= lowest < highest <= 1.0:
        warnings.warn(
            "all values of the image lie in [0, 1], where images are in [-1, 1]: 2 * x - 1 for one in [0, 1]",
            stacklevel=4,
        )
    elif not may_overshoot and (lowest < -1.1 or highest > 1.1):
        warnings.warn(
            f"the image has values from {lowest:.3g} to {highest:.3g}, where images are in [-1, 1]; undo a "
            "normalization by mean and standard deviation",
            stacklevel=4,
        )


def picture_to_image(picture: Any) -> Tensor:
    """A picture → image (1, 3, H, W), float32 in [-1, 1].

    Args:
        picture: a path, of any file that data modules read (`gsq_lightning.pictures.to_rgb`); a Pillow image, opened
            and not loaded yet, or of 8 bits; both turned as their EXIF orientation says, transparency dropped; a uint8
            array or tensor (H, W, 3) or (H, W); a uint8 tensor (3, H, W) or (1, 3, H, W); or a float tensor
            (3, H, W) or (1, 3, H, W) in [-1, 1], taken as it is, with a warning where it seems to be in another range.

    Raises:
        InputError: for anything else.
    """
    if isinstance(picture, str | Path):
        picture = _read(Path(picture).expanduser())
    elif hasattr(picture, "getexif"):
        picture = _to_rgb(picture)
    channels_first = isinstance(picture, Tensor)  # where both ends have 3, as each kind usually has them
    tensor = picture if channels_first else _tensor_of(picture)
    if tensor.ndim == 4 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim == 2:
        tensor = tensor.expand(3, -1, -1)
    elif tensor.ndim == 3 and tensor.shape[2] == 3 and not (channels_first and tensor.shape[0] == 3):
        tensor = tensor.permute(2, 0, 1)
    is_image = tensor.ndim == 3 and tensor.shape[0] == 3 and tensor.numel() > 0
    if not (is_image and (tensor.dtype == torch.uint8 or tensor.is_floating_point())):
        raise InputError(
            f"the picture is {tensor.dtype} of shape {tuple(tensor.shape)}; it must be a path, a Pillow image, uint8 "
            "of (H, W, 3), (H, W) or (3, H, W), or a float tensor (3, H, W) in [-1, 1]"
        )
    if tensor.dtype == torch.uint8:
        return pixels_to_image(tensor)[None]
    check_range(tensor)
    return tensor[None]


def image_to_picture(image: Tensor) -> "Image":
    """Image (3, H, W) or (1, 3, H, W) in [-1, 1] → Pillow image, clamped."""
    from PIL import Image

    pixels = image_to_pixels(image.detach()).cpu().reshape(image.shape[-3:])
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _tensor_of(picture: Any) -> Tensor:
    """A copy of an array, which may be flipped or read-only, or of what NumPy makes one of."""
    import numpy as np

    try:
        return torch.from_numpy(np.array(picture))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the picture is of the type {type(picture).__name__}; it must be a path, a Pillow image, an array or a "
            "tensor"
        ) from error


def _read(path: Path) -> "Image":
    from gsq_lightning.pictures import read_rgb

    try:
        return read_rgb(path.read_bytes(), upright=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a picture: {first_line(error)}") from error


def _to_rgb(picture: "Image") -> "Image":
    from PIL import ImageOps

    from gsq_lightning.pictures import to_rgb

    if getattr(picture, "tile", None):  # of a file that is not loaded yet, so that its own range can be seen
        try:
            return to_rgb(picture, upright=True)  # type: ignore[arg-type]
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"the picture cannot be read: {first_line(error)}") from error
    if picture.mode not in PILLOW_MODES:
        raise InputError(f"the picture has Pillow's mode {picture.mode}, whose range is not that of 8 bits; convert it")
    return ImageOps.exif_transpose(picture).convert("RGB")
