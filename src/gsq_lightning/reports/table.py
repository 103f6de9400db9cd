"""Names, units and digits of metrics, and tables of them."""

from typing import NamedTuple


class Label(NamedTuple):
    """How a metric is shown.

    Attributes:
        name: in a table's first column or head.
        meaning: unit, and which way is better.
        form: how its value is written.
    """

    name: str
    meaning: str
    form: str


METRICS = {
    "images": Label("images", "", "{:.0f}"),
    "real_images": Label("real images", "", "{:.0f}"),
    "nonfinite_images": Label("broken images", "reconstructions that are not finite", "{:.0f}"),
    "psnr": Label("PSNR", "dB, mean over images, higher is better", "{:.2f}"),
    "psnr_set": Label("PSNR of the set", "dB, from the mean squared error of all images, higher is better", "{:.2f}"),
    "ssim": Label("SSIM", "higher is better", "{:.4f}"),
    "lpips_alex": Label("LPIPS (alex)", "lower is better", "{:.4f}"),
    "lpips_vgg": Label("LPIPS (vgg)", "lower is better", "{:.4f}"),
    "rfid": Label("rFID", "Fréchet distance over Inception v3, lower is better", "{:.3f}"),
    "rfid_pytorch_fid": Label("rFID (pytorch-fid)", "images prepared as by pytorch-fid, lower is better", "{:.3f}"),
    "rfid_clean_fid": Label("rFID (clean-fid)", "images prepared as by clean-fid, lower is better", "{:.3f}"),
    "rfd_dinov2": Label("rfd_dinov2", "Fréchet distance over DINOv2, not an rFID, lower is better", "{:.3f}"),
    "rfd_efficientnet": Label(
        "rfd_efficientnet", "Fréchet distance over EfficientNet-Lite0, not an rFID, lower is better", "{:.3f}"
    ),
    "rkid": Label("rKID", "kernel distance over Inception v3, mean of subsets, lower is better", "{:.6f}"),
    "rkd_dinov2": Label("rkd_dinov2", "kernel distance over DINOv2, mean of subsets, lower is better", "{:.6f}"),
    "rkd_efficientnet": Label(
        "rkd_efficientnet", "kernel distance over EfficientNet-Lite0, mean of subsets, lower is better", "{:.6f}"
    ),
    "fid": Label("FID", "Fréchet distance over Inception v3, lower is better", "{:.3f}"),
    "kid": Label("KID", "kernel distance over Inception v3, mean of subsets, lower is better", "{:.6f}"),
    "precision": Label("precision", "share of generated images near real ones, higher is better", "{:.4f}"),
    "recall": Label("recall", "share of real images near generated ones, higher is better", "{:.4f}"),
    "precision_efficientnet": Label("precision (EfficientNet)", "as precision, over EfficientNet-Lite0", "{:.4f}"),
    "recall_efficientnet": Label("recall (EfficientNet)", "as recall, over EfficientNet-Lite0", "{:.4f}"),
    "rfd_random": Label("rfd_random", "Fréchet distance over random features, not an rFID, lower is better", "{:.4f}"),
    "inception_score": Label("Inception score", "mean of ten splits, higher is better", "{:.2f}"),
    "inception_score_std": Label("its deviation", "over the splits", "{:.2f}"),
    "codebook_usage": Label("codebook usage", "share of codes used", "{:.2%}"),
    "codebook_perplexity": Label("codebook perplexity", "of the codebook's size, higher is better", "{:.1f}"),
    "bits_per_image": Label("bits per image", "", "{:.0f}"),
    "bits_per_pixel": Label("bits per pixel", "", "{:.4f}"),
}

PER_GROUP = {"codebook_usage_group_": "{:.2%}", "codebook_perplexity_group_": "{:.1f}"}


def formatted(name: str, value: float) -> str:
    """A value with the digits of its metric."""
    return METRICS[name].form.format(value) if name in METRICS else f"{value:.4g}"


def metrics_table(values: dict[str, float]) -> list[str]:
    """Lines of a table of metrics, the known ones in a fixed order under their usual names."""
    values = dict(values)
    rows = []
    grouped = [_per_group(values, prefix, form) for prefix, form in PER_GROUP.items()]
    for name in [*(name for name in METRICS if name in values), *(name for name in values if name not in METRICS)]:
        label = METRICS.get(name, Label(name, "", ""))
        rows.append((label.name, formatted(name, values[name]), label.meaning))
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {label:<{widths[0]}}  {value:>{widths[1]}}  {meaning}".rstrip() for label, value, meaning in rows]
    return lines + [line for line in grouped if line]


def _per_group(values: dict[str, float], prefix: str, form: str) -> str:
    """Takes the values of the groups out; a line with all of them."""
    names = [name for name in values if name.startswith(prefix)]
    kind = prefix.removesuffix("_group_").replace("_", " ")
    shown = " ".join(form.format(values.pop(name)) for name in names)
    return f"  {kind} by group: {shown}" if names else ""


def markdown_table(head: list[str], rows: list[list[str]], aligned: bool = False) -> list[str]:
    """Lines of a Markdown table; bars and line breaks within a cell are kept from splitting it.

    Args:
        head: names of the columns.
        rows: as many cells each.
        aligned: pad the cells, so that columns stand under each other, all but the first and last to the right.
    """
    table = [[" ".join(cell.replace("|", "\\|").splitlines()) for cell in row] for row in [head, *rows]]
    if not aligned:
        return _joined(table, ["---"] * len(head))
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    outer = (0, len(head) - 1)
    padded = [
        [cell.ljust(width) if column in outer else cell.rjust(width) for column, (cell, width) in enumerate(cells)]
        for cells in (list(zip(row, widths, strict=True)) for row in table)
    ]
    rules = ["-" * width if column in outer else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return _joined(padded, rules)


def _joined(table: list[list[str]], rules: list[str]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return [lines[0], "| " + " | ".join(rules) + " |", *lines[1:]]
