"""The result of a validation, and all that its numbers depend on."""

import hashlib
import json
import math
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from gsq_lightning.errors import InputError
from gsq_lightning.files import WEIGHTS_FILE, locked, write_whole
from gsq_lightning.reports.table import METRICS, formatted, markdown_table
from gsq_lightning.run_folders import RunFolder, checkpoint_files, run_folders

JSON_NAME = "metrics.json"
MARKDOWN_NAME = "metrics.md"
NO_SETTINGS = (
    "trainer.logger",
    "trainer.enable",
    "trainer.default_root_dir",
    "checkpoint",
    "reconstructions",
    "tokens",
    "ckpt_path",
    "auto_resume",
)
LIBRARIES = ("gsq-lightning", "torch", "torchvision", "torchmetrics", "torch-fidelity", "lpips", "pillow")


@dataclass(frozen=True)
class EvaluationReport:
    """Of one tokenizer on one set of images.

    Attributes:
        name: what it is called in tables.
        metrics: values by name; `images` says over how many.
        notes: what there is to say about the values.
        recipe: configs that the tokenizer was trained with.
        tokenizer: its shape in words.
        checkpoint: path of what was validated, and its SHA-256.
        weights: "ema" or "raw", of a checkpoint that has both.
        step: generator steps of training.
        data: where the originals lie.
        originals: a hash of their pixels, whatever the order.
        image_size: height × width in pixels, or "several".
        preparation: what was done to the originals.
        protocols: how values were computed, by metric: network and preparation of images, rim, subsets.
        precision: of the tokenizer; metrics are float32 and float64 always.
        settings: of the run that it was trained in, by option; read from the run's config, not written here.
        versions: of libraries.
        date: UTC, to the second.
    """

    name: str
    metrics: dict[str, float]
    notes: list[str] = field(default_factory=list)
    recipe: str | None = None
    tokenizer: str | None = None
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    weights: str | None = None
    step: int | None = None
    data: str | None = None
    originals: str | None = None
    image_size: str | None = None
    preparation: str | None = None
    protocols: dict[str, str] = field(default_factory=dict)
    precision: str | None = None
    settings: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: library_versions())
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


def write_report(report: EvaluationReport, folder: Path) -> Path:
    """Writes `metrics.json` and adds a row to `metrics.md`; returns the path of the first.

    Numbers that JSON lacks (NaN and the infinite PSNR of identical images) are written as strings.
    """
    content = asdict(report)
    del content["settings"]
    content["metrics"] = {name: value if math.isfinite(value) else str(value) for name, value in report.metrics.items()}
    path, table = folder / JSON_NAME, folder / MARKDOWN_NAME
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, text.encode(errors="backslashreplace"))  # names of files need not be UTF-8
    with locked(folder):
        # what somebody wrote there need not be UTF-8 either
        before = table.read_text("utf-8", "surrogateescape") if table.is_file() else ""
        write_whole(table, with_row(before, report).encode("utf-8", "surrogateescape"))
    return path


def with_row(text: str, report: EvaluationReport) -> str:
    """Markdown with a row for a report at its end: in the table there if that has the same columns."""
    names = [name for name in report.metrics if name in METRICS]
    shown = {METRICS[name].name: formatted(name, report.metrics[name]) for name in names}
    facts = {
        "recipe": report.recipe,
        "checkpoint": (report.checkpoint_sha256 or "")[:12],
        "weights": report.weights,
        "step": report.step,
        "image": report.image_size,
        "preparation": report.preparation,
        "protocols": "; ".join(f"{metric}: {protocol}" for metric, protocol in report.protocols.items()),
        "precision": report.precision,
        "versions": ", ".join(f"{name} {number}" for name, number in report.versions.items()),
        "date": report.date,
    }
    row = {"name": report.name, **shown, **{name: "" if fact is None else str(fact) for name, fact in facts.items()}}
    lines = markdown_table(list(row), [list(row.values())])
    text = text if text.endswith("\n") or not text else text + "\n"
    last_table = list(takewhile(lambda line: line.startswith("|"), reversed(text.splitlines())))
    if last_table and last_table[-1] == lines[0]:
        return text + lines[2] + "\n"
    return text + ("\n" if text else "") + "\n".join(lines) + "\n"


def read_report(path: Path) -> EvaluationReport:
    """Reads `metrics.json`. Raises InputError where it is not one."""
    try:
        content = json.loads(path.read_text("utf-8"))
        known = {item.name for item in fields(EvaluationReport)}
        content = {name: value for name, value in content.items() if name in known}  # later versions may add some
        content["metrics"] = {str(name): float(value) for name, value in content["metrics"].items()}
        return EvaluationReport(**content)
    except (ArithmeticError, AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as a report of gsq validate or gsq evaluate ({JSON_NAME}): {error}"
        ) from error


def find_report(source: Path, weights: str | None = None) -> EvaluationReport:
    """The report of a report file, a checkpoint, an exported tokenizer, a run, or the newest run of a recipe.

    A run stands for its newest checkpoint. Of a checkpoint that was not validated on its own it is what its training
    measured last; of several reports the newest, those of averaged weights first. `settings` are those of the run's
    config, where there is one.

    Args:
        source: path of any of these.
        weights: "ema" or "raw" where the report must be of these; one that does not know is taken too.

    Raises:
        InputError: where there is none, or it is that of an earlier state of the checkpoint, or of other weights.
    """
    if not source.exists():
        raise InputError(f"there is no {source}; give reports ({JSON_NAME}), folders with one, or checkpoints")
    if source.suffix == ".json":
        return _with_settings(source)
    found = _places(source)
    if not found:
        newest = next((run.path for run in run_folders(source) if _places(run.path)), None)
        if newest is not None:
            return find_report(newest, weights)
    of = _file_of(source)
    if not found and of is None:
        raise InputError(f"{source} holds neither a report ({JSON_NAME}) nor an exported tokenizer")
    again = f"gsq validate --ckpt_path {source}{' --weights raw' if weights == 'raw' else ''}"
    if not found:
        raise InputError(f"{source} has no report yet; {again} writes one")
    sha256 = None if of is None else sha256_of(of)
    reports = [report for report in map(_with_settings, found) if sha256 in (None, report.checkpoint_sha256)]
    if not reports:
        raise InputError(f"{found[0]} was written for another state of {source}; validate it again: {again}")
    fitting = [report for report in reports if weights is None or report.weights in (None, weights)]
    if not fitting:
        raise InputError(f"the report of {source} is of its {reports[0].weights} weights; {again} writes one of these")
    return min(fitting, key=lambda report: report.weights == "raw")


def _places(source: Path) -> list[Path]:
    """Where there are reports of a checkpoint, an export or a run, the newest first."""
    commands = ("validate", "test")
    places = [report_folder(source, command, kind) for command in commands for kind in (None, "raw")]
    if source.is_dir():
        places += [source, *(source / command for command in commands)]
        places += [path.parent for path in RunFolder(source).checkpoints.glob(f"*/*/{JSON_NAME}")]
    else:
        places.append(source.resolve().parent.parent)  # of the run that it lies in
    files = {place / JSON_NAME for place in places}
    return sorted((path for path in files if path.is_file()), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _file_of(source: Path) -> Path | None:
    """The weights that a report is of: a checkpoint, those of an export, or the newest checkpoint of a run."""
    if weights_file(source).is_file():
        return weights_file(source)
    return next(iter(checkpoint_files(RunFolder(source))), None)


def report_folder(source: Path, command: str, weights: str | None = None) -> Path:
    """Where the validation of a checkpoint or of an exported tokenizer is written: beside it, never in an export.

    Args:
        source: the checkpoint's file, or the folder of the export.
        command: "validate" or "test".
        weights: "raw" for those of a checkpoint that has averaged ones too, which have a folder of their own.
    """
    source = source.resolve()
    if source.is_dir():
        return source.with_name(f"{source.name}-report") / command
    return source.parent / command / (f"{source.stem}-raw" if weights == "raw" else source.stem)


def weights_file(source: Path) -> Path:
    """A checkpoint itself, or the weights within an exported tokenizer."""
    return source / WEIGHTS_FILE if source.is_dir() else source


def sha256_of(source: Path) -> str:
    """Of a checkpoint, or of the weights of an exported tokenizer, in hexadecimal."""
    with weights_file(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_settings(path: Path) -> dict[str, str]:
    """Options of the run that a report lies in; empty if it lies in no run.

    Left out is what does not change a training: where it is logged, what it is called, and classes' full paths.
    """
    for folder in list(path.resolve().parents)[:4]:  # from the run's own report, or checkpoints/validate/NAME
        run = RunFolder(folder)
        if run.config.is_file() and run.checkpoints.is_dir():
            try:
                content = yaml.safe_load(run.config.read_text("utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                return {}
            leaves = dict(_leaves(content))
            return {name: value for name, value in leaves.items() if not name.startswith(NO_SETTINGS)}
    return {}


def _leaves(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Values of a config by their dotted option."""
    if isinstance(content, dict):
        for key, value in content.items():
            inner = name if key == "init_args" else f"{name}.{key}".lstrip(".")
            yield from _leaves(value, inner.removesuffix(".class_path"))
    elif name:
        word = "null" if content is None else str(content)
        yield name, word.rsplit(".", 1)[-1] if word.startswith("gsq_lightning.") else word


def _with_settings(path: Path) -> EvaluationReport:
    return replace(read_report(path), settings=run_settings(path))


def library_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
