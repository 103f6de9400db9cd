"""TensorBoard logs, in groups, that do not end a run when the disk is full."""

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from gsq_lightning.files import disk_error

logger = logging.getLogger(__name__)

RETRY = 60.0  # seconds without writing after a disk error
# the group of a value, by the first pattern that its key matches; what follows the match is its name in the group
GROUPS = (
    (r"train/(?=learning_rate|images_per_second|ema_decay)|(?=epoch$)", "speed"),
    (r"train/(?=loss_(adversarial|lecam|gradient_penalty)|logits_|accuracy_|adaptive_|.*_discriminator$)", "gan"),
    (r"train/(?=quantizer_)|val/codebook_", "codebook"),
    (r"train/loss_|train/", "loss"),
    (r"val/", "quality"),
)
CONSTANT = ("val/images", "val/bits_per_image", "val/bits_per_pixel")  # at each step: reports have them


class RunLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger, which a disk that is full or gone does not stop.

    Values are shown in the groups loss, gan, codebook, quality and speed: `val/psnr` as `quality/psnr`.

    What cannot be written is left out, and an error in the log says so once. It is tried again from time to time, into
    a new file of the same folder, so that logging continues when there is space again.

    Args:
        save_dir, name, version, options: as of TensorBoardLogger.
    """

    def __init__(
        self, save_dir: str, name: str | None = "lightning_logs", version: int | str | None = None, **options: Any
    ) -> None:
        super().__init__(save_dir, name, version, **({"default_hp_metric": False} | options))
        self._silent_until = 0.0
        self._said = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        grouped = {in_group(name): value for name, value in metrics.items() if name not in CONSTANT}
        self.attempt(lambda: super(RunLogger, self).log_metrics(grouped, step))

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


def in_group(name: str) -> str:
    """The tag of a value, such as `quality/psnr` for `val/psnr`; a name that belongs to no group stays."""
    for pattern, group in GROUPS:
        if match := re.match(pattern, name):
            return f"{group}/{name[match.end() :]}"
    return name
