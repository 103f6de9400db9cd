"""What a run leaves when it starts: its config; or nothing, where it fails before its first step."""

import shutil
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gsq_lightning.files import write_whole
from gsq_lightning.runs.layout import RunFolder


class RunStart(Callback):
    """Writes `config.yaml` when training starts, and removes the folder again where no step was made.

    Args:
        run: whose folder is made where it is missing.
        config: text of the config file.
    """

    def __init__(self, run: RunFolder, config: str) -> None:
        self.run = run
        self.config = config
        self._made = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        self._made = not self.run.path.exists()
        if not self.run.config.exists():  # a run that is resumed keeps the config that it was started with
            write_whole(self.run.config, self.config.encode())

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self._made = False  # by now there is something to keep

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._made and trainer.is_global_zero:
            shutil.rmtree(self.run.path, ignore_errors=True)
            self._made = False
