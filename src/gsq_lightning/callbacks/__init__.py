"""What a run shows and writes besides its checkpoints."""

from gsq_lightning.callbacks.pictures import ReconstructionGrid
from gsq_lightning.callbacks.summary import Evaluated, LossProgressBar, Report
from gsq_lightning.callbacks.tokens import TokenWriter

__all__ = ["Evaluated", "LossProgressBar", "ReconstructionGrid", "Report", "TokenWriter"]
