"""How networks are optimized: the optimizer, learning rates, random streams."""

from gsq_lightning.optim.adamw import PaperAdamW
from gsq_lightning.optim.schedules import WarmupDecay

__all__ = ["PaperAdamW", "WarmupDecay"]
