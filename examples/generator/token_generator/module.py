"""Trains the generator on tokens, and draws samples as pictures."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from gsq_lightning import GSQTokenizer
from gsq_lightning.errors import require
from gsq_lightning.optim.random_streams import seed_streams
from gsq_lightning.tokens import flatten_tokens
from token_generator.network import HeadName, TokenGenerator, TokenShape, random_mask
from token_generator.pictures import remove_pictures, write_grid, write_pictures
from token_generator.sampling import Sampling, generate

GRID = 64  # samples in a picture


class GeneratorModule(LightningModule):
    """A class-conditional generator of tokens.

    Its batches have `indices` (B, h, w, G) and `label` (B,), as those of `gsq_lightning.data.TokenDataModule`.
    Prediction makes a sample of the class of each image that it is given: PNG files, and a picture of the first 64.

    Args:
        shape: of the tokens.
        width, layers, heads, head, depth_layers, masked, dropout: as of `TokenGenerator`.
        optimizer: parameters → optimizer.
        scheduler: optimizer → schedule, stepped once per step.
        label_dropout: share of the images whose class is hidden in training, which guidance needs.
        sampling: how prediction, and validation, draw.
        tokenizer: path of the export or checkpoint that wrote the tokens, to see samples as pictures, or none.
        samples: folder of what prediction writes.
        seed: of what training and sampling draw at random.

    Raises:
        InputError: for values that make no sense.
    """

    def __init__(
        self,
        shape: TokenShape,
        width: int = 256,
        layers: int = 6,
        heads: int = 4,
        head: HeadName = "depth",
        depth_layers: int = 2,
        masked: bool = False,
        dropout: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        label_dropout: float = 0.1,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        tokenizer: str | None = None,
        samples: str = "samples",
        seed: int = 0,
    ) -> None:
        super().__init__()
        require(0 <= label_dropout <= 1, f"label_dropout is {label_dropout}; it must be from 0 to 1")
        self.network = TokenGenerator(shape, width, layers, heads, head, depth_layers, masked, dropout)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.label_dropout = label_dropout
        self.sampling = sampling
        self.samples = Path(samples)
        self.seed = seed
        self.tokenizer_path = tokenizer
        self._tokenizer: tuple[GSQTokenizer, ...] = ()  # no part of this module: checkpoints leave it out

    def setup(self, stage: str) -> None:
        if self.tokenizer_path is not None:
            tokenizer = GSQTokenizer.from_pretrained(self.tokenizer_path)
            made_by = getattr(getattr(self.trainer, "datamodule", None), "tokenizer_hash", tokenizer.hash)
            require(
                made_by == tokenizer.hash,
                f"the tokens are not of the tokenizer {self.tokenizer_path}; give the one that made them, or one that "
                "differs in its decoder alone",
            )
            self._tokenizer = (tokenizer,)
        require(stage != "predict" or bool(self._tokenizer), "samples need the tokenizer: --model.tokenizer PATH")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # fewer than two dimensions: norms and biases, which decay does no good
        groups = [[p for p in self.parameters() if (p.ndim < 2) == small] for small in (False, True)]
        optimizer = self.optimizer([{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}])
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    # ---------------------------------------------------------------------------------------------------- training

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        # what a batch draws depends on its number alone, so that a resumed run draws the same
        seed_streams(self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)
        hidden = torch.rand(len(batch.label), device=self.device) < self.label_dropout
        loss = self.nats(batch.indices, batch.label.masked_fill(hidden, -1)).mean()
        self.log("train/bits_per_index", loss.detach() / math.log(2), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        seed_streams(self.seed, batch_idx, self.global_rank)  # of masks
        nats, images, shape = self.nats(batch.indices, batch.label), len(batch.label), self.network.shape
        bits = nats.sum() / max(1, nats.numel()) / math.log(2)  # a device without a share has a batch of none
        self.log("val/bits_per_index", bits, batch_size=nats.numel(), sync_dist=True, prog_bar=True)
        if not self.network.masked:  # where some positions are seen, the others have no likelihood of the image
            per_image = bits * shape.positions * shape.num_groups
            self.log("val/bits_per_image", per_image, batch_size=images, sync_dist=True)

    def nats(self, indices: Tensor, label: Tensor) -> Tensor:
        """(B, h, w, G) → −log p in nats of the indices to be predicted: (B, N, G), or (K, G) of those masked."""
        flat = flatten_tokens(indices, keep_groups=True)
        if not self.network.masked:
            return self.network(flat, label)
        mask = random_mask(flat)
        return self.network(flat, label, mask)[mask]

    def on_validation_epoch_end(self) -> None:
        """A picture of samples beside the logs."""
        folder = self.trainer.log_dir  # a collective call
        if not self._tokenizer or self.trainer.sanity_checking or not self.trainer.is_global_zero or folder is None:
            return
        classes = self.network.shape.num_classes
        label = torch.arange(GRID, device=self.device) % classes if classes else torch.full((GRID,), -1)
        indices = self.sample(label.to(self.device), 0)
        write_grid(Path(folder) / "samples" / f"step={self.global_step}.png", self.decode(indices))

    # -------------------------------------------------------------------------------------------------- prediction

    def on_predict_start(self) -> None:
        self._grid: list[Tensor] = []
        if self.trainer.is_global_zero:
            remove_pictures(self.samples)  # of an earlier prediction, which may have made more
        self.trainer.strategy.barrier()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """A sample of the class of each image: indices (B, h, w, G)."""
        number = batch_idx * self.trainer.world_size + self.global_rank
        indices = self.sample(batch.label, number)
        pictures = self.decode(indices)
        write_pictures(self.samples, pictures, f"{number:06d}")
        if sum(map(len, self._grid)) < GRID:
            self._grid.append(pictures)
        return indices

    def on_predict_end(self) -> None:
        if self.trainer.is_global_zero and self._grid:
            write_grid(self.samples.with_name(f"{self.samples.name}.png"), torch.cat(self._grid)[:GRID])

    def sample(self, label: Tensor, number: int) -> Tensor:
        """Indices (B, h, w, G) of new images; `number` chooses other random numbers."""
        generator = torch.Generator(self.device).manual_seed(self.seed * 2**32 + number)
        training = self.network.training
        indices = generate(self.network.eval(), label, self.sampling, generator)
        self.network.train(training)
        return indices

    def decode(self, indices: Tensor) -> Tensor:
        """Indices → pictures (B, 3, H, W) in [-1, 1]."""
        (tokenizer,) = self._tokenizer
        return tokenizer.to(self.device).decode_indices(indices).clamp(-1, 1)
