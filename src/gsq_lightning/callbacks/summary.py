"""What a run tells in the terminal and beside its checkpoint: a progress bar with short names, a report at the end."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar

from gsq_lightning.callbacks.pictures import ReconstructionGrid
from gsq_lightning.files import file_identity
from gsq_lightning.reports import (
    EvaluationReport,
    comparison_lines,
    find_report,
    metrics_table,
    report_row,
    sha256_of,
    write_report,
)

SHOWN_LOSSES = (
    "train/loss_reconstruction",
    "train/loss_perceptual",
    "train/loss_adversarial",
    "train/loss_discriminator",
)


class LossProgressBar(TQDMProgressBar):
    """Lightning's progress bar, with the losses under short names and without the version number."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        losses = trainer.callback_metrics
        return {
            name.removeprefix("train/loss_"): f"{float(losses[name]):.4f}" for name in SHOWN_LOSSES if name in losses
        }


class Report(Callback):
    """Prints the metrics of the last validation or test as a table, and writes them with all that they depend on.

    `metrics.json` and a row in `metrics.md` go to the log folder: that of the run, or `validate/NAME` beside the
    checkpoint. A validation in the midst of training writes nothing.

    Args:
        name: what the tokenizer is called in reports; by default the checkpoint's file, or the log folder.
        recipe: configs that the tokenizer is trained with. Checkpoints carry it to later validations.
        compare: reports, checkpoints or folders to print beside the result.

    Attributes:
        validated_step: generator step of the last validation, or None.
        source: exported tokenizer that is validated, which the Trainer does not know of.

    Raises:
        InputError: before anything is computed, where what to compare with has no report.
    """

    def __init__(self, name: str | None = None, recipe: str | None = None, compare: Sequence[str] = ()) -> None:
        self.name = name
        self.recipe = recipe
        self.compare = list(compare)
        self.validated_step: int | None = None
        self.source: Path | None = None
        self._folder: str | None = None
        self._loaded_step: int | None = None
        self._sha256: str | None = None  # of the file that was loaded
        self._others: list[EvaluationReport] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = trainer.log_dir  # asks all processes, so that all must ask
        self._sha256 = sha256_of(self.source) if self.source is not None else None
        self._others = [find_report(Path(other)) for other in self.compare]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["recipe"] = self.recipe

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        carried = checkpoint.get("recipe")
        self.recipe = self.recipe or carried if trainer.state.fn == "fit" else carried or self.recipe
        self._loaded_step = checkpoint.get("global_step")
        self._hash_what_was_loaded(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hash_what_was_loaded(trainer)  # no hook is called for a checkpoint of weights alone

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hash_what_was_loaded(trainer)

    def _hash_what_was_loaded(self, trainer: Trainer) -> None:
        """As early as may be: a training that goes on may replace the file at any time."""
        source = _checkpoint_of(trainer)
        if trainer.state.fn == "fit" or source is None or self._sha256 is not None or not trainer.is_global_zero:
            return
        self._sha256 = sha256_of(source)
        read = getattr(trainer.strategy.checkpoint_io, "read_file", None)
        if trainer.ckpt_path is not None and read is not None and read != file_identity(source):
            self._sha256 = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validated_step = trainer.global_step
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, "val/")

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
        failure: OSError | None = None
        if report.metrics and self._folder is not None:
            try:
                places.append(("report", write_report(report, Path(self._folder))))
            except OSError as error:
                failure = error
        lines += ["", *(f"  {name:<10}  {place}" for name, place in places)] if places else []
        if self._others:
            lines += ["", *comparison_lines([report_row(item) for item in (report, *self._others)])]
        print("\n".join(lines), flush=True)
        if failure is not None:  # what was computed has been shown
            raise failure

    def _make(self, trainer: Trainer, pl_module: LightningModule, prefix: str) -> EvaluationReport:
        metrics = getattr(pl_module, "metrics", None)
        logged = {
            name.removeprefix(prefix): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(prefix)
        }
        source = self.source or _checkpoint_of(trainer)
        loader = trainer.test_dataloaders if prefix == "test/" else trainer.val_dataloaders
        dataset = getattr(loader, "dataset", None)
        seen = getattr(metrics, "seen", None)
        sha256, notes = self._hash_of(source, trainer), list(getattr(metrics, "notes", []))
        if source is not None and sha256 is None:
            notes.append(f"{source} was replaced while it was read, so that its hash is not known")
        return EvaluationReport(
            name=self.name or _name_of(source, self._folder),
            # logged values are float32
            metrics=logged | getattr(pl_module, "metric_values", {}),
            notes=notes,
            recipe=self.recipe,
            tokenizer=_shape_of(getattr(pl_module, "tokenizer", None)),
            checkpoint=None if source is None else str(source),
            checkpoint_sha256=sha256,
            step=trainer.global_step or self._loaded_step,
            data=str(getattr(dataset, "root", None) or type(dataset).__name__),
            originals=None if seen is None else seen.hash_in_words,
            image_size=None if seen is None else seen.size_in_words,
            preparation=getattr(dataset, "preparation", None),
            extractors=dict(getattr(metrics, "description", {})),
            antialias=getattr(metrics, "antialias", None),
            precision=str(trainer.precision),
        )

    def _hash_of(self, source: Path | None, trainer: Trainer) -> str | None:
        """Of the file that the validated weights are from; None where it is not known."""
        if source is None:
            return None
        was_loaded = self.source is not None or (trainer.state.fn != "fit" and trainer.ckpt_path is not None)
        return self._sha256 if was_loaded else sha256_of(source)  # else it was written, and by nobody else

    def _places(self, trainer: Trainer) -> list[tuple[str, Path | str]]:
        places: list[tuple[str, Path | str]] = []
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ReconstructionGrid) and callback.path is not None:
                places.append(("pictures", callback.path))
            if isinstance(callback, ModelCheckpoint) and callback.last_model_path:
                places.append(("checkpoint", callback.last_model_path))
        if self._folder is not None and trainer.loggers:
            places.append(("logs", f"{self._folder}   (tensorboard --logdir {self._folder})"))
        return places


def _checkpoint_of(trainer: Trainer) -> Path | None:
    """What the weights that were validated lie in, as far as the Trainer knows."""
    if trainer.state.fn != "fit" and trainer.ckpt_path is not None:
        return _if_there(trainer.ckpt_path)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint) and callback._last_global_step_saved == trainer.global_step:
            return _if_there(callback.last_model_path)
    return None


def _if_there(path: Any) -> Path | None:
    return Path(path) if path and Path(path).exists() else None


def _name_of(source: Path | None, folder: str | None) -> str:
    """Of a run's checkpoint its run, with the file's name where that is not `last`."""
    if source is None:
        return Path(folder or ".").resolve().name
    source = source.resolve()
    if source.parent.name != "checkpoints":
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
