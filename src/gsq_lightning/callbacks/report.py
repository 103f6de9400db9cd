"""What a run tells in the terminal: a progress bar with short names, and a table at the end."""

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar

from gsq_lightning.callbacks.reconstructions import ReconstructionGrid

SHOWN_LOSSES = (
    "train/loss_reconstruction",
    "train/loss_perceptual",
    "train/loss_adversarial",
    "train/loss_discriminator",
)

METRICS = {
    "psnr": ("PSNR", "dB, higher is better", "{:.2f}"),
    "ssim": ("SSIM", "higher is better", "{:.4f}"),
    "rfid": ("rFID", "Fréchet distance over Inception v3, lower is better", "{:.3f}"),
    "rfd_random": ("rfd_random", "Fréchet distance over random features, not an rFID, lower is better", "{:.4f}"),
    "codebook_usage": ("codebook usage", "share of codes used", "{:.2%}"),
    "codebook_perplexity": ("codebook perplexity", "of the codebook's size, higher is better", "{:.1f}"),
    "bits_per_image": ("bits per image", "", "{:.0f}"),
    "bits_per_pixel": ("bits per pixel", "", "{:.4f}"),
}


class LossProgressBar(TQDMProgressBar):
    """Lightning's progress bar, with the losses under short names and without the version number."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        losses = trainer.callback_metrics
        return {
            name.removeprefix("train/loss_"): f"{float(losses[name]):.4f}" for name in SHOWN_LOSSES if name in losses
        }


class Report(Callback):
    """Prints the metrics of the last validation or test as a table, and where the run's files lie.

    Attributes:
        validated_step: generator step of the last validation, or None.
    """

    def __init__(self) -> None:
        self.validated_step: int | None = None
        self._folder: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = trainer.log_dir  # asks all processes, so that all must ask

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validated_step = trainer.global_step
        if trainer.state.fn == "validate":
            self._print(trainer, "val/")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.validated_step == trainer.global_step:
            self._print(trainer, "val/")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, "test/")

    def _print(self, trainer: Trainer, prefix: str) -> None:
        if not trainer.is_global_zero:
            return
        values = {
            name.removeprefix(prefix): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(prefix)
        }
        sys.stderr.flush()  # what the progress bar still holds
        print("\n" + "\n".join([*metrics_table(values), *self._places(trainer)]), flush=True)

    def _places(self, trainer: Trainer) -> list[str]:
        places: list[tuple[str, Path | str]] = []
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ReconstructionGrid) and callback.path is not None:
                places.append(("pictures", callback.path))
            if isinstance(callback, ModelCheckpoint) and callback.last_model_path:
                places.append(("checkpoint", callback.last_model_path))
        if self._folder is not None and trainer.loggers:
            places.append(("logs", f"{self._folder}   (tensorboard --logdir {self._folder})"))
        return ["", *(f"  {name:<10}  {place}" for name, place in places)] if places else []


def metrics_table(values: dict[str, float]) -> list[str]:
    """Lines of a table of metrics, the known ones in a fixed order under their usual names."""
    rows = []
    for name in [*(name for name in METRICS if name in values), *(name for name in values if name not in METRICS)]:
        label, meaning, form = METRICS.get(name, (name, "", "{:.4g}"))
        rows.append((label, form.format(values[name]), meaning))
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"  {label:<{widths[0]}}  {value:>{widths[1]}}  {meaning}".rstrip() for label, value, meaning in rows]
