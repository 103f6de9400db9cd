"""A run that was stopped anywhere and resumed equals the run that was never stopped, bit-exact on the CPU."""

import csv
import math
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from gsq_lightning import GSQTokenizer, TokenizerModule
from gsq_lightning.data import ImageNetDataModule, PhotographsDataModule
from gsq_lightning.discriminators import (
    DifferentiableAugmentation,
    DINODiscriminator,
    Discriminator,
    PatchDiscriminator,
    StyleGANDiscriminator,
)
from gsq_lightning.errors import RunStopped
from gsq_lightning.losses import LossWeights
from gsq_lightning.metrics import ReconstructionMetrics
from gsq_lightning.optim.schedules import WarmupDecay
from gsq_lightning.runs import RunCheckpoint
from tests.conftest import write_images

Build = Callable[..., GSQTokenizer]

STEPS = 7

DISCRIMINATORS: dict[str, Callable[[], Discriminator | None]] = {
    "none": lambda: None,
    "patch": lambda: PatchDiscriminator(channels=4, num_layers=1),
    "stylegan": lambda: StyleGANDiscriminator(channels=4, multipliers=(2, 2)),
    "dino": lambda: DINODiscriminator(
        "random", input_size=28, kernel_size=3, augmentation=DifferentiableAugmentation()
    ),
}


class StopAt(Callback):
    """Sends a signal during a batch, as a cluster would."""

    def __init__(self, checkpoint: RunCheckpoint, batch: int | None = None, validation: bool = False) -> None:
        self.checkpoint = checkpoint
        self.batch = batch
        self.validation = validation

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.batch:
            signal.raise_signal(signal.SIGTERM)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if self.validation and not trainer.sanity_checking:
            signal.raise_signal(signal.SIGTERM)


class EndAt(Callback):
    """Ends the training after a batch, as `max_time` does, or after a validation, as EarlyStopping does."""

    def __init__(self, batch: int, validation: bool) -> None:
        self.batch = batch
        self.validation = validation

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if not self.validation and trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.batch:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if self.validation:
            trainer.should_stop = True


class Draws(Callback):
    """What each batch would draw from the streams of Python, NumPy and torch after its step."""

    def __init__(self) -> None:
        self.drawn: list[tuple[float, float, float]] = []

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """18 images to train on: 9 batches of 2 in an epoch, or 8 where 2 or 4 are accumulated."""
    write_images(tmp_path / "images" / "train", 18)
    write_images(tmp_path / "images" / "val", 5, seed=1)
    return tmp_path / "images"


class Run:
    """A training of a small model on `root`, that leaves logs and checkpoints in `folder`; `options` of the Trainer."""

    def __init__(
        self,
        build: Build,
        root: Path,
        folder: Path,
        discriminator: str,
        accumulate: int = 1,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        torch.manual_seed(3)
        self.folder = folder
        self.options = options
        self.checkpoint = RunCheckpoint(every_n_train_steps=1, keep_all=True, dirpath=str(folder / "checkpoints"))
        self.draws = Draws()
        adversary = DISCRIMINATORS[discriminator]()
        self.module = TokenizerModule(
            build(),
            adversary,
            metrics=ReconstructionMetrics(["psnr", "codebook"]),
            loss_weights=LossWeights(lecam=0.1 if adversary is not None else 0.0),
            discriminator_start_step=0 if adversary is None else 2,
            adaptive_weight=adversary is not None,
            tokenizer_scheduler=lambda optimizer: WarmupDecay(optimizer, warmup_steps=3, decay_steps=9),
            accumulate_batches=accumulate,
            ema_decay=0.9,
        )
        self.data = ImageNetDataModule(
            str(root), 16, 2 * accumulate, 2, crop="resized", flip=True, num_workers=num_workers, seed=4
        )

    def fit(
        self, ckpt_path: Path | None = None, max_steps: int = STEPS, callbacks: Sequence[Callback] = (), **stop: Any
    ) -> "Run":
        trainer = Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            logger=CSVLogger(self.folder, name="", version=""),
            log_every_n_steps=1,
            callbacks=[self.draws, StopAt(self.checkpoint, **stop), *callbacks, self.checkpoint],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **self.options,
        )
        trainer.fit(self.module, self.data, ckpt_path=ckpt_path)
        return self

    @property
    def last(self) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(self.folder / "checkpoints" / "last.ckpt", weights_only=True)
        return state

    @property
    def logs(self) -> dict[str, dict[str, str]]:
        """Logged values by name and step."""
        found: dict[str, dict[str, str]] = {}
        for row in csv.DictReader((self.folder / "metrics.csv").open()):
            for name, value in row.items():
                if value and name not in ("step", "epoch", "train/images_per_second"):
                    assert row["step"] not in found.setdefault(name, {}), f"{name} was logged twice at {row['step']}"
                    found[name][row["step"]] = value
        return found


def equal(one: Any, other: Any, place: str = "") -> None:
    """Asserts that two trees of tensors and plain data are bit-exact equal."""
    assert type(one) is type(other), place
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype, place
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for name in one:
            equal(one[name], other[name], f"{place}.{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            equal(left, right, f"{place}[{number}]")
    elif isinstance(one, float) and math.isnan(one):
        assert math.isnan(other), place
    else:
        assert one == other, place


def assert_same_run(resumed: Run, stopped: Run, whole: Run) -> None:
    compared = ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "training_state")
    for part in compared:
        equal(resumed.last[part], whole.last[part], part)
    equal(
        *(
            next(run.last[key] for key in run.last if "DataModule" in key and "hyper" not in key)
            for run in (resumed, whole)
        )
    )
    assert stopped.draws.drawn + resumed.draws.drawn == whole.draws.drawn
    for name, values in whole.logs.items():
        assert stopped.logs.get(name, {}) | resumed.logs.get(name, {}) == values, name
        assert not stopped.logs.get(name, {}).keys() & resumed.logs.get(name, {}).keys(), name


@pytest.mark.parametrize(
    ("discriminator", "accumulate", "batches", "num_workers"),
    [
        ("none", 1, (3,), 0),
        ("patch", 1, (1, 4), 2),
        ("patch", 4, (2, 8, 11), 0),  # within a group, at the end of an epoch, within a group once D is trained
        ("stylegan", 1, (4,), 0),
        ("dino", 2, (8,), 0),
    ],
)
def test_a_stopped_and_resumed_run_is_the_whole_run(
    small_tokenizer: Build,
    root: Path,
    tmp_path: Path,
    discriminator: str,
    accumulate: int,
    batches: tuple[int, ...],
    num_workers: int,
) -> None:
    def run(folder: str) -> Run:
        return Run(small_tokenizer, root, tmp_path / folder, discriminator, accumulate, num_workers)

    whole = run("whole").fit()
    assert whole.last["global_step"] == STEPS
    for batch in batches:
        stopped = run(f"stopped {batch}")
        with pytest.raises(RunStopped, match="stopped by SIGTERM after step"):
            stopped.fit(batch=batch)
        torch.manual_seed(99)  # another process begins with other streams
        resumed = run(f"resumed {batch}").fit(tmp_path / f"stopped {batch}" / "checkpoints" / "last.ckpt")
        assert_same_run(resumed, stopped, whole)


def test_a_validation_that_was_broken_off_is_made_up_for(small_tokenizer: Build, root: Path, tmp_path: Path) -> None:
    whole = Run(small_tokenizer, root, tmp_path / "whole", "none", accumulate=2).fit()
    assert list(whole.logs["val/psnr"]) == ["4"]  # after the eighth batch and fourth step
    stopped = Run(small_tokenizer, root, tmp_path / "stopped", "none", accumulate=2)
    with pytest.raises(RunStopped):
        stopped.fit(validation=True)
    resumed = Run(small_tokenizer, root, tmp_path / "resumed", "none", accumulate=2)
    resumed.fit(tmp_path / "stopped" / "checkpoints" / "last.ckpt")
    assert_same_run(resumed, stopped, whole)


def test_a_validation_that_is_broken_off_again_and_again(small_tokenizer: Build, root: Path, tmp_path: Path) -> None:
    whole = Run(small_tokenizer, root, tmp_path / "whole", "none", accumulate=2).fit()
    checkpoint: Path | None = None
    for stop in range(3):
        stopped = Run(small_tokenizer, root, tmp_path / f"stopped {stop}", "none", accumulate=2)
        with pytest.raises(RunStopped):
            stopped.fit(checkpoint, validation=True)
        checkpoint = tmp_path / f"stopped {stop}" / "checkpoints" / "last.ckpt"
    resumed = Run(small_tokenizer, root, tmp_path / "resumed", "none", accumulate=2).fit(checkpoint)
    progress = "epoch_loop.batch_progress"
    equal(resumed.last["loops"]["fit_loop"][progress], whole.last["loops"]["fit_loop"][progress])
    equal(resumed.last["state_dict"], whole.last["state_dict"])
    assert resumed.logs["val/psnr"] == whole.logs["val/psnr"]


def test_a_checkpoint_between_a_step_and_its_validation_leads_to_that_validation(
    small_tokenizer: Build, root: Path, tmp_path: Path
) -> None:
    """As after a kill during the validation: what is left is the checkpoint of the step before it."""
    whole = Run(small_tokenizer, root, tmp_path / "whole", "none", accumulate=2).fit()
    resumed = Run(small_tokenizer, root, tmp_path / "resumed", "none", accumulate=2)
    resumed.fit(tmp_path / "whole" / "checkpoints" / "step=4.ckpt")
    assert resumed.logs["val/psnr"] == whole.logs["val/psnr"]
    equal(resumed.last["state_dict"], whole.last["state_dict"])


def test_the_validation_of_the_last_step_is_not_made_twice(small_tokenizer: Build, root: Path, tmp_path: Path) -> None:
    """Where a run ended with it, and goes on for more steps."""
    whole = Run(small_tokenizer, root, tmp_path / "whole", "none").fit(max_steps=18)
    first = Run(small_tokenizer, root, tmp_path / "first", "none").fit(max_steps=9)
    longer = Run(small_tokenizer, root, tmp_path / "longer", "none")
    longer.fit(tmp_path / "first" / "checkpoints" / "last.ckpt", max_steps=18)
    assert [list(run.logs["val/psnr"]) for run in (first, longer)] == [["9"], ["18"]]
    assert_same_run(longer, first, whole)


class FailIn(Callback):
    """Fails in the validation after a step, as a device that runs out of memory would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            raise MemoryError


class EmptyEpochs(Callback):
    """Fails where epochs pass without a step."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert trainer.current_epoch <= 2


@pytest.mark.parametrize("fails", [False, True])
def test_a_checkpoint_that_lightning_wrote_in_the_validation_at_the_end_of_an_epoch_is_resumed(
    small_tokenizer: Build, root: Path, tmp_path: Path, fails: bool
) -> None:
    """The best one, of a validation that is over, and one of a validation that failed, which comes again."""

    def run(folder: str) -> Run:
        return Run(small_tokenizer, root, tmp_path / folder, "none", val_check_interval=3)

    whole = run("whole").fit(max_steps=12)
    kept = ModelCheckpoint(tmp_path / "kept", "{step}", "val/psnr", save_top_k=-1, save_on_exception=True)
    stopped = run("stopped")
    with pytest.raises(MemoryError) if fails else nullcontext():
        stopped.fit(max_steps=12, callbacks=[kept, *([FailIn(9)] if fails else [])])
    resumed = run("resumed").fit(tmp_path / "kept" / "step=9.ckpt", max_steps=12, callbacks=[EmptyEpochs()])
    for part in ("global_step", "epoch", "state_dict", "optimizer_states", "training_state"):
        equal(resumed.last[part], whole.last[part], part)
    steps = ["9", "12"] if fails else ["12"]
    assert resumed.logs["val/psnr"] == {step: whole.logs["val/psnr"][step] for step in steps}


@pytest.mark.parametrize("validates", [True, False])
def test_epochs_are_counted_right_through_many_resumes(
    small_tokenizer: Build, root: Path, tmp_path: Path, validates: bool
) -> None:
    """From the end of one epoch to the end of the next, and so on."""

    def run(folder: str) -> Run:
        return Run(small_tokenizer, root, tmp_path / folder, "none", limit_val_batches=None if validates else 0)

    whole = run("whole").fit(max_steps=36)
    checkpoint: Path | None = None
    for steps in (9, 18, 27, 36):
        part = run(str(steps)).fit(checkpoint, max_steps=steps)
        checkpoint = tmp_path / str(steps) / "checkpoints" / "last.ckpt"
    for name in ("state_dict", "training_state", "epoch"):
        equal(part.last[name], whole.last[name], name)
    assert list(part.logs.get("val/psnr", {})) == (["36"] if validates else [])
    assert part.logs.get("val/psnr", {}).items() <= whole.logs.get("val/psnr", {}).items()


@pytest.mark.parametrize("validation", [False, True])
def test_what_ends_a_training_waits_for_the_step(
    small_tokenizer: Build, root: Path, tmp_path: Path, validation: bool
) -> None:
    def run(folder: str) -> Run:
        interval = 6 if validation else None
        return Run(small_tokenizer, root, tmp_path / folder, "patch", accumulate=4, val_check_interval=interval)

    whole = run("whole").fit()
    ended = run("ended").fit(callbacks=[EndAt(6, validation)])
    assert ended.last["global_step"] == 2  # of the eighth batch, not the sixth
    resumed = run("resumed").fit(tmp_path / "ended" / "checkpoints" / "last.ckpt")
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "training_state"):
        equal(resumed.last[part], whole.last[part], part)


class CountedModule(TokenizerModule):
    """Notes of how many images each step is."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.images = 0
        self.steps: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.images += len(batch[0])
        super().training_step(batch, batch_idx)
        if self.between_steps:
            self.steps.append(self.images)
            self.images = 0


class SaveAfter(Callback):
    """Writes a checkpoint after a batch, as RunCheckpoint does when a signal comes."""

    def __init__(self, path: Path, batch: int) -> None:
        self.path = path
        self.batch = batch

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.batch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    ("before", "batch", "now"),
    [(2, 4, 3), (2, 4, 1), (1, 2, 4)],
)
def test_steps_have_as_many_images_when_batches_become_smaller_or_larger(
    small_tokenizer: Build, tmp_path: Path, before: int, batch: int, now: int
) -> None:
    def fit(accumulate: int, callback: Callback, **arguments: Any) -> tuple[CountedModule, list[int]]:
        torch.manual_seed(0)
        module = CountedModule(tokenizer=small_tokenizer(), accumulate_batches=accumulate)
        trainer = Trainer(
            max_steps=12,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            callbacks=[callback, epochs := EpochEnds()],
        )
        data = PhotographsDataModule(image_size=16, global_batch_size=12, crops_per_epoch=60, num_workers=0)
        trainer.fit(module, data, **arguments)
        return module, epochs.images

    whole, _ = fit(before, SaveAfter(tmp_path / "there.ckpt", batch))
    assert whole.steps == [12] * 12
    resumed, epochs = fit(now, SaveAfter(tmp_path / "unused.ckpt", -1), ckpt_path=tmp_path / "there.ckpt")
    assert resumed.steps == [12] * len(resumed.steps)
    assert resumed.trainer.global_step == 12
    # Lightning counts the first epoch in batches of the size before; all others end where the data does
    assert [images % 60 for images in epochs[1:]] == [0] * len(epochs[1:])
    assert len(epochs) >= 2


class EpochEnds(Callback):
    """The place in the data at the end of each epoch, in images."""

    def __init__(self) -> None:
        self.images: list[int] = []

    def on_train_epoch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if not trainer.should_stop and trainer.global_step < 12:
            self.images.append(trainer.datamodule.state_dict()["images_consumed"])  # type: ignore[attr-defined]
