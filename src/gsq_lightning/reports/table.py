"""Names, units and digits of metrics, and tables of them."""

import math
import textwrap
from typing import NamedTuple


class Label(NamedTuple):
    """How a metric is shown.

    Attributes:
        name: in a table's first column.
        head: at the top of a narrow column.
        meaning: unit, and what it is; at most 42 characters, so that a table fits 80.
        form: how its value is written.
        better: "higher", "lower" or nothing.
    """

    name: str
    head: str
    meaning: str
    form: str
    better: str = ""


FRECHET, KERNEL = "Fréchet distance", "kernel distance"
METRICS = {
    "images": Label("images", "images", "", "{:,.0f}"),
    "real_images": Label("real images", "real images", "", "{:,.0f}"),
    "nonfinite_images": Label("broken images", "broken", "reconstructions that are not finite", "{:,.0f}"),
    "steps": Label("steps", "steps", "of training", "{:,.0f}"),
    "psnr": Label("PSNR", "PSNR", "dB, mean over images", "{:.2f}", "higher"),
    "psnr_set": Label("PSNR of the set", "PSNR of set", "dB, all images together", "{:.2f}", "higher"),
    "ssim": Label("SSIM", "SSIM", "", "{:.4f}", "higher"),
    "lpips_alex": Label("LPIPS (alex)", "LPIPS alex", "", "{:.4f}", "lower"),
    "lpips_vgg": Label("LPIPS (vgg)", "LPIPS vgg", "", "{:.4f}", "lower"),
    "rfid": Label("rFID", "rFID", f"{FRECHET}, Inception", "{:.3f}", "lower"),
    "rfid_pytorch_fid": Label("rFID (pytorch-fid)", "pytorch-fid", "as pytorch-fid", "{:.3f}", "lower"),
    "rfid_clean_fid": Label("rFID (clean-fid)", "clean-fid", "as clean-fid", "{:.3f}", "lower"),
    "rfd_dinov2": Label("rfd_dinov2", "rfd_dinov2", f"{FRECHET}, no FID", "{:.3f}", "lower"),
    "rfd_efficientnet": Label("rfd_efficientnet", "rfd_efficientnet", f"{FRECHET}, no FID", "{:.3f}", "lower"),
    "rfd_random": Label("rfd_random", "rfd_random", f"{FRECHET}, for tests", "{:.4f}", "lower"),
    "rkid": Label("rKID", "rKID", f"{KERNEL}, Inception", "{:.6f}", "lower"),
    "rkd_dinov2": Label("rkd_dinov2", "rkd_dinov2", f"{KERNEL}, no KID", "{:.6f}", "lower"),
    "rkd_efficientnet": Label("rkd_efficientnet", "rkd_efficientnet", f"{KERNEL}, no KID", "{:.6f}", "lower"),
    "fid": Label("FID", "FID", f"{FRECHET}, Inception", "{:.3f}", "lower"),
    "kid": Label("KID", "KID", f"{KERNEL}, Inception", "{:.6f}", "lower"),
    "precision": Label("precision", "precision", "of generated images", "{:.4f}", "higher"),
    "recall": Label("recall", "recall", "of real images", "{:.4f}", "higher"),
    "precision_efficientnet": Label("precision (EffNet)", "precision EN", "", "{:.4f}", "higher"),
    "recall_efficientnet": Label("recall (EffNet)", "recall EN", "", "{:.4f}", "higher"),
    "inception_score": Label("Inception score", "IS", "mean of ten splits", "{:.2f}", "higher"),
    "inception_score_std": Label("its deviation", "IS deviation", "over the splits", "{:.2f}"),
    "codebook_usage": Label("codebook usage", "codes used", "share of codes used", "{:.2%}", "higher"),
    "codebook_perplexity": Label("codebook perplexity", "perplexity", "effective codes", "{:,.1f}", "higher"),
    "bits_per_image": Label("bits per image", "bits", "", "{:,.0f}"),
    "bits_per_pixel": Label("bits per pixel", "bits/pixel", "", "{:.4f}"),
}
ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}
CODES_USED = "codebook_codes_used"  # shown with codebook_usage

PER_GROUP = {"codebook_usage_group_": "{:.2%}", "codebook_perplexity_group_": "{:.1f}"}


def label_of(name: str) -> Label:
    """Also of a metric that is not in `METRICS`, such as a user's own."""
    return METRICS.get(name, Label(name, name, "", "{:.4g}"))


def is_own(name: str) -> bool:
    """Whether a value is of a user's own metric, not a known one's main value or one beside it, such as "rkid_std"."""
    beside = name.removesuffix("_std").removesuffix("_all") in METRICS or name.startswith(tuple(PER_GROUP))
    return name not in METRICS and name != CODES_USED and not beside


def formatted(name: str, value: float) -> str:
    """A value with the digits of its metric."""
    return label_of(name).form.format(value)


def codes_in_use(values: dict[str, float]) -> str | None:
    """Such as "1,706 of 8,192 codes"; None where they were not counted."""
    used, share = values.get(CODES_USED, math.nan), values.get("codebook_usage", math.nan)
    return f"{used:,.0f} of {used / share:,.0f} codes" if used > 0 and share > 0 else None


def metrics_table(values: dict[str, float]) -> list[str]:
    """Lines of a table of metrics, the known ones in a fixed order under their usual names."""
    codes = codes_in_use(values)
    values = {name: value for name, value in values.items() if name != CODES_USED}
    rows = []
    grouped = [_per_group(values, prefix, form) for prefix, form in PER_GROUP.items()]
    for name in [*(name for name in METRICS if name in values), *(name for name in values if name not in METRICS)]:
        label = label_of(name)
        meaning = codes if codes and name == "codebook_usage" else label.meaning
        better = f"{label.better} is better" if label.better and not (codes and name == "codebook_usage") else ""
        rows.append((label.name, formatted(name, values[name]), ", ".join(part for part in (meaning, better) if part)))
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {label:<{widths[0]}}  {value:>{widths[1]}}  {meaning}".rstrip() for label, value, meaning in rows]
    return lines + [line for line in grouped if line]


def metrics_line(values: dict[str, float]) -> str:
    """The main metrics in one line: "PSNR 24.10, SSIM 0.7012"."""
    shown = [name for name, label in METRICS.items() if label.better and name in values]
    return ", ".join(f"{METRICS[name].head} {formatted(name, values[name])}" for name in shown)


def _per_group(values: dict[str, float], prefix: str, form: str) -> str:
    """Takes the values of the groups out; all of them, in lines of at most 80 columns."""
    names = [name for name in values if name.startswith(prefix)]
    kind = prefix.removesuffix("_group_").replace("_", " ")
    shown = " ".join(form.format(values.pop(name)) for name in names)
    text = f"{kind} by group: {shown}"
    return textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="    ") if names else ""


def markdown_table(head: list[str], rows: list[list[str]], aligned: bool = False) -> list[str]:
    """Lines of a Markdown table; bars and line breaks within a cell are kept from splitting it.

    Args:
        head: names of the columns.
        rows: as many cells each.
        aligned: pad the cells, so that columns stand under each other, all but the first to the right.
    """
    table = [[" ".join(cell.replace("|", "\\|").splitlines()) for cell in row] for row in [head, *rows]]
    rules = ["---"] * len(head)
    if aligned:
        first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
        table = [[row[0].ljust(first), *map(str.rjust, row[1:], others)] for row in table]
        rules = ["-" * first, *("-" * (width - 1) + ":" for width in others)]
    return ["| " + " | ".join(row) + " |" for row in [table[0], rules, *table[1:]]]
