"""Reports of validations: written, read, compared. Needs no torch."""

from gsq_lightning.reports.comparison import Row, comparison_lines, report_row, sorted_rows
from gsq_lightning.reports.published import published_rows
from gsq_lightning.reports.report import (
    EvaluationReport,
    find_report,
    read_report,
    report_folder,
    sha256_of,
    write_report,
)
from gsq_lightning.reports.table import metrics_line, metrics_table

__all__ = [
    "EvaluationReport",
    "Row",
    "comparison_lines",
    "find_report",
    "metrics_line",
    "metrics_table",
    "published_rows",
    "read_report",
    "report_folder",
    "report_row",
    "sha256_of",
    "sorted_rows",
    "write_report",
]
