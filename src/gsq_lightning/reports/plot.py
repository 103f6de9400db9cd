"""Rate-distortion plot: a metric over bits per pixel."""

import math
from pathlib import Path
from typing import Any

from gsq_lightning.errors import InputError
from gsq_lightning.reports.comparison import ARROWS, Row
from gsq_lightning.reports.table import METRICS

WAYS = {"↑": "higher is better", "↓": "lower is better"}
DISTORTIONS = ("rfid", "lpips_vgg", "lpips_alex", "psnr", "psnr_set", "ssim", "rfd_dinov2", "rfd_random")


def plot_rows(rows: list[Row], path: Path) -> None:
    """Draws each metric that several rows have over their bits per pixel, measured rows apart from published ones.

    Args:
        rows: those without bits are left out.
        path: of the picture; its suffix tells the format.

    Raises:
        InputError: where matplotlib is missing, the format is unknown, or nothing can be drawn.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InputError("--plot needs matplotlib: pip install matplotlib") from error
    placed = [row for row in rows if math.isfinite(row.metrics.get("bits_per_pixel", math.nan))]
    counts = {name: sum(_has(row, name) for row in placed) for name in DISTORTIONS}
    names = [name for name in DISTORTIONS if counts[name] >= min(2, max(counts.values(), default=0)) and counts[name]]
    if not names:
        raise InputError("there is nothing to plot: no row has both bits per pixel and a metric of distortion")
    figure = Figure(figsize=(7.0, 4.8 * len(names)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    formats = canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        raise InputError(f"{path} is no picture; its name must end in one of: {' '.join(sorted(formats))}")
    for number, name in enumerate(names):
        _draw(figure.add_subplot(len(names), 1, number + 1), [row for row in placed if _has(row, name)], name)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw(axes: Any, rows: list[Row], name: str) -> None:
    kinds = {
        "measured": ([row for row in rows if row.source == "measured"], "o", "#c0392b"),
        "paper": ([row for row in rows if row.source != "measured"], "x", "#7f8c8d"),
    }
    for kind, (members, marker, color) in kinds.items():
        if not members:
            continue
        x = [row.metrics["bits_per_pixel"] for row in members]
        y = [row.metrics[name] for row in members]
        axes.scatter(x, y, label=kind, marker=marker, color=color, s=36, zorder=3)
        for row, right, up in zip(members, x, y, strict=True):
            axes.annotate(row.name, (right, up), (4, 3), textcoords="offset points", fontsize=6, color=color)
    axes.set_xscale("log", base=2)
    if name.startswith(("rfid", "rfd")) and min(row.metrics[name] for row in rows) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("bits per pixel")
    axes.set_ylabel(f"{METRICS[name].name} ({WAYS[ARROWS[name]]})")
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    axes.legend()


def _has(row: Row, name: str) -> bool:
    return math.isfinite(row.metrics.get(name, math.nan))
