"""Keeps the statistics of original images on disk: they are the same in every validation on the same data."""

import hashlib
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from gsq_lightning.files import write_whole
from gsq_lightning.metrics.features import FeatureExtractor
from gsq_lightning.metrics.frechet import FeatureStatistics

logger = logging.getLogger(__name__)

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
    """A folder of statistics, one safetensors file for each data set and network.

    A file is written under a temporary name and renamed when it is whole. One that is damaged counts as missing, and a
    line says so.

    Args:
        folder: made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def load(self, key: str) -> FeatureStatistics | None:
        """What was kept under a key, on the CPU, or None."""
        from safetensors import safe_open

        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                statistics = FeatureStatistics(*(file.get_tensor(name) for name in FeatureStatistics._fields))
                checksum = (file.metadata() or {}).get("checksum")
            if checksum != checksum_of(statistics):
                raise ValueError("its checksum is wrong")
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever the reader makes of a damaged file
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning("the cached statistics %s cannot be read (%s) and are computed anew", path, reason)
            return None
        return statistics

    def save(self, key: str, statistics: FeatureStatistics) -> None:
        """Keeps statistics under a key. Where the folder cannot be written to, a line says so."""
        from safetensors.torch import save

        statistics = FeatureStatistics(*(value.detach().cpu().contiguous() for value in statistics))
        try:
            content = save(dict(statistics._asdict()), metadata={"checksum": checksum_of(statistics)})
            write_whole(self.path(key), content)
        except OSError as error:
            logger.warning("the statistics of the original images could not be kept in %s: %s", self.folder, error)


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


def checksum_of(statistics: FeatureStatistics) -> str:
    digest = hashlib.sha256()
    for value in statistics:
        digest.update(value.to(torch.float64).contiguous().numpy().tobytes())
    return digest.hexdigest()
