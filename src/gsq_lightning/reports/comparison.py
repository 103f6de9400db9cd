"""Reports beside each other, sorted by bits per image: tokenizers compare fairly only at equal bits."""

import math
from dataclasses import dataclass, field

from gsq_lightning.reports.report import EvaluationReport
from gsq_lightning.reports.table import METRICS, formatted, markdown_table

ARROWS = {
    "psnr": "↑", "psnr_set": "↑", "ssim": "↑", "lpips_alex": "↓", "lpips_vgg": "↓", "rfid": "↓",
    "rfid_pytorch_fid": "↓", "rfid_clean_fid": "↓", "rfd_dinov2": "↓", "rfd_random": "↓", "inception_score": "↑",
    "codebook_perplexity": "↑", "codebook_usage": "↑",
}  # fmt: skip
COLUMNS = (
    "bits_per_image", "bits_per_pixel", "images", "rfid", "rfid_pytorch_fid", "rfid_clean_fid", "rfd_dinov2",
    "rfd_random", "inception_score", "psnr", "psnr_set", "ssim", "lpips_alex", "lpips_vgg", "codebook_usage",
    "codebook_perplexity",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A tokenizer in a comparison.

    Attributes:
        name: what it is called.
        source: "measured", or where a published figure stands.
        metrics: values by name.
        conditions: what values depend on, by name; those of measured rows are compared.
    """

    name: str
    source: str
    metrics: dict[str, float]
    conditions: dict[str, str] = field(default_factory=dict)


def report_row(report: EvaluationReport) -> Row:
    """The row of a report."""
    conditions = {
        "number of images": f"{report.metrics.get('images', math.nan):.0f}",
        "image size": report.image_size,
        "preparation": report.preparation,
        "the original images": report.originals,
        **{f"protocol of {name}": protocol for name, protocol in report.protocols.items()},
    }
    return Row(report.name, "measured", report.metrics, {name: fact for name, fact in conditions.items() if fact})


def sorted_rows(rows: list[Row]) -> list[Row]:
    """By bits per image; rows without come last."""
    return sorted(rows, key=lambda row: row.metrics.get("bits_per_image", math.inf))


def comparison_lines(rows: list[Row]) -> list[str]:
    """Lines of a Markdown table, and a line for each thing that keeps measured rows from being comparable."""
    rows = sorted_rows(rows)
    columns = [name for name in COLUMNS if any(name in row.metrics for row in rows)]
    head = ["tokenizer", *(f"{METRICS[name].name} {ARROWS.get(name, '')}".strip() for name in columns), "source"]
    cells = [[row.name, *(_cell(row, name) for name in columns), row.source] for row in rows]
    return [*markdown_table(head, cells, aligned=True), *differences(rows)]


def differences(rows: list[Row]) -> list[str]:
    """A line for each condition in which measured rows differ."""
    measured = [row for row in rows if row.conditions]
    lines = []
    for name in dict.fromkeys(name for row in measured for name in row.conditions):
        having = [row for row in measured if name in row.conditions]
        if len({row.conditions[name] for row in having}) > 1:
            told = "; ".join(f"{row.name}: {row.conditions[name]}" for row in having)
            lines.append(f"not comparable in {name}: {told}")
    return ["", *lines] if lines else []


def _cell(row: Row, name: str) -> str:
    return formatted(name, row.metrics[name]) if name in row.metrics else "–"
