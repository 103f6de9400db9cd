"""Keeps the statistics of original images on disk: they are the same in every validation on the same data."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load, save

from gsq_lightning.files import read_cached, write_cached
from gsq_lightning.metrics.features import FeatureExtractor
from gsq_lightning.metrics.frechet import FeatureStatistics

LIBRARIES = ("gsq-lightning", "torch", "torchvision", "pillow")  # whose versions may change what a network sees


class OriginalImages(NamedTuple):
    """All images of a validation.

    Attributes:
        fingerprint: tells them, and how they are made of files, from any others.
        number: how many there are.
    """

    fingerprint: str
    number: int


class StatisticsCache:
    """A folder of statistics, one file for each data set and network.

    Args:
        folder: made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.statistics"

    def load(self, key: str) -> FeatureStatistics | None:
        """What was kept under a key, on the CPU, or None."""
        content = read_cached(self.path(key), "file of statistics")
        return None if content is None else FeatureStatistics(**load(content))

    def save(self, key: str, statistics: FeatureStatistics) -> None:
        """Keeps statistics under a key. Where the folder cannot be written to, a line says so."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in statistics._asdict().items()}
        write_cached(self.path(key), save(tensors), "statistics of the original images")


def statistics_key(data_fingerprint: str, extractor: FeatureExtractor) -> str:
    """Names statistics by all that they depend on.

    Args:
        data_fingerprint: of the files and of how images are made of them.
        extractor: its weights, and how images are prepared for it.
    """
    parts = {
        "data": data_fingerprint,
        "weights": extractor.fingerprint,
        "extractor": extractor.description,
        "versions": {name: version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
