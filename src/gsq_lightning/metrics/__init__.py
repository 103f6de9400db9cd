"""Metrics hold state and nothing else."""

from gsq_lightning.metrics.catalog import REPORTED, MetricName
from gsq_lightning.metrics.codebook import CodebookStatistics, CodebookUsage, codebook_statistics
from gsq_lightning.metrics.statistics_cache import OriginalImages
from gsq_lightning.metrics.suite import ReconstructionMetrics

__all__ = [
    "REPORTED",
    "CodebookStatistics",
    "CodebookUsage",
    "MetricName",
    "OriginalImages",
    "ReconstructionMetrics",
    "codebook_statistics",
]
