"""Callbacks: pictures, reports, progress, tokens."""

from gsq_lightning.callbacks.pictures import ReconstructionGrid
from gsq_lightning.callbacks.progress import StepProgressBar
from gsq_lightning.callbacks.summary import Evaluated, Report
from gsq_lightning.callbacks.token_progress import TokenProgress
from gsq_lightning.callbacks.tokens import TokenWriter

__all__ = ["Evaluated", "ReconstructionGrid", "Report", "StepProgressBar", "TokenProgress", "TokenWriter"]
