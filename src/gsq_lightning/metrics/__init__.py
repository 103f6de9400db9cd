"""Metrics of validation: each metric holds its state and nothing else, a suite holds several."""

from gsq_lightning.metrics.catalog import REPORTED, MetricName, MetricOptions, SampleMetricName
from gsq_lightning.metrics.codebook import CodebookStatistics, CodebookUsage, codebook_statistics
from gsq_lightning.metrics.interface import ImageMetric, MetricValues, PixelMetric
from gsq_lightning.metrics.originals import OriginalImages
from gsq_lightning.metrics.samples import SampleMetrics
from gsq_lightning.metrics.suite import MetricSuite, ReconstructionMetrics

__all__ = [
    "REPORTED",
    "CodebookStatistics",
    "CodebookUsage",
    "ImageMetric",
    "MetricName",
    "MetricOptions",
    "MetricSuite",
    "MetricValues",
    "OriginalImages",
    "PixelMetric",
    "ReconstructionMetrics",
    "SampleMetricName",
    "SampleMetrics",
    "codebook_statistics",
]
