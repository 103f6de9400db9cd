"""What Lightning prints by itself: what is replaced for a tokenizer's training, and what is left out."""

import logging
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Callback,
    ModelSummary,
    RichModelSummary,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from gsq_lightning.callbacks.progress import StepProgressBar

# advertisements; what "device: …" says better; and that a checkpoint that is saved is whole
LINES = ("litlogger", "litmodels", "GPU available: ", "TPU available: ", "`weights_only` was not set")
LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.connectors.checkpoint_connector")
WARNINGS = (
    ".*isinstance.treespec, LeafSpec.*",  # between lightning 2.6 and torch 2.15
    "It is recommended to use `self.log",  # metrics are equal on all ranks when they are logged
    "Found .* in eval mode at the start of training",  # frozen networks and the average are to be so
    ".*your dataloader is not resumable",  # our sampler resumes in the middle of an epoch
    "The number of training batches .* is smaller than the logging interval",  # logs go by steps, not by epochs
    "Using ModelCheckpoint with manual optimization",  # saving after the step is what is meant
    "You have overridden `on_before_batch_transfer` in `LightningModule`",  # which looks at the Trainer alone
    "Detected call of `lr_scheduler.step..` before",  # a discriminator that waits has a schedule that does not
    "The '.*_dataloader' does not have many workers",  # there are as many as the machine has cores for
)


def leave_out_noise() -> None:
    """Drops Lightning's advertisements, and warnings that do not hold here."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_is_wanted)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def replace_defaults(trainer: Trainer) -> None:
    """Puts our progress bar and our line on parameters in place of Lightning's, where the Trainer has those by default.

    Lightning's table counts frozen networks, and FLOPs as 0. A bar or a summary with options of its own stays.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for place, callback in enumerate(callbacks):
        if type(callback) is RichProgressBar or (type(callback) is TQDMProgressBar and callback.refresh_rate == 1):
            callbacks[place] = StepProgressBar()
        elif type(callback) in (ModelSummary, RichModelSummary) and callback._max_depth == 1:  # type: ignore[attr-defined]
            callbacks[place] = ParameterCount()


class ParameterCount(Callback):
    """Says what a training runs on, and how many parameters each network has that is trained."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        several = f"{trainer.world_size} × " if trainer.world_size > 1 else ""
        kind = pl_module.device.type
        name = torch.cuda.get_device_name(pl_module.device) if kind == "cuda" else kind
        rank_zero_info(f"device: {several}{name}, {trainer.precision}")
        counts = {
            name: sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
            for name, network in pl_module.named_children()
        }
        shown = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in counts.items() if count)
        rank_zero_info(f"parameters: {shown}")


def _is_wanted(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in LINES)
