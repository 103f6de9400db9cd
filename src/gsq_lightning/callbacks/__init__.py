"""What a run shows and writes besides its checkpoints."""

from gsq_lightning.callbacks.checkpoint import RunCheckpoint
from gsq_lightning.callbacks.reconstructions import ReconstructionGrid
from gsq_lightning.callbacks.report import LossProgressBar, Report
from gsq_lightning.callbacks.token_writer import TokenWriter

__all__ = ["LossProgressBar", "ReconstructionGrid", "Report", "RunCheckpoint", "TokenWriter"]
