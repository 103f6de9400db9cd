"""What a run shows and writes besides its checkpoints."""

from gsq_lightning.callbacks.pictures import ReconstructionGrid
from gsq_lightning.callbacks.summary import Evaluated, LossProgressBar, ParameterCount, Report
from gsq_lightning.callbacks.token_progress import TokenProgress
from gsq_lightning.callbacks.tokens import TokenWriter

__all__ = [
    "Evaluated",
    "LossProgressBar",
    "ParameterCount",
    "ReconstructionGrid",
    "Report",
    "TokenProgress",
    "TokenWriter",
]
