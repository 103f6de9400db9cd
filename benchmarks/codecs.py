"""Tokenizers beside JPEG and WebP at the same bytes: a table, and the picture in the README.

    python benchmarks/codecs.py --images /data/imagenet/val
    python benchmarks/codecs.py --images /data/imagenet/val --picture codecs.png --show astronaut.jpg cat.jpg

Each image is center-cropped to `--size`². A codec takes its best quality whose bytes do not exceed a tokenizer's: of
JPEG only those of the scan count, without header and tables, which a file could share with others; of WebP all but the
container's 20. Where even the lowest quality needs more, it is that. Tokens are counted as G·log2(V) bits per position,
without entropy coding. `rkd_efficientnet` is over all images, unbiased.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from gsq_lightning import GSQTokenizer
from gsq_lightning.metrics import ReconstructionMetrics
from gsq_lightning.pixels import picture_to_image

METRICS = ("psnr", "ssim", "rkd_efficientnet")
CONTAINER = 20  # bytes of WebP's: "RIFF", size, "WEBP", the chunk's name and size
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
    picture.save(file, "JPEG", quality=quality, optimize=True)
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
    """Of the qualities 1 to 100 the best within a budget of bytes; sizes grow with quality."""
    low, high = 1, 100
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if codec(picture, middle).size <= budget else (low, middle - 1)
    return codec(picture, low)


def ours(tokenizer: GSQTokenizer, picture: Image.Image) -> Coded:
    encoded = tokenizer.encode_image(picture)
    return Coded(tokenizer.decode_image(encoded), tokenizer.bits_per_image(picture.height, picture.width) / 8)


def cropped(picture: Image.Image, size: int) -> Image.Image:
    """Short side to `size`, bicubic, and its center."""
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    return (
        picture.convert("RGB")
        .resize((width, height), Image.Resampling.BICUBIC)
        .crop((left, top, left + size, top + size))
    )


def ways_of(tokenizers: dict[str, GSQTokenizer]) -> dict[str, Callable[[Image.Image], Coded]]:
    """What is compared, by name: each tokenizer, and after it each codec at its bytes."""
    ways: dict[str, Callable[[Image.Image], Coded]] = {}
    for name, tokenizer in tokenizers.items():

        def coded(picture: Image.Image, tokenizer: GSQTokenizer = tokenizer) -> Coded:
            return ours(tokenizer, picture)

        ways[name] = coded
        for codec_name, codec in CODECS.items():

            def at_its_bytes(
                picture: Image.Image,
                tokenizer: GSQTokenizer = tokenizer,
                codec: Callable[[Image.Image, int], Coded] = codec,
            ) -> Coded:
                return within(codec, picture, tokenizer.bits_per_image(picture.height, picture.width) / 8)

            ways[f"{codec_name}, as {name}"] = at_its_bytes
    return ways


def measured(way: Callable[[Image.Image], Coded], pictures: list[Image.Image]) -> list[float]:
    """Mean bits per pixel, and METRICS."""
    metrics = ReconstructionMetrics(METRICS, statistics_folder=None)
    metrics.start()
    bits = []
    for picture in pictures:
        coded = way(picture)
        bits.append(8 * coded.size / (picture.width * picture.height))
        metrics.update(picture_to_image(picture), picture_to_image(coded.picture))
    values = metrics.compute()
    return [sum(bits) / len(bits), *(values[name] for name in METRICS)]


def picture_of(ways: dict[str, Callable[[Image.Image], Coded]], pictures: list[Image.Image]) -> Image.Image:
    """A row for each image: the original and what each way makes of it, with its bytes below."""
    size = pictures[0].width
    columns = 1 + len(ways)
    sheet = Image.new("RGB", (columns * (size + GAP) - GAP, len(pictures) * (size + LABEL + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for row, picture in enumerate(pictures):
        top = row * (size + LABEL + GAP)
        cells = [("original", Coded(picture, size * size * 3)), *((name, way(picture)) for name, way in ways.items())]
        for column, (name, coded) in enumerate(cells):
            left = column * (size + GAP)
            sheet.paste(coded.picture, (left, top))
            draw.text((left + 2, top + size + 6), f"{name.split(',')[0]}: {coded.size:,.0f} bytes", "black", font)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder, archive or list of images")
    parser.add_argument("--tokenizers", nargs="+", default=["demo_g1", "demo_g3"], help="as from_pretrained takes them")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--limit", type=int, help="no more images than this")
    parser.add_argument("--picture", type=Path, help="written, instead of the table")
    parser.add_argument(
        "--show", nargs="+", default=[], metavar="NAME", help="images of the picture (default: the first two)"
    )
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if arguments.show:
        paths = [next(path for path in paths if path.name == name) for name in arguments.show]
    pictures = [cropped(Image.open(path), arguments.size) for path in paths[: arguments.limit]]
    ways = ways_of({Path(name).name: GSQTokenizer.from_pretrained(name) for name in arguments.tokenizers})
    if arguments.picture is not None:
        picture_of(ways, pictures if arguments.show else pictures[:2]).save(arguments.picture)
        return
    print(f"{len(pictures)} images at {arguments.size}²\n")
    print(f"| | bits per pixel | {' | '.join(METRICS)} |")
    print("|---" * (2 + len(METRICS)) + "|")
    for name, way in ways.items():
        print(f"| {name} | {' | '.join(f'{value:.4g}' for value in measured(way, pictures))} |", flush=True)


if __name__ == "__main__":
    main()
