"""Repeats the validation that a run was stopped in, when the run is resumed."""

from lightning.pytorch import Trainer

from gsq_lightning.runs.lightning_internals import run_validation, validation_follows


class InterruptedValidation:
    """Whether a checkpoint was written between a step and the validation that follows it.

    A checkpoint is written before each validation, so that one which is interrupted needs no saving: the resumed run
    starts with that validation, from its first batch.

    Attributes:
        pending: kept in the checkpoint.
    """

    def __init__(self) -> None:
        self.pending = False

    def look_ahead(self, trainer: Trainer) -> None:
        """Called after a training batch."""
        self.pending = validation_follows(trainer)

    def make_up(self, trainer: Trainer) -> None:
        """Called when training starts, after a checkpoint was loaded."""
        if self.pending:
            run_validation(trainer)

    def done(self) -> None:
        """Called after a validation."""
        self.pending = False
