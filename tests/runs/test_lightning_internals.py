"""The private parts of Lightning that runs rely on do what they are taken to do, in the version that is installed.

What `count_epoch_once` mends is in test_resume.py: epochs are counted right through many resumes.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gsq_lightning.runs.lightning_internals import cluster_environment, run_validation, validation_follows


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.line(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Events(Callback):
    """Writes down in order: what was predicted after a training batch, and what came."""

    def __init__(self, validates_at_start: bool = False) -> None:
        self.events: list[str] = []
        self.validates_at_start = validates_at_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.validates_at_start:
            run_validation(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self.events.append("validation follows" if validation_follows(trainer) else "none follows")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.events.append("validation")


def fit(folder: Path, events: Events, **options: Any) -> Trainer:
    data = DataLoader(torch.ones(5, 1))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(
        accelerator="cpu", default_root_dir=folder, enable_checkpointing=False, callbacks=[events], **quiet, **options
    )
    trainer.fit(Line(), data, data)
    return trainer


@pytest.mark.parametrize(
    ("options", "validations"),
    [
        ({"max_epochs": 1}, [5]),
        ({"max_epochs": 2, "val_check_interval": 2}, [2, 4, 7, 9]),
        ({"max_epochs": 2, "check_val_every_n_epoch": 2}, [10]),
        ({"max_steps": 8, "check_val_every_n_epoch": None, "val_check_interval": 3}, [3, 6]),
    ],
)
def test_a_validation_is_foreseen(tmp_path: Path, options: dict[str, Any], validations: list[int]) -> None:
    events = Events()
    fit(tmp_path, events, **options)
    batches = [event for event in events.events if event != "validation"]
    assert [number for number, event in enumerate(batches, 1) if event == "validation follows"] == validations
    for event, following in zip(events.events, [*events.events[1:], "end"], strict=True):
        assert (event == "validation follows") == (following == "validation")


def test_a_validation_can_be_run_before_the_first_step(tmp_path: Path) -> None:
    events = Events(validates_at_start=True)
    trainer = fit(tmp_path, events, max_epochs=1)
    assert events.events[:2] == ["validation", "none follows"]
    assert trainer.global_step == 5
    assert isinstance(cluster_environment(trainer), LightningEnvironment)
