"""How far a prediction is, over all processes."""

import sys
from collections import Counter
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from gsq_lightning.callbacks.tokens import TokenWriter
from gsq_lightning.distributed import Tally

LOGGED_SECONDS = 60.0  # between two lines where a log is written


class TokenProgress(ProgressBar):
    """Images that were read, images per second and the time left, over all processes of this run.

    Of streamed images it is not known how many there are: shards that are done stand for the others.

    Args:
        writer: of the tokens, which knows what is left to do.
    """

    def __init__(self, writer: TokenWriter) -> None:
        super().__init__()
        self.writer = writer
        self._enabled = True
        self._bar: Any = None
        self._runs = 0

    def disable(self) -> None:
        """Called on all ranks but the first, which count on."""
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._runs += 1  # on all ranks alike
        self._images, self._shards, self._whole = (
            Tally(f"{name} {self._runs}") for name in ("images", "shards", "images of whole shards")
        )
        self._of_shard: Counter[tuple[int, int]] = Counter()  # images so far, by split and shard
        if self._enabled:
            interval = 0.1 if sys.stderr.isatty() else LOGGED_SECONDS
            total = self.writer.images_left
            self._bar = tqdm(desc="tokens", total=total, unit=" images", mininterval=interval, maxinterval=interval)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        read = len(batch.path) // len(self.writer.work[dataloader_idx].facts.copies) + len(batch.unreadable)
        self._of_shard[dataloader_idx, batch.shard] += read
        ends = bool(batch.ends_shard)
        whole = self._whole.add(self._of_shard.pop((dataloader_idx, batch.shard)) if ends else 0)
        images, shards = self._images.add(read), self._shards.add(int(ends))
        if self._bar is None:
            return
        if self.writer.images_left is None and shards:
            self._bar.total = max(images, round(whole / shards * self.writer.shards_left))
        self._bar.update(images - self._bar.n)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()  # ends the bar's line, so that an error's message has its own

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
