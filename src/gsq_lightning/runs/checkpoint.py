"""When checkpoints are written, and how a run stops so that it can go on."""

import errno
import fcntl
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from gsq_lightning.errors import CheckpointNotWritten, InputError, RunStopped, TrainingDiverged
from gsq_lightning.runs.checkpoint_io import WholeCheckpointIO, remove_parts
from gsq_lightning.runs.stop_signals import StopSignals

LOCK_NAME = ".running"  # beside the checkpoints, locked as long as a process writes there


class RunCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt` up to date: every so many training steps, when training ends, and when it is asked to stop.

    Files are written whole or not at all. SIGTERM and SIGINT are obeyed after the step at hand, with a checkpoint; a
    second SIGINT at once, as both are in validation, test and prediction on their own. A validation that a checkpoint
    came before is made up for when the run is resumed.

    Args:
        every_n_train_steps: generator steps between two checkpoints.
        keep_all: keep each one as `step=N.ckpt` too.
        dirpath: folder of the checkpoints; by default `checkpoints` in the run's log folder.

    Raises:
        RunStopped: after a signal.
        CheckpointNotWritten: at the end of training, where the last checkpoint could not be written.
    """

    def __init__(self, every_n_train_steps: int = 1000, keep_all: bool = False, dirpath: str | None = None) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="{step}",
            save_last=True,
            save_top_k=-1 if keep_all else 0,
            every_n_train_steps=every_n_train_steps,
        )
        self.signals = StopSignals()
        self._owes_validation = False  # in the checkpoint: it was written between a step and the validation after it
        self._makes_up = False  # runs a validation that an earlier run owed
        self._lock: Any = None

    # --------------------------------------------------------------------------------------------- start, end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        if stage != "fit":
            return
        if trainer.is_global_zero and self.dirpath is not None and "://" not in str(self.dirpath):
            folder = Path(self.dirpath)
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock(folder)
            remove_parts(folder)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_signals(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self.signals.take_at_once()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.take_at_once()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.take_at_once()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self.signals.give_back()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._take_signals(trainer)
        loop = trainer.fit_loop
        epochs: Any = loop.epoch_progress.total
        if loop.restarted_mid_epoch and epochs.processed == epochs.started:
            # from the end of an epoch Lightning 2.6 counts it as done, but then not the next one as begun, and the
            # next resume would be an epoch behind
            loop.reset_restart_stage()
        if self._owes_validation:
            self._owes_validation = False
            trainer.validating = True
            loop.epoch_loop.val_loop.restarting = False  # from its first batch, whatever an earlier one had reached
            self._makes_up = True
            loop.epoch_loop.val_loop.run()
            self._makes_up = False
            trainer.training = True

    def _take_signals(self, trainer: Trainer) -> None:
        """After Lightning took them before its first stage: its handlers talk to other processes in mid-computation."""
        environment = trainer._accelerator_connector.cluster_environment
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        self.signals.take(getattr(environment, "requeue_signal", None) if requeues else None)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "owes_validation": self._owes_validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._owes_validation = state_dict.get("owes_validation", False)

    # ------------------------------------------------------------------------------------------------- saving

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        self._owes_validation = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            # Lightning explains that a manual optimization saves the weights after the step: so it should
            warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._is_asked_to_stop(trainer):
            self._save(trainer)
            self.signals.requeue()
            # what the step logged would be written after this hook
            trainer._logger_connector.on_batch_end()
            trainer._logger_connector.update_train_step_metrics()
            raise self._stopped(trainer)
        self._owes_validation = False

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        # several processes have different numbers of validation batches, and cannot agree here
        if self.signals.received is not None and trainer.state.fn == "fit" and trainer.world_size == 1:
            if not trainer.sanity_checking:
                self._save_as_before_validation(trainer)
            raise self._stopped(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, TrainingDiverged):  # the weights are still those of the last good step
            self._save(trainer)
        self.signals.give_back()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._last_global_step_saved != trainer.global_step:
            self._save(trainer)
        failure = self._failure(trainer)
        if failure is not None:
            raise CheckpointNotWritten(f"{failure}; the checkpoint before it is as it was")

    def _save(self, trainer: Trainer) -> None:
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_as_before_validation(self, trainer: Trainer) -> None:
        """Writes a checkpoint from within a validation as if it had not begun, so that it is made up for as a whole."""
        loop = trainer.fit_loop.epoch_loop
        for progress in () if self._makes_up else (loop.batch_progress.current, loop.batch_progress.total):
            progress.completed -= 1  # Lightning counts the batch as completed after its hooks, and before validation
        loop.val_loop.batch_progress.reset()
        self._owes_validation = True
        self._save(trainer)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        before = self._last_global_step_saved
        super()._save_checkpoint(trainer, filepath)
        if self._failure(trainer) is not None:
            self._last_global_step_saved = before

    @staticmethod
    def _failure(trainer: Trainer) -> str | None:
        """Why the last checkpoint could not be written; asks the first process, so that all must ask."""
        failure: str | None = trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "failure", None))
        return failure

    # ----------------------------------------------------------------------------------------------- stopping

    def _is_asked_to_stop(self, trainer: Trainer) -> bool:
        asked = self.signals.received is not None
        return trainer.strategy.reduce_boolean_decision(asked, all=False) if trainer.world_size > 1 else asked

    def _stopped(self, trainer: Trainer) -> RunStopped:
        received = self.signals.received
        name = "another process" if received is None else received.name
        kept = f"its checkpoint is {self.last_model_path}" if self.last_model_path else "it had made no step yet"
        return RunStopped(f"stopped by {name} after step {trainer.global_step}; {kept}", received)


def lock(folder: Path) -> Any:
    """Marks a folder as one that a living process writes to; the mark goes with the process, however it ends."""
    file = (folder / LOCK_NAME).open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise InputError(f"another run is writing to {folder}; wait for its end, or name another folder") from error
        return None  # the file system has no locks
    return file


def is_locked(folder: Path) -> bool:
    """Whether a living process, other than this one, writes to a folder. Several may ask at the same time."""
    try:
        with (folder / LOCK_NAME).open() as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
