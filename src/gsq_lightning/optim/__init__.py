"""Optimizer, learning rates, random generators."""

from gsq_lightning.optim.adamw import PaperAdamW
from gsq_lightning.optim.schedules import WarmupDecay

__all__ = ["PaperAdamW", "WarmupDecay"]
