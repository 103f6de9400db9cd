"""Rate-distortion plot: a metric over bits per pixel."""

import math
from pathlib import Path
from typing import Any

from gsq_lightning.errors import InputError
from gsq_lightning.reports.comparison import ARROWS, Row, sorted_rows
from gsq_lightning.reports.table import METRICS

WAYS = {"↑": "higher is better", "↓": "lower is better"}
MEASURED = "measured"
STYLES: dict[str, dict[str, Any]] = {
    MEASURED: {"marker": "o", "color": "#c0392b"},
    "paper": {"marker": "x", "color": "#566573"},
}
DISTORTIONS = ("rfid", "lpips_vgg", "lpips_alex", "psnr", "psnr_set", "ssim", "rfd_dinov2", "rfd_random")


def plot_rows(rows: list[Row], path: Path) -> None:
    """Draws each metric that was measured, and published rFIDs, over bits per pixel.

    Args:
        rows: those without bits are left out.
        path: of the picture; its suffix tells the format.

    Raises:
        InputError: where matplotlib is missing, the format is unknown, or nothing can be drawn.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    placed = sorted_rows([row for row in rows if _has(row, "bits_per_pixel")])
    names = [name for name in DISTORTIONS if _is_worth_drawing(name, placed)]
    if not names:
        raise InputError("there is nothing to plot: no row has both bits per pixel and a metric of distortion")
    figure = Figure(figsize=(9.0, 4.8 * len(names)), layout="constrained")
    grid = figure.add_gridspec(len(names), 2, width_ratios=[2.4, 1.0])
    for number, name in enumerate(names):
        _draw(figure.add_subplot(grid[number, 0]), placed, name)
    _write_key(figure.add_subplot(grid[0, 1]), placed)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def check_plot(path: Path) -> None:
    """Raises InputError where matplotlib is missing, or the format that the path's suffix names is unknown."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ModuleNotFoundError as error:
        raise InputError("--plot needs matplotlib: pip install matplotlib") from error
    formats = set(FigureCanvasBase.get_supported_filetypes()) - {"pgf"}  # which needs TeX
    if path.suffix.lstrip(".").lower() not in formats:
        raise InputError(f"{path} is no picture; its name must end in one of: {' '.join(sorted(formats))}")


def _is_worth_drawing(name: str, rows: list[Row]) -> bool:
    """Whether something was measured, or rFIDs were published."""
    having = [row for row in rows if _has(row, name)]
    return any(row.source == MEASURED for row in having) or (bool(having) and name == "rfid")


def _draw(axes: Any, rows: list[Row], name: str) -> None:
    """Points with their numbers, which the key has the names of."""
    for kind, style in STYLES.items():
        points = [
            (number, row.metrics["bits_per_pixel"], row.metrics[name])
            for number, row in enumerate(rows, 1)
            if _has(row, name) and (row.source == MEASURED) == (kind == MEASURED)
        ]
        if not points:
            continue
        axes.scatter([x for _, x, _ in points], [y for _, _, y in points], label=kind, s=28, zorder=3, **style)
        for number, x, y in points:
            axes.annotate(str(number), (x, y), (4, 2), textcoords="offset points", fontsize=6, color=style["color"])
    axes.set_xscale("log", base=2)
    if name.startswith(("rfid", "rfd")) and min(row.metrics[name] for row in rows if _has(row, name)) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("bits per pixel")
    axes.set_ylabel(f"{METRICS[name].name} ({WAYS[ARROWS[name]]})")
    axes.margins(0.08)
    axes.grid(alpha=0.3)
    axes.legend()


def _write_key(axes: Any, rows: list[Row]) -> None:
    axes.set_axis_off()
    step = min(0.035, 1.0 / len(rows))
    for number, row in enumerate(rows, 1):
        color = STYLES[MEASURED if row.source == MEASURED else "paper"]["color"]
        axes.text(
            0.0,
            1.0 - number * step,
            f"{number}  {row.name}",
            fontsize=6.5,
            color=color,
            transform=axes.transAxes,
            parse_math=False,
        )


def _has(row: Row, name: str) -> bool:
    return math.isfinite(row.metrics.get(name, math.nan))
