"""Comparison of reports, sorted by bits per image: tokenizers compare fairly only at equal bits."""

import math
import textwrap
from dataclasses import dataclass, field

from gsq_lightning.reports.report import EvaluationReport
from gsq_lightning.reports.table import ARROWS, CODES_USED, codes_in_use, formatted, is_own, label_of, markdown_table

WIDTH = 80  # characters of a terminal
COLUMNS = (
    "bits_per_image", "rfid", "rfid_pytorch_fid", "rfid_clean_fid", "fid", "rfd_efficientnet",
    "rfd_dinov2", "rfd_random", "rkid", "kid", "rkd_efficientnet", "rkd_dinov2", "precision", "recall",
    "precision_efficientnet", "recall_efficientnet", "inception_score", "psnr", "psnr_set", "ssim", "lpips_alex",
    "lpips_vgg", "codebook_usage", "codebook_perplexity", "bits_per_pixel", "images", "real_images",
    "steps",
)  # fmt: skip
MEASURED = "measured"
PREPARATION, ORIGINALS = "preparation", "the original images"  # names of conditions


@dataclass(frozen=True)
class Row:
    """A tokenizer in a comparison.

    Attributes:
        name: what it is called.
        source: "measured", or where a published figure stands.
        metrics: values by name.
        conditions: what values depend on, by name; those of measured rows are compared.
        settings: of its training, by option, where its run has them.
    """

    name: str
    source: str
    metrics: dict[str, float]
    conditions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


def report_row(report: EvaluationReport) -> Row:
    """The row of a report."""
    conditions = {
        "number of images": f"{report.metrics.get('images', math.nan):,.0f}",
        "image size": report.image_size,
        PREPARATION: report.preparation,
        "weights": report.weights,
        ORIGINALS: report.originals,
        **{f"protocol of {name}": protocol for name, protocol in report.protocols.items()},
    }
    steps = {} if report.step is None else {"steps": float(report.step)}
    known = {name: fact for name, fact in conditions.items() if fact}
    return Row(report.name, MEASURED, {**report.metrics, **steps}, known, report.settings)


def sorted_rows(rows: list[Row]) -> list[Row]:
    """By bits per image; rows without come last."""
    return sorted(rows, key=lambda row: row.metrics.get("bits_per_image", math.inf))


def comparison_lines(rows: list[Row]) -> list[str]:
    """Markdown tables of at most 80 characters, what is equal in all rows, and what is not comparable.

    Columns that do not fit beside the others follow in a table of their own.
    """
    rows = sorted_rows(rows)
    given = dict.fromkeys(name for row in rows for name in row.metrics)
    columns = [*(name for name in COLUMNS if name in given), *filter(is_own, given)]
    if _of_one_size(rows):
        columns = [name for name in columns if name != "bits_per_pixel"]
    equal = [name for name in columns if _is_equal(rows, name)]
    if equal == columns:  # rows that do not differ at all are still to be seen
        equal = []
    lines: list[str] = []
    for block in _blocks(rows, [name for name in columns if name not in equal]):
        lines += ["", *block] if lines else block
    if equal:
        values = "; ".join(f"{label_of(name).name} {_shown(rows, name)}" for name in equal)
        lines += ["", *_wrapped(f"the same in all that have it: {values}", indent=2)]
    return [*lines, *differences(rows), *different_settings(rows)]


def differences(rows: list[Row]) -> list[str]:
    """A line for each condition in which measured rows differ."""
    measured = [row for row in rows if row.conditions]
    names = dict.fromkeys(name for row in measured for name in row.conditions)
    originals = {row.conditions.get(ORIGINALS) for row in measured}
    if len(originals) == 1 and None not in originals:  # the same pixels, however they were prepared
        names.pop(PREPARATION, None)
    lines: list[str] = []
    for name in names:
        having = [row for row in measured if name in row.conditions]
        if len({row.conditions[name] for row in having}) > 1:
            values = "; ".join(f"{row.name}: {row.conditions[name]}" for row in having)
            lines += _wrapped(f"not comparable in {name}: {values}", indent=2)
    return ["", *lines] if lines else []


def different_settings(rows: list[Row]) -> list[str]:
    """The options in which the runs differ, and their steps."""
    trained = [row for row in rows if row.settings]
    lines: list[str] = []
    for name in sorted({name for row in trained for name in row.settings}):
        if len({row.settings.get(name) for row in trained}) > 1:
            values = "; ".join(f"{row.name}: {row.settings.get(name, '–')}" for row in trained)
            lines += _wrapped(f"{name}   {values}", indent=4, first=2)
    return ["", "settings that differ:", *lines] if lines else []


def _blocks(rows: list[Row], columns: list[str]) -> list[list[str]]:
    """Tables that have the names of the rows and as many columns as fit."""
    cells = {name: [_head(name), *(_cell(row, name) for row in rows)] for name in columns}
    if {row.source for row in rows} != {MEASURED}:
        sources = ["source", *(row.source.removeprefix("paper, ") for row in rows)]
        first = list(cells.items())[:2]  # beside bits and the main metric
        cells = {**dict(first), "source": sources, **cells}
    names = ["tokenizer", *(_short(row.name) for row in rows)]
    blocks: list[list[str]] = []
    while cells:
        chosen: list[str] = []  # in this table
        width = 4 + max(map(len, names))
        for name, column in cells.items():
            width += 3 + max(map(len, column))
            if width > WIDTH and chosen:
                break
            chosen.append(name)
        table = list(zip(names, *(cells.pop(name) for name in chosen), strict=True))
        # the first table lists all rows, the others those that have a value
        body = [list(line) for line in table[1:] if not blocks or any(cell != "–" for cell in line[1:])]
        blocks.append(markdown_table(list(table[0]), body, aligned=True))
    return blocks


def _head(name: str) -> str:
    label = label_of(name)
    return label.head + ARROWS[label.better]


def _of_one_size(rows: list[Row]) -> bool:
    """Whether bits per pixel say nothing that bits per image do not."""
    sizes = {
        round(row.metrics["bits_per_image"] / row.metrics["bits_per_pixel"])
        for row in rows
        if row.metrics.get("bits_per_image") and row.metrics.get("bits_per_pixel")
    }
    return len(sizes) == 1


def _is_equal(rows: list[Row], name: str) -> bool:
    """Whether all rows that can have a value have the same."""
    having = [row for row in rows if row.source == MEASURED or name in row.metrics]
    return len(having) > 1 and len({_cell(row, name) for row in having}) == 1


def _cell(row: Row, name: str) -> str:
    if name == "codebook_usage" and CODES_USED in row.metrics:
        return (codes_in_use(row.metrics) or "–").removesuffix(" codes")
    return formatted(name, row.metrics[name]) if name in row.metrics else "–"


def _shown(rows: list[Row], name: str) -> str:
    return next(_cell(row, name) for row in rows if name in row.metrics)


def _short(name: str) -> str:
    return name if len(name) <= WIDTH // 2 else f"{name[: WIDTH // 2 - 1]}…"


def _wrapped(text: str, indent: int, first: int = 0) -> list[str]:
    """Lines of at most 80 characters; words that are longer, such as paths, stay whole."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
