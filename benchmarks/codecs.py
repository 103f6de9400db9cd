"""Tokenizers beside JPEG and WebP at the same bytes: a table, and the picture in the README.

    python benchmarks/codecs.py --images /data/imagenet/val
    python benchmarks/codecs.py --picture docs/codecs.webp    # scikit-image's photographs that no demo was trained on

For the table each image is center-cropped to `--size`²; the picture shows whole ones, with that short side. A codec
takes its best quality whose bytes do not exceed a tokenizer's: of JPEG only those of the scan count, without header and
tables, which a file could share with others; of WebP all but the container's 20. Where even the lowest quality needs
more, it is that. Tokens are counted as G·log2(V) bits per position, without entropy coding. "difference" is the
tokenizer's kernel distance minus a codec's, with its standard error over images (jackknife).
"""

import argparse
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from gsq_lightning import GSQTokenizer
from gsq_lightning.data.photographs import SMALLEST_SIDE, VAL_PHOTOGRAPHS, load_photograph
from gsq_lightning.metrics import ReconstructionMetrics
from gsq_lightning.metrics.kernel import KernelDistance, kernel_distance
from gsq_lightning.pixels import picture_to_image

METRICS = ("psnr", "ssim", "rkd_efficientnet")
CONTAINER = 20  # bytes of WebP's: "RIFF", size, "WEBP", the chunk's name and size
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
GAP, LABEL = 6, 34  # pixels


class Coded(NamedTuple):
    """An image after a codec.

    Attributes:
        picture: decoded.
        size: bytes.
    """

    picture: Image.Image
    size: float


def jpeg(picture: Image.Image, quality: int) -> Coded:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)  # standard tables, which need no bytes in a file
    content = file.getvalue()
    scan = content.index(b"\xff\xda")  # start of scan; the two bytes after it are the length of its header
    header = 2 + int.from_bytes(content[scan + 2 : scan + 4], "big")
    return Coded(Image.open(file).convert("RGB"), len(content) - scan - header - 2)  # 2: end of image


def webp(picture: Image.Image, quality: int) -> Coded:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=quality, method=6)
    return Coded(Image.open(file).convert("RGB"), len(file.getvalue()) - CONTAINER)


CODECS: dict[str, Callable[[Image.Image, int], Coded]] = {"JPEG": jpeg, "WebP": webp}


def within(codec: Callable[[Image.Image, int], Coded], picture: Image.Image, budget: float) -> Coded:
    """Of the qualities 0 to 100 the best within a budget of bytes; sizes grow with quality."""
    low, high = 0, 100
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if codec(picture, middle).size <= budget else (low, middle - 1)
    return codec(picture, low)


def size_of(tokenizer: GSQTokenizer, picture: Image.Image) -> float:
    """Bytes of the tokens of a picture, whose sides are rounded up to the tokenizer's positions."""
    factor = tokenizer.downsample_factor
    height, width = (-(-side // factor) * factor for side in (picture.height, picture.width))
    return tokenizer.bits_per_image(height, width) / 8


def ours(tokenizer: GSQTokenizer, picture: Image.Image) -> Coded:
    encoded = tokenizer.encode_image(picture)
    return Coded(tokenizer.decode_image(encoded), size_of(tokenizer, picture))


def resized(picture: Image.Image, short_side: int) -> Image.Image:
    """Bilinear and antialiased, as validation prepares images."""
    scale = short_side / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    return picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)


def center(picture: Image.Image) -> Image.Image:
    """The square in the middle."""
    size = min(picture.size)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def at_bytes_of(tokenizer: GSQTokenizer, codec: Callable[[Image.Image, int], Coded], picture: Image.Image) -> Coded:
    return within(codec, picture, size_of(tokenizer, picture))


def original(picture: Image.Image) -> Coded:
    return Coded(picture, picture.width * picture.height * 3)


def ways_of(tokenizers: dict[str, GSQTokenizer]) -> dict[str, Callable[[Image.Image], Coded]]:
    """What is compared, by name: each tokenizer, and after it each codec at its bytes."""
    ways: dict[str, Callable[[Image.Image], Coded]] = {}
    for name, tokenizer in tokenizers.items():
        ways[name] = partial(ours, tokenizer)
        for codec_name, codec in CODECS.items():
            ways[f"{codec_name}, as {name}"] = partial(at_bytes_of, tokenizer, codec)
    return ways


class Measured(NamedTuple):
    """A way over all images.

    Attributes:
        values: mean bits per pixel, and METRICS.
        without: (N,), the kernel distance without each image.
    """

    values: list[float]
    without: Tensor


def measured(way: Callable[[Image.Image], Coded], pictures: list[Image.Image]) -> Measured:
    metrics = ReconstructionMetrics(METRICS, statistics_folder=None)
    metrics.start()
    bits = []
    for picture in pictures:
        coded = way(picture)
        bits.append(8 * coded.size / (picture.width * picture.height))
        metrics.update(picture_to_image(picture), picture_to_image(coded.picture))
    values = metrics.compute()
    distance = metrics.metrics["rkd_efficientnet"]
    assert isinstance(distance, KernelDistance)
    real, (fake, _) = distance.originals()["features"], distance.others()  # both in the order of the originals' hashes
    images = torch.arange(len(real))
    without = [kernel_distance(real[images != left], fake[images != left], images[:-1]).of_all for left in images]
    return Measured([sum(bits) / len(bits), *(values[name] for name in METRICS)], torch.tensor(without))


def over(tokenizer: Measured, codec: Measured) -> str:
    """Difference of the kernel distances ± its standard error."""
    without = tokenizer.without - codec.without
    error = ((len(without) - 1) * without.var(correction=0)).sqrt()
    return f"{tokenizer.values[-1] - codec.values[-1]:.4f} ± {float(error):.4f}"


def picture_of(tokenizers: dict[str, GSQTokenizer], pictures: list[Image.Image]) -> Image.Image:
    """Of each image a row for each tokenizer: the original, what the tokenizer and the codecs make of it, and bytes."""
    rows = []
    for picture in pictures:
        for name, tokenizer in tokenizers.items():
            coded = ours(tokenizer, picture)
            row = {"original": original(picture)}
            row[name] = coded
            rows.append(row | {codec: within(codecs, picture, coded.size) for codec, codecs in CODECS.items()})
    width = max(picture.width for picture in pictures) + GAP
    sheet = Image.new("RGB", (width * len(rows[0]) - GAP, sum(p.height + LABEL for p in pictures) * len(tokenizers)))
    sheet.paste("white", (0, 0, *sheet.size))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=17)
    top = 0
    for row in rows:
        for column, (name, coded) in enumerate(row.items()):
            sheet.paste(coded.picture, (column * width, top))
            draw.text(
                (column * width + 2, top + coded.picture.height + 5), f"{name}: {coded.size:,.0f} bytes", "black", font
            )
        top += coded.picture.height + LABEL
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of images (default: scikit-image's held-out photographs)")
    parser.add_argument("--tokenizers", nargs="+", default=["demo_g1", "demo_g3"], help="as from_pretrained takes them")
    parser.add_argument("--size", type=int, default=256, help="short side, in pixels")
    parser.add_argument("--limit", type=int, help="no more images than this")
    parser.add_argument("--picture", type=Path, help="written, instead of the table")
    arguments = parser.parse_args()
    if arguments.images is None:
        images = [to_pil_image(load_photograph(name, SMALLEST_SIDE)) for name in VAL_PHOTOGRAPHS]
    else:
        paths = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in SUFFIXES)
        images = [Image.open(path) for path in paths]
    pictures = [resized(image, arguments.size) for image in images[: arguments.limit]]
    tokenizers = {Path(name).name: GSQTokenizer.from_pretrained(name) for name in arguments.tokenizers}
    if arguments.picture is not None:
        picture_of(tokenizers, pictures).save(arguments.picture, quality=95)
        return
    print(f"{len(pictures)} images at {arguments.size}²\n")
    print(f"| | bits per pixel | {' | '.join(METRICS)} | difference |")
    print("|---" * (3 + len(METRICS)) + "|")
    for name, way in ways_of(tokenizers).items():
        result = measured(way, [center(picture) for picture in pictures])
        if name in tokenizers:
            tokenizer, difference = result, ""
        else:
            difference = over(tokenizer, result)
        print(f"| {name} | {' | '.join(f'{value:.4g}' for value in result.values)} | {difference} |", flush=True)


if __name__ == "__main__":
    main()
