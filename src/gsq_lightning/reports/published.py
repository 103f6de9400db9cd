"""Published figures at 256² on ImageNet's validation images, as the GSQ paper prints them (arXiv 2412.02632, v2)."""

import csv
import math
from importlib.resources import files

from gsq_lightning.reports.comparison import Row

PIXELS = 256 * 256


def published_rows() -> list[Row]:
    """Tables 13 and 14. Bits follow from tokens · log2(codes); a continuous latent has none.

    psnr_set: the paper takes its PSNR from the mean squared error of all images.
    """
    text = files("gsq_lightning.reports").joinpath("published.csv").read_text(encoding="utf-8")
    return [_row(line) for line in csv.DictReader(text.splitlines())]


def _row(line: dict[str, str]) -> Row:
    metrics = {"rfid": float(line["rfid"])}
    if line["tokens"]:
        metrics["bits_per_image"] = int(line["tokens"]) * math.log2(int(line["codes"]))
        metrics["bits_per_pixel"] = metrics["bits_per_image"] / PIXELS
    if line["psnr"]:
        metrics["psnr_set"] = float(line["psnr"])
    codes = f", V = {int(line['codes']):,}" if line["codes"] and int(line["codes"]) < 2**32 else ""
    return Row(f"{line['name']}, f{line['factor']}{codes}", f"paper, {line['source']}", metrics)
