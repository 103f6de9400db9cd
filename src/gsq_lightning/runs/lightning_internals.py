"""The parts of Lightning without a public way to them that runs rely on, as they are in lightning 2.6.

Each has its reason beside it and a test in tests/runs; pyproject.toml caps lightning below
2.7 for their sake. To move on to another version: read these, run those tests.
"""

from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch import Trainer


def validation_follows(trainer: Trainer) -> bool:
    """Whether a validation comes after the training batch whose `on_train_batch_end` hooks run.

    `_should_check_val_fx` alone knows `val_check_interval`, `check_val_every_n_epoch`, time intervals and the end of
    the epoch together, and the hooks of a validation come too late to say so in the checkpoint before it.
    """
    fetcher: Any = trainer.fit_loop._data_fetcher
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def run_validation(trainer: Trainer) -> None:
    """Runs the validation of a training, outside of its turn.

    `trainer.validate` would end the training; the loops of a Trainer are public, but not how one of them is entered.
    """
    validation = trainer.fit_loop.epoch_loop.val_loop
    validation.restarting = False  # from its first batch, whatever an earlier one had reached
    trainer.validating = True
    validation.run()
    trainer.training = True


def count_epoch_once(trainer: Trainer) -> None:
    """Mends the count of epochs of a run that was resumed from the end of one.

    Lightning 2.6 counts that epoch as done when it resumes, but then not the next one as begun, so that the next resume
    would be an epoch behind.
    """
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress.total
    if loop.restarted_mid_epoch and epochs.processed == epochs.started:
        loop.reset_restart_stage()


def cluster_environment(trainer: Trainer) -> ClusterEnvironment:
    """What started the processes of a run: SLURM, torchrun, Lightning itself, ….

    Strategies for several devices have it in public; those for one device, which SLURM may preempt as well, do not.
    """
    return trainer._accelerator_connector.cluster_environment
