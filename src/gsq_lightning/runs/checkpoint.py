"""Writes checkpoints when they are due, and stops a run on signals so that it can be resumed."""

from pathlib import Path
from typing import IO, Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from gsq_lightning.errors import (
    CheckpointNotWritten,
    InputError,
    RunStopped,
    TrainingDiverged,
    require,
    require_at_least,
)
from gsq_lightning.files import hold_lock
from gsq_lightning.run_folders import LAST_CHECKPOINT, LOCK, RunFolder, expanded
from gsq_lightning.runs.agreement import Agreement
from gsq_lightning.runs.checkpoint_io import WholeCheckpointIO, remove_parts
from gsq_lightning.runs.lightning_internals import (
    cluster_environment,
    count_epoch_once,
    run_validation,
    validation_follows,
)
from gsq_lightning.runs.stop_signals import StopSignals


class RunCheckpoint(Checkpoint):
    """Keeps `last.ckpt` up to date: every so many training steps, before each validation, when training ends, and when
    a signal asks it to stop.

    Writes are atomic, and only between optimizer steps: where batches are accumulated, they wait for the step. While
    steps are skipped because gradients are not finite, they wait for the next that is not. What ends a training early,
    as `max_time` and `EarlyStopping` do, waits for the step too, so that no gradients are lost. SIGTERM
    and SIGINT stop a training with a checkpoint: one rank after the step at hand, several within about a second. A
    second SIGINT stops at once, as both do in validation, test and prediction on their own. A run that was stopped in a
    validation starts with it when it is resumed.

    Args:
        every_n_train_steps: generator steps between two checkpoints.
        keep_all: keep each one as `step=N.ckpt` too.
        dirpath: folder of the checkpoints; by default `checkpoints` in the run's log folder.

    Attributes:
        last_path: the checkpoint that was written last, or None.
        saved_step: the generator step that the last one of this training is of, or None.

    Raises:
        InputError: where another process writes to the folder, or another callback to `last.ckpt`; where a training
            that starts anew finds the `last.ckpt` of another one, which it would overwrite.
        RunStopped: after a signal.
        CheckpointNotWritten: at the end of training, where the last checkpoint could not be written.
    """

    def __init__(self, every_n_train_steps: int = 1000, keep_all: bool = False, dirpath: str | None = None) -> None:
        require_at_least(1, every_n_train_steps=every_n_train_steps)
        self.every_n_train_steps = every_n_train_steps
        self.keep_all = keep_all
        self.dirpath = dirpath
        self.last_path: Path | None = None
        self.saved_step: int | None = None
        self.signals = StopSignals()
        self._validation_pending = False  # between a step and the validation that follows it
        self._saved_pending = False  # in the checkpoint that was written last
        self._folder: Path | None = None  # none where nothing is to be written
        self._due = False
        self._stops = False
        self._ends_early = False  # asked for within accumulated batches
        self._agreement = Agreement()
        self._lock: IO[str] | None = None

    # --------------------------------------------------------------------------------------------- start, end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        log_dir = trainer.log_dir  # a collective call
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.saved_step = None  # of an earlier training
        self._ends_early = False
        self._folder = RunFolder(Path(log_dir or ".")).checkpoints if self.dirpath is None else expanded(self.dirpath)
        if trainer.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = hold_lock(self._folder / LOCK)
            except BlockingIOError as error:
                raise InputError(
                    f"another run is writing to {self._folder}; wait for its end, or name another folder"
                ) from error
            remove_parts(self._folder)

    @property
    def best_model_path(self) -> str:
        """What `ckpt_path="best"` asks the first checkpoint callback for."""
        raise InputError(
            "RunCheckpoint keeps the last checkpoint, not the best; give the Trainer a ModelCheckpoint with a monitor "
            "before it, or the path of a checkpoint"
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_new(trainer)
        for other in trainer.checkpoint_callbacks:
            if self._folder is None or not isinstance(other, ModelCheckpoint) or not other.dirpath:
                continue
            names = {other.filename, other.CHECKPOINT_NAME_LAST if other.save_last else None}
            same_file = Path(LAST_CHECKPOINT).stem in names and Path(other.dirpath).resolve() == self._folder.resolve()
            require(
                not same_file,
                f"ModelCheckpoint would write {self._folder / LAST_CHECKPOINT} too, which a run resumes from; give it "
                "a dirpath of its own, or another name and save_last: false",
            )

    def _check_new(self, trainer: Trainer) -> None:
        """Raises InputError where a training that starts anew would overwrite the checkpoint of another."""
        if self._folder is None or trainer.ckpt_path is not None:
            return
        path = self._folder / LAST_CHECKPOINT
        require(
            path == self.last_path or not path.exists(),
            f"{path} is the checkpoint of another training, which this one would overwrite; as ckpt_path it is "
            'resumed, another version of the logger or another dirpath keeps it (Lightning finds none for "last")',
        )

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install_signals(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install_signals(trainer)
        count_epoch_once(trainer)
        if self._validation_pending:  # the run was stopped in it
            self.save(trainer)  # so that this run, too, may be stopped in it
            run_validation(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.install_immediate()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.install_immediate()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_saved = self.saved_step == trainer.global_step and self._saved_pending == self._validation_pending
        if not is_saved and not getattr(pl_module, "has_diverged", False):
            self.save(trainer)
        failure = self._failure(trainer)
        if failure is not None:
            raise CheckpointNotWritten(f"{failure}; the checkpoint before it is as it was")
        self._stop_if_asked(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, TrainingDiverged) and self.saved_step is None:
            self.save(trainer)  # the weights are those of the last good step; better ones there are none
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def state_dict(self) -> dict[str, Any]:
        return {"validation_pending": self._validation_pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validation_pending = bool(state_dict["validation_pending"])

    def _install_signals(self, trainer: Trainer) -> None:
        """Replaces the handlers that Lightning installs before the first stage, which talk to other ranks."""
        environment = cluster_environment(trainer)
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        self.signals.install(getattr(environment, "requeue_signal", None) if requeues else None)

    def _release(self) -> None:
        self.signals.restore()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # ------------------------------------------------------------------------------------------------- saving

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._let_end_early(trainer, pl_module)
        if not getattr(pl_module, "between_steps", True):
            self._validation_pending = False
            return
        self._validation_pending = validation_follows(trainer)
        self._due |= trainer.global_step % self.every_n_train_steps == 0 and self.saved_step != trainer.global_step
        pauses = self._due or self._validation_pending
        self._stops = self.signals.received is not None
        if trainer.world_size > 1:  # they agree about once a second, and where training pauses anyway
            self._stops = self._agreement.any_rank(trainer, self._stops, now=pauses)
        if pauses and not self._stops and getattr(pl_module, "skipped_in_a_row", 0) > 0:
            return  # this may be a divergence, from which the checkpoint before is the way back
        if self._due and self.keep_all and self._folder is not None:
            trainer.save_checkpoint(self._folder / f"step={trainer.global_step}.ckpt", weights_only=False)
        if pauses or self._stops:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Writes `last.ckpt`; every rank must call it, between two steps."""
        self._due = False
        if self._folder is None:
            return
        path = self._folder / LAST_CHECKPOINT
        trainer.save_checkpoint(path, weights_only=False)
        if self._failure(trainer) is None:
            self.last_path, self.saved_step = path, trainer.global_step
            self._saved_pending = self._validation_pending

    @staticmethod
    def _failure(trainer: Trainer) -> str | None:
        """Why the last checkpoint could not be written; asks rank 0, so that all must ask."""
        failure: str | None = trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "failure", None))
        return failure

    # ----------------------------------------------------------------------------------------------- stopping
    # what the last step logged is written after `on_train_batch_end`: a run ends in the hook that comes next

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._stop_if_asked(trainer)
        else:
            self.signals.install_immediate()

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.state.fn != "fit" or self.signals.received is None or trainer.world_size > 1:
            return  # ranks have different numbers of validation batches, and cannot agree here
        if trainer.sanity_checking or self.saved_step == trainer.global_step:
            self._stops = True
            self._stop_if_asked(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:  # not in `on_validation_end`, where a ModelCheckpoint may have saved before
            self._validation_pending = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._let_end_early(trainer, pl_module)

    def _let_end_early(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hands `should_stop` to the Trainer between steps only."""
        self._ends_early |= trainer.should_stop
        trainer.should_stop = self._ends_early and getattr(pl_module, "between_steps", True)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if not self._stops:
            return
        self._stops = False
        if trainer.is_global_zero:
            self.signals.requeue()
        received = self.signals.received
        name = "another process" if received is None else received.name
        kept = f"its checkpoint is {self.last_path}" if self.last_path else "it had made no step yet"
        raise RunStopped(f"stopped by {name} after step {trainer.global_step}; {kept}", received)
