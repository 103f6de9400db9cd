"""Learning rates over a run (GSQ, arXiv 2412.02632, Table 6). Schedulers of torch that need no metric serve too."""

import math
from typing import Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gsq_lightning.errors import look_up, require

Shape = Literal["cosine", "linear"]

# share of the fall that is left, from the share of its steps that has passed
FALLS = {
    "cosine": lambda passed: 0.5 * (1.0 + math.cos(math.pi * passed)),
    "linear": lambda passed: 1.0 - passed,
}


class WarmupDecay(LRScheduler):
    """Rises linearly from 0 to the optimizer's rate, stays, then falls to a floor and stays there.

    Counted in scheduler steps, which the LightningModule takes once per generator step.

    Args:
        optimizer: its rate is the highest one.
        warmup_steps: steps of the rise; 0 for none.
        decay_steps: steps of the fall; 0 for none, a constant rate.
        decay_start: step at which the fall begins; by default right after the rise.
        floor: rate at the end of the fall, in units of learning rate; not above the optimizer's.
        shape: how the rate falls.

    Raises:
        InputError: for negative numbers, a fall that begins within the rise, or one that would rise; for options of the
            fall without `decay_steps`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int = 0,
        decay_steps: int = 0,
        decay_start: int | None = None,
        floor: float = 0.0,
        shape: Shape = "cosine",
    ) -> None:
        start = warmup_steps if decay_start is None else decay_start
        require(
            min(warmup_steps, decay_steps, floor) >= 0 and start >= warmup_steps,
            f"warmup_steps {warmup_steps}, decay_steps {decay_steps}, decay_start {decay_start} and floor {floor} "
            "must be at least 0, and decay_start not before the end of the warm-up",
        )
        lowest = min(group["lr"] for group in optimizer.param_groups)
        require(floor <= lowest, f"floor is {floor}, above the optimizer's lr {lowest}: the rate would rise, not fall")
        look_up("shape", shape, FALLS)
        require(
            decay_steps > 0 or (decay_start is None and floor == 0 and shape == "cosine"),
            f"decay_start {decay_start}, floor {floor} and shape {shape} have no effect where decay_steps is 0; "
            "give it, or leave them out",
        )
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self.decay_start = start
        self.floor = floor
        self.shape: Shape = shape
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        step = self.last_epoch
        if step < self.warmup_steps:
            return [base * (step + 1) / (self.warmup_steps + 1) for base in self.base_lrs]
        if self.decay_steps == 0:
            return list(self.base_lrs)
        passed = min(1.0, max(0, step - self.decay_start) / self.decay_steps)
        left = FALLS[self.shape](passed)
        return [self.floor + (base - self.floor) * left for base in self.base_lrs]
