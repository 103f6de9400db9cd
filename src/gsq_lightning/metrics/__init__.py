"""Metrics hold state and nothing else."""

from gsq_lightning.metrics.codebook import CodebookStatistics, CodebookUsage, codebook_statistics
from gsq_lightning.metrics.reconstruction import MetricName, OriginalImages, ReconstructionMetrics, image_to_pixels

__all__ = [
    "CodebookStatistics",
    "CodebookUsage",
    "MetricName",
    "OriginalImages",
    "ReconstructionMetrics",
    "codebook_statistics",
    "image_to_pixels",
]
