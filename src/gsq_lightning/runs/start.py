"""Writes a run's config when it starts, and removes it again if the run fails before its first step."""

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from gsq_lightning.errors import require
from gsq_lightning.run_folders import RunFolder


class RunStart(Callback):
    """Writes `config.yaml` and other files when training starts; removes the run's folder if training fails before its
    first step. Prints where the run goes, and how to look at it.

    Args:
        run: whose folder is made where it is missing.
        config: text of the config file.
        all_runs: the folder to open in TensorBoard, below which each run has a name of its own.

    Attributes:
        files: texts of what else is written beside it, by name.

    Raises:
        InputError: where a new run ends without a step.
    """

    def __init__(self, run: RunFolder, config: str, all_runs: Path) -> None:
        self.run = run
        self.config = config
        self.all_runs = all_runs
        self.files: dict[str, str] = {}
        self._made = False
        self._resumes = run.config.exists()
        self._trained = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        self.run.path.mkdir(parents=True, exist_ok=True)
        try:
            with self.run.config.open("x", encoding="utf-8") as file:
                file.write(self.config)
            for name, text in self.files.items():
                (self.run.path / name).write_text(text, "utf-8")
            self._made = True
        except FileExistsError:  # a run that is resumed keeps the config that it was started with
            pass

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown = any(isinstance(one, TensorBoardLogger) for one in trainer.loggers)
        rank_zero_info(f"run: {self.run.path}" + (f"   (tensorboard --logdir {self.all_runs})" if shown else ""))

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a run that is resumed at its end may lack its last validation alone
        require(
            self._trained or self._resumes,
            f"nothing is left to train: at step {trainer.global_step} and epoch {trainer.current_epoch}, with "
            f"trainer.max_steps {trainer.max_steps}, trainer.max_epochs {trainer.max_epochs} and "
            f"trainer.limit_train_batches {trainer.limit_train_batches}",
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # loggers may make the folder before `setup`
        made_here = self._made or not self.run.config.exists()
        if trainer.is_global_zero and made_here and not self._trained:
            shutil.rmtree(self.run.path, ignore_errors=True)
