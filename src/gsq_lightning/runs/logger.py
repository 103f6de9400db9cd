"""TensorBoard logs that do not end a run when the disk is full."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from gsq_lightning.files import disk_error

logger = logging.getLogger(__name__)

RETRY = 60.0  # seconds without writing after a disk error


class RunLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger, which a disk that is full or gone does not stop.

    What cannot be written is left out, and an error in the log says so once. It is tried again from time to time, into
    a new file of the same folder, so that logging continues when there is space again.

    Args:
        save_dir, name, version, options: as of TensorBoardLogger.
    """

    def __init__(
        self, save_dir: str, name: str | None = "lightning_logs", version: int | str | None = None, **options: Any
    ) -> None:
        super().__init__(save_dir, name, version, **options)
        self._silent_until = 0.0
        self._said = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.attempt(lambda: super(RunLogger, self).log_metrics(metrics, step))

    @rank_zero_only
    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        self.attempt(lambda: super(RunLogger, self).log_hyperparams(*arguments, **options))

    @rank_zero_only
    def save(self) -> None:
        self.attempt(super().save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.attempt(lambda: super(RunLogger, self).finalize(status))

    def attempt(self, write: Callable[[], None]) -> None:
        """Writes something through this logger, unless the disk has just failed or fails now."""
        if time.monotonic() < self._silent_until:
            return
        try:
            write()
        except Exception as error:
            found = disk_error(error)
            if found is None:
                raise
            self._experiment = None  # its thread has ended; the next attempt begins another file
            self._silent_until = time.monotonic() + RETRY
            if not self._said:
                logger.error(
                    "logs in %s could not be written: %s; training goes on without them",
                    self.log_dir,
                    found.strerror or found,
                )
            self._said = True
