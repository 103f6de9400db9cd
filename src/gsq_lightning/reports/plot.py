"""Rate-distortion plot: a metric over bits per pixel."""

import itertools
import math
from pathlib import Path
from typing import Any

from gsq_lightning.errors import InputError
from gsq_lightning.reports.comparison import MEASURED, Row, sorted_rows
from gsq_lightning.reports.table import METRICS

STYLES: dict[str, dict[str, Any]] = {
    MEASURED: {"marker": "o", "color": "#c0392b"},
    "paper": {"marker": "x", "color": "#566573"},
}
DISTORTIONS = (
    *("rfid", "rfd_efficientnet", "rkd_efficientnet", "lpips_vgg", "lpips_alex", "psnr", "psnr_set", "ssim"),
    *("rkid", "rfd_dinov2", "rkd_dinov2", "rfd_random"),
)
WIDTH, HEIGHT = 9.0, 6.0  # inches of each metric's plot, which is lower where there are few points
FONT = 7  # points
# where a name may stand: to the right of its point, else to the left, then above and below, then farther away
SIDES = (("left", 5, -2), ("right", -5, -2), ("left", 4, 5), ("left", 4, -10), ("right", -4, 5), ("right", -4, -10))
DISTANCES = (1.0, 2.2, 3.6, 5.2, 7.0, 9.0)


def plot_rows(rows: list[Row], path: Path) -> list[str]:
    """Draws each metric that was measured, and published rFIDs, over bits per pixel, with names beside the points.

    Returns the names of measured rows that have no bits per pixel, and are left out.

    Args:
        rows: measured and published ones.
        path: of the picture; its suffix names the format.

    Raises:
        InputError: where matplotlib is missing, the format is unknown, or nothing can be drawn.
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    placed = sorted_rows([row for row in rows if _has(row, "bits_per_pixel")])
    names = [name for name in DISTORTIONS if _is_worth_drawing(name, placed)]
    if not names:
        raise InputError("there is nothing to plot: no row has both bits per pixel and a metric of distortion")
    height = min(HEIGHT, 3.0 + 0.25 * len(placed))
    figure = Figure(figsize=(WIDTH, height * len(names)), layout="constrained")
    FigureCanvasAgg(figure)  # measures text, whatever the format of the picture
    drawn = [
        _draw(axes, placed, name)
        for axes, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True)
    ]
    figure.draw_without_rendering()  # places the axes, before names are placed within them
    for axes, points in drawn:
        _name(axes, points)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return [row.name for row in rows if row.source == MEASURED and not _has(row, "bits_per_pixel")]


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


def _draw(axes: Any, rows: list[Row], name: str) -> tuple[Any, list[tuple[Row, float, float]]]:
    """Draws points; returns them, measured ones first, as their names are placed first."""
    points = [(row, row.metrics["bits_per_pixel"], row.metrics[name]) for row in rows if _has(row, name)]
    points.sort(key=lambda point: point[0].source != MEASURED)
    for kind, style in STYLES.items():
        of_kind = [(x, y) for row, x, y in points if (row.source == MEASURED) == (kind == MEASURED)]
        if of_kind:
            axes.scatter(*zip(*of_kind, strict=True), label=kind, s=28, zorder=3, **style)
    distances = name.startswith(("rfid", "rfd", "rkid", "rkd"))
    axes.set_xscale("log")
    if distances and min(y for _, _, y in points) > 0:
        axes.set_yscale("log")
    axes.margins(0.15, 0.08)
    _plain_ticks(axes.xaxis, [x for _, x, _ in points])
    if axes.get_yscale() == "log":
        _plain_ticks(axes.yaxis, [y for _, _, y in points])
    axes.set_xlabel("bits per pixel")
    axes.set_ylabel(f"{METRICS[name].name} ({METRICS[name].better} is better)")
    axes.grid(alpha=0.3)
    axes.legend()
    return axes, points


def _plain_ticks(axis: Any, values: list[float]) -> None:
    """Ticks 0.1, 0.2, 0.5, 1, … on a logarithmic axis, which reaches to those on either side of near values."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 1
    steps = (1, 2, 5) if high - low < 6 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    first, last = axis.get_view_interval()
    if sum(first <= tick <= last for tick in ticks) < 2:
        below, above = (tick for tick in ticks if tick < min(values)), (tick for tick in ticks if tick > max(values))
        axis.set_view_interval(max(below), min(above))


def _name(axes: Any, points: list[tuple[Row, float, float]]) -> None:
    """Writes names beside points, where they cover neither one another nor points; far ones get a line to theirs."""
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform([p[1:] for p in points])]
    taken.append(axes.get_legend().get_window_extent(renderer))
    for row, x, y in points:
        color = STYLES[MEASURED if row.source == MEASURED else "paper"]["color"]
        text = None
        for distance, (side, right, up) in itertools.product(DISTANCES, SIDES):
            if text is not None:
                text.remove()
            far = distance > 1.0
            line = {"arrowstyle": "-", "color": color, "lw": 0.4, "alpha": 0.6, "relpos": (float(side == "right"), 0.5)}
            text = axes.annotate(
                row.name,
                (x, y),
                (right if abs(up) == 2 else right * distance, up * distance),
                textcoords="offset points",
                fontsize=FONT,
                color=color,
                ha=side,
                parse_math=False,
                arrowprops=line if far else None,
            )
            box = _extent_of_words(text, renderer)
            corners = (box.x0, box.y0), (box.x1, box.y1)
            inside = all(axes.bbox.contains(*corner) for corner in corners)
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _extent_of_words(text: Any, renderer: Any) -> Any:
    """Of the words alone: an annotation's extent has its line too."""
    from matplotlib.text import Text

    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer)


def _has(row: Row, name: str) -> bool:
    return math.isfinite(row.metrics.get(name, math.nan))
