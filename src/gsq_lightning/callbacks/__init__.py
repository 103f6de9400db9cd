"""What a run shows and writes besides its checkpoints."""

from gsq_lightning.callbacks.pictures import ReconstructionGrid
from gsq_lightning.callbacks.summary import LossProgressBar, Report
from gsq_lightning.callbacks.tokens import TokenWriter

__all__ = ["LossProgressBar", "ReconstructionGrid", "Report", "TokenWriter"]
