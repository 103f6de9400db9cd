"""The report of a run: in the terminal, and beside its checkpoint."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from gsq_lightning.callbacks.pictures import ReconstructionGrid
from gsq_lightning.reports import (
    EvaluationReport,
    comparison_lines,
    find_report,
    metrics_line,
    metrics_table,
    report_row,
    sha256_of,
    write_report,
)
from gsq_lightning.run_folders import expanded, run_of
from gsq_lightning.runs import RunCheckpoint


class Evaluated(NamedTuple):
    """The weights that the metrics are of.

    Attributes:
        path: of a checkpoint, or of the folder of an export.
        sha256: of the bytes that the weights were read from.
        weights: "ema" or "raw", of a checkpoint that has both.
        step: generator steps of its training.
        recipe: configs that it was trained with.
    """

    path: Path
    sha256: str | None
    weights: str | None
    step: int | None
    recipe: str | None


class Report(Callback):
    """Prints the metrics of the last validation or test as a table, and writes them with all that they depend on.

    `metrics.json` and a row in `metrics.md` go to the log folder. Of a validation in the middle of training the metrics
    are printed in one line, and nothing is written.

    Args:
        name: what the tokenizer is called in reports; by default the checkpoint's file, or the log folder.
        recipe: configs that the tokenizer is trained with. Checkpoints carry it to later validations, with names and
            settings of the metrics.
        compare: reports, checkpoints or folders to print beside the result.
        evaluated: where weights come from that the Trainer does not load itself.
        folder: where the report goes; by default the log folder.

    Attributes:
        validated_step: generator step of the last validation, or None.

    Raises:
        InputError: before anything is computed, where what to compare with has no report.
    """

    def __init__(
        self,
        name: str | None = None,
        recipe: str | None = None,
        compare: Sequence[str] = (),
        evaluated: Evaluated | None = None,
        folder: str | None = None,
    ) -> None:
        self.name = name
        self.recipe = recipe
        self.compare = list(compare)
        self.validated_step: int | None = None
        self.folder = folder
        self._evaluated = evaluated
        self._loaded_step: int | None = None
        self._loaded_recipe: str | None = None
        self._folder: str | None = None
        self._others: list[EvaluationReport] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        log_dir = trainer.log_dir  # a collective call
        self._folder = self.folder or log_dir
        self._others = [find_report(expanded(other)) for other in self.compare]
        metrics: Any = getattr(pl_module, "metrics", None)
        if hasattr(metrics, "logs_notes"):
            metrics.logs_notes = stage == "fit"  # else a table with the notes follows at once

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["recipe"] = self.recipe

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":
            self.recipe = self.recipe or checkpoint.get("recipe")
            return
        self._loaded_step, self._loaded_recipe = checkpoint.get("global_step"), checkpoint.get("recipe")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validated_step = trainer.global_step
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, "val/")
            return
        line = metrics_line(getattr(pl_module, "metric_values", {}))
        if line and trainer.is_global_zero and trainer.global_step != trainer.max_steps:  # then the table follows
            print(f"step {trainer.global_step}: {line}", flush=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.validated_step == trainer.global_step:
            self._report(trainer, pl_module, "val/")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, pl_module, "test/")

    def _report(self, trainer: Trainer, pl_module: LightningModule, prefix: str) -> None:
        if not trainer.is_global_zero:
            return
        report = self._make(trainer, pl_module, prefix)
        sys.stderr.flush()  # what the progress bar still holds
        lines = ["", *metrics_table(report.metrics), *(f"  note: {note}" for note in report.notes)]
        places = self._places(trainer)
        try:
            if report.metrics and self._folder is not None:
                places.append(("report", write_report(report, Path(self._folder))))
        finally:  # what was computed is shown, also where the disk fails
            lines += ["", *(f"  {name:<10}  {place}" for name, place in places)] if places else []
            if self._others:
                lines += ["", *comparison_lines([report_row(item) for item in (report, *self._others)])]
            print("\n".join(lines), flush=True)

    def _make(self, trainer: Trainer, pl_module: LightningModule, prefix: str) -> EvaluationReport:
        metrics = getattr(pl_module, "metrics", None)
        logged = {
            name.removeprefix(prefix): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(prefix)
        }
        weights = self._evaluated.weights if self._evaluated else _weights_of(pl_module)
        evaluated = self._evaluated or self._loaded(trainer, weights) or _written(trainer, weights)
        loader = trainer.test_dataloaders if prefix == "test/" else trainer.val_dataloaders
        dataset = getattr(loader, "dataset", None)
        seen = getattr(metrics, "seen", None)
        return EvaluationReport(
            name=self.name or _name_of(evaluated, self._folder) + (" raw" if weights == "raw" else ""),
            # logged values are float32
            metrics=logged | getattr(pl_module, "metric_values", {}),
            notes=[*getattr(metrics, "notes", []), *getattr(pl_module, "notes", [])],
            recipe=(evaluated.recipe if evaluated else None) or self.recipe,
            tokenizer=_shape_of(getattr(pl_module, "tokenizer", None)),
            checkpoint=None if evaluated is None else str(evaluated.path),
            checkpoint_sha256=None if evaluated is None else evaluated.sha256,
            weights=weights,
            step=trainer.global_step or (evaluated.step if evaluated else None),
            data=str(getattr(dataset, "root", None) or type(dataset).__name__),
            originals=None if seen is None else seen.hash_in_words,
            image_size=None if seen is None else seen.size_in_words,
            preparation=getattr(dataset, "preparation", None),
            protocols=dict(getattr(metrics, "protocols", {})),
            precision=str(trainer.precision),
        )

    def _loaded(self, trainer: Trainer, weights: str | None) -> Evaluated | None:
        """The checkpoint that the Trainer loaded to validate or test it."""
        if trainer.state.fn == "fit" or trainer.ckpt_path is None:
            return None
        sha256 = getattr(trainer.strategy.checkpoint_io, "loaded_sha256", None)
        return Evaluated(Path(str(trainer.ckpt_path)), sha256, weights, self._loaded_step, self._loaded_recipe)

    def _places(self, trainer: Trainer) -> list[tuple[str, Path | str]]:
        places: list[tuple[str, Path | str]] = []
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ReconstructionGrid) and callback.path is not None:
                places.append(("pictures", callback.path))
            if isinstance(callback, RunCheckpoint) and callback.last_path is not None:
                places.append(("checkpoint", callback.last_path))
        if self._folder is not None and trainer.loggers:
            places.append(("logs", self._folder))
        return places


def _weights_of(module: Any) -> str | None:
    """The weights that a module evaluates, "ema" or "raw"; None where it has no averaged ones."""
    ema = getattr(module, "ema", None)
    if ema is None or not getattr(ema, "updates", 0):
        return None
    return "ema" if module.evaluated_tokenizer is ema.module else "raw"


def _written(trainer: Trainer, weights: str | None) -> Evaluated | None:
    """The checkpoint that this run wrote at this step."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunCheckpoint) and callback.last_path and callback.saved_step == trainer.global_step:
            return Evaluated(callback.last_path, sha256_of(callback.last_path), weights, trainer.global_step, None)
    return None


def _name_of(evaluated: Evaluated | None, folder: str | None) -> str:
    """Of a run's checkpoint such as f8/version_0, or f8/version_0 step=1000; of others the file's or folder's name."""
    if evaluated is None:
        return Path(folder or ".").resolve().name
    source = evaluated.path.resolve()
    if run_of(source) is None:
        return source.stem
    run = "/".join(source.parts[-4:-2])
    return run if source.stem == "last" else f"{run} {source.stem}"


def _shape_of(tokenizer: Any) -> str | None:
    quantizer = getattr(tokenizer, "quantizer", None)
    if quantizer is None:
        return None
    return (
        f"f{tokenizer.downsample_factor}, D = {quantizer.latent_channels}, G = {quantizer.num_groups}, "
        f"V = {quantizer.codebook_size}"
    )
