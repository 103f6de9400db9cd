"""Missing weights of a command: all of them are named at once, before the work begins."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gsq_lightning.cli.messages import missing_text
from gsq_lightning.errors import InputError, WeightsMissing
from gsq_lightning.metrics import ReconstructionMetrics


class WeightsAtHand(Callback):
    """Loads the frozen networks that a stage needs. It comes after the data's set-up, whose errors are found faster.

    Raises:
        InputError: where weights of one or more are missing.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        missing = missing_weights(pl_module, stage)
        if missing:
            raise InputError(missing_text(missing, stage))


def missing_weights(module: Any, stage: str) -> list[WeightsMissing]:
    """The networks of a stage whose weights are missing, each once; the others are loaded."""
    attempts: list[Callable[[], None]] = [] if stage == "predict" else [module.load_metrics]
    if stage == "fit":
        attempts = [module.objective.load_perceptual_loss, module.objective.load_discriminator, *attempts]
    missing: dict[str, WeightsMissing] = {}
    for attempt in attempts:
        try:
            attempt()
        except WeightsMissing as error:
            missing[error.network] = error
            if attempt is attempts[-1] and isinstance(module.metrics, ReconstructionMetrics):
                missing |= {one.network: one for one in missing_metrics(module.metrics)}
    return list(missing.values())


def missing_metrics(metrics: ReconstructionMetrics) -> list[WeightsMissing]:
    """The missing weights of each metric, after one was found to miss some."""
    missing = []
    for name in metrics.names:
        alone = ReconstructionMetrics(name, **asdict(metrics.options))  # type: ignore[arg-type]
        try:
            alone.load(codebook_size=1)
        except WeightsMissing as error:
            missing.append(error)
    return missing
