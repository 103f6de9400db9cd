"""How runs survive: their checkpoints, resuming, signals, logs."""

from gsq_lightning.runs.checkpoint import RunCheckpoint
from gsq_lightning.runs.logger import RunLogger

__all__ = ["RunCheckpoint", "RunLogger"]
