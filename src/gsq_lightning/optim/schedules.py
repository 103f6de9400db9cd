"""Learning rates over a run (GSQ, arXiv 2412.02632, Table 6). Any scheduler of torch serves as well."""

import math
from functools import partial
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gsq_lightning.errors import InputError


class WarmupDecay(LambdaLR):
    """Rises linearly from 0 to the optimizer's rate, stays, then falls to a floor and stays there.

    Counted in scheduler steps, which the LightningModule takes once per generator step.

    Args:
        optimizer: its rate is the highest one.
        warmup_steps: of the rise; 0 for none.
        decay_steps: of the fall; 0 for none, a constant rate.
        decay_start: step at which the fall begins; by default right after the rise.
        floor: rate at the end of the fall, in units of learning rate.
        shape: of the fall.

    Raises:
        InputError: for negative numbers, or a fall that begins within the rise.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int = 0,
        decay_steps: int = 0,
        decay_start: int | None = None,
        floor: float = 0.0,
        shape: Literal["cosine", "linear"] = "cosine",
    ) -> None:
        start = warmup_steps if decay_start is None else decay_start
        if min(warmup_steps, decay_steps, floor) < 0 or start < warmup_steps:
            raise InputError(
                f"warmup_steps {warmup_steps}, decay_steps {decay_steps}, decay_start {decay_start} and floor {floor} "
                "must be at least 0, and decay_start not before the end of the warm-up"
            )

        def share(step: int, *, lowest: float) -> float:
            if step < warmup_steps:
                return (step + 1) / (warmup_steps + 1)
            if decay_steps == 0 or step <= start:
                return 1.0
            passed = min(1.0, (step - start) / decay_steps)
            left = 1.0 - passed if shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * passed))
            return lowest + (1.0 - lowest) * left

        lowest = [floor / group["lr"] if group["lr"] > 0 else 0.0 for group in optimizer.param_groups]
        super().__init__(optimizer, [partial(share, lowest=part) for part in lowest])
