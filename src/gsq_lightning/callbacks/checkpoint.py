"""When checkpoints are written."""

import warnings
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from gsq_lightning.errors import TrainingDiverged


class RunCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt` up to date: every so many training steps, and always when training ends.

    Args:
        every_n_train_steps: generator steps between two checkpoints.
        keep_all: keep each one as `step=N.ckpt` too.
        dirpath: folder of the checkpoints; by default `checkpoints` in the run's log folder.
    """

    def __init__(self, every_n_train_steps: int = 1000, keep_all: bool = False, dirpath: str | None = None) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="{step}",
            save_last=True,
            save_top_k=-1 if keep_all else 0,
            every_n_train_steps=every_n_train_steps,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with warnings.catch_warnings():
            # Lightning explains that a manual optimization saves the weights after the step: so it should
            warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, TrainingDiverged):  # the weights are still those of the last good step
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
