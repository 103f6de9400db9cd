"""Sources of images: folders, lists, archives, Parquet files."""

from gsq_lightning.data.sources.archive import ArchiveSource
from gsq_lightning.data.sources.folder import FolderSource
from gsq_lightning.data.sources.interface import ImageSource
from gsq_lightning.data.sources.parquet import ParquetSource
from gsq_lightning.data.sources.text_list import ListSource

__all__ = ["ArchiveSource", "FolderSource", "ImageSource", "ListSource", "ParquetSource"]
