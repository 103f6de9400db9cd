"""What runs need of Lightning's private parts, as they are in lightning 2.6.

Each has its reason beside it and a test in tests/runs; pyproject.toml caps lightning below 2.7 for their sake. To
support another version, read these functions and run those tests.
"""

from pathlib import Path
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
    validation.reset_restart_stage()
    trainer.validating = True
    validation.run()
    trainer.training = True
    # else an epoch that was stopped in its last validation would not be entered, nor any after it
    validation._has_run = False


def count_epoch_once(trainer: Trainer) -> None:
    """Mends the count of epochs of a run that was resumed from the end of one.

    Lightning 2.6 counts that epoch as done when it resumes, but then not the next one as begun, so that the next resume
    would be an epoch behind. From the end of a training at the end of an epoch, it would enter that epoch once more,
    and count it again.
    """
    loop = trainer.fit_loop
    epoch = loop.epoch_progress.current
    if epoch.ready == epoch.completed and loop.epoch_loop._num_ready_batches_reached():
        loop._restarting = loop.epoch_loop.restarting = False
    epochs: Any = loop.epoch_progress.total
    if loop.restarted_mid_epoch and epochs.processed == epochs.started:
        loop.reset_restart_stage()


def go_back_to(trainer: Trainer, checkpoint: Path) -> None:
    """Sets weights, optimizers, schedulers and `global_step` to those of a checkpoint, in the middle of a training.

    The place in the data stays, and with it epochs and batches. Lightning restores a checkpoint only as a whole, and
    before a training; its counter of steps is public, but there is no public way to set it.
    """
    content = trainer.strategy.load_checkpoint(checkpoint, weights_only=True)
    module: Any = trainer.lightning_module
    trainer.strategy.load_model_state_dict(content)
    trainer.strategy.load_optimizer_state_dict(content)
    module.lay_out_optimizers()
    for config, state in zip(trainer.lr_scheduler_configs, content["lr_schedulers"], strict=True):
        config.scheduler.load_state_dict(state)
    steps = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
    steps.ready = steps.completed = content["global_step"]
    module.restore_counts(content["training_state"])


def cluster_environment(trainer: Trainer) -> ClusterEnvironment:
    """What started the processes of a run: SLURM, torchrun, Lightning itself, ….

    Strategies for several devices have it in public; those for one device, which SLURM may preempt as well, do not.
    """
    return trainer._accelerator_connector.cluster_environment
