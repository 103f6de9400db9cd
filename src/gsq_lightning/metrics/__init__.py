"""Metrics hold state and nothing else."""

from gsq_lightning.metrics.catalog import REPORTED, MetricName
from gsq_lightning.metrics.codebook import CodebookStatistics, CodebookUsage, codebook_statistics
from gsq_lightning.metrics.reconstruction import ReconstructionMetrics, image_to_pixels
from gsq_lightning.metrics.statistics_cache import OriginalImages

__all__ = [
    "REPORTED",
    "CodebookStatistics",
    "CodebookUsage",
    "MetricName",
    "OriginalImages",
    "ReconstructionMetrics",
    "codebook_statistics",
    "image_to_pixels",
]
