"""What ranks agree on between steps, without waiting for each other at each step."""

import time

import torch
from lightning.pytorch import Trainer

SECONDS = 1.0  # between two agreements: short beside the time that clusters give, long beside a step of a GPU


class Agreement:
    """Asks all ranks about once a second whether one of them has something to say.

    An exchange waits for the device and for the slowest rank. So all ranks agree, in the same exchange, on how many
    steps pass until the next one, from how long steps took.
    """

    def __init__(self) -> None:
        self._steps_left = 1
        self._steps = 0
        self._since = time.monotonic()

    def any_rank(self, trainer: Trainer, says: bool, now: bool = False) -> bool:
        """Whether a rank says so, where this step is one to ask at; every rank must call it, after each step.

        Args:
            trainer: with several ranks.
            says: of this rank.
            now: ask at this step, the same on all ranks.
        """
        self._steps += 1
        if self._steps < self._steps_left and not now:
            return False
        seconds = max(1e-6, (time.monotonic() - self._since) / self._steps)
        message = torch.tensor([float(says), seconds], device=trainer.strategy.root_device)
        some_say, seconds = trainer.strategy.reduce(message, reduce_op="sum").tolist()
        self._steps_left = max(1, round(SECONDS * trainer.world_size / seconds))
        self._steps, self._since = 0, time.monotonic()
        return some_say > 0
