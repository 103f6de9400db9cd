"""Turns the predictions of a data set into token shards."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import save

from gsq_lightning.errors import InputError
from gsq_lightning.files import write_whole


class TokenWriter(BasePredictionWriter):
    """Writes `tokens-RANK-SHARD.safetensors` with indices and labels, and beside each a `.json` with the file names.

    In a shard: `indices` (N, h, w, G) in the smallest integer type that holds them, `label` (N,) int64, -1 where an
    image has none. A shard is written under a temporary name and renamed when it is whole. `classes.json` lists the
    names of the classes, in the order of the labels, where the data module knows them (`class_names`).

    Args:
        folder: where the shards go; it must not hold any yet.
        images_per_shard: at most; the last shard of a process has what is left.
    """

    def __init__(self, folder: str = "tokens", images_per_shard: int = 10_000) -> None:
        super().__init__(write_interval="batch")
        if images_per_shard < 1:
            raise InputError(f"images_per_shard is {images_per_shard}; it must be at least 1")
        self.folder = Path(folder).expanduser()
        self.images_per_shard = images_per_shard
        self._pending: list[Any] = []
        self._shard = 0
        self._written = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        # the first process looks before any writes, and all of them end alike
        if trainer.strategy.broadcast(trainer.is_global_zero and any(self.folder.glob("tokens-*"))):
            raise InputError(f"{self.folder} holds token shards already; name another folder, or remove them")
        self.folder.mkdir(parents=True, exist_ok=True)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        indices, labels = prediction.indices.cpu(), prediction.label.cpu()
        self._pending += list(zip(indices, labels, prediction.path, strict=True))
        while len(self._pending) >= self.images_per_shard:
            self._write(trainer.global_rank, self.images_per_shard, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pending:
            self._write(trainer.global_rank, len(self._pending), pl_module)
        if trainer.strategy.reduce_boolean_decision(self._written == 0, all=True):
            raise InputError(f"no tokens were written to {self.folder}: there were no images, or none could be read")
        names = getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
        if names and trainer.is_global_zero:
            write_whole(self.folder / "classes.json", (json.dumps(names, indent=0) + "\n").encode())
        print(f"\n  {self._written} images in {self._shard} shard(s) of tokens: {self.folder}", flush=True)

    def _write(self, rank: int, count: int, pl_module: Any) -> None:
        images, self._pending = self._pending[:count], self._pending[count:]
        indices, labels, paths = zip(*images, strict=True)
        smallest = smallest_type(pl_module.tokenizer.quantizer.codebook_size)
        shard = {"indices": torch.stack(indices).to(smallest), "label": torch.stack(labels)}
        name = f"tokens-{rank:05d}-{self._shard:05d}"
        write_whole(self.folder / f"{name}.json", (json.dumps(list(paths), indent=0) + "\n").encode())
        write_whole(self.folder / f"{name}.safetensors", save(shard))
        self._shard += 1
        self._written += count


def smallest_type(codebook_size: int) -> torch.dtype:
    """The smallest integer type that holds every index below `codebook_size`."""
    for kind in (torch.uint8, torch.int16, torch.int32):
        if codebook_size - 1 <= torch.iinfo(kind).max:
            return kind
    return torch.int64
