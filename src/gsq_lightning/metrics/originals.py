"""Distances of two sets of images, and the cache of values that depend on the originals alone."""

import hashlib
import json
from abc import abstractmethod
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from gsq_lightning.files import read_cached, write_cached
from gsq_lightning.metrics.features import ExtractorName, FeatureExtractor, Features
from gsq_lightning.metrics.interface import FeatureMetric, MetricValues

FORMAT = 2  # of the files
# whose versions may change the pixels that a data set gives, or what a network makes of them
LIBRARIES = (
    *("gsq-lightning", "torch", "torchvision", "pillow", "simplejpeg", "numpy"),
    *("torchmetrics", "torch-fidelity", "timm"),
)


class OriginalImages(NamedTuple):
    """All images of a validation.

    Attributes:
        fingerprint: of the files and of how images are made of them; other data have another.
        number: how many there are.
    """

    fingerprint: str
    number: int


class KeptOriginals(NamedTuple):
    """The state of a metric that depends on the original images alone.

    Attributes:
        hashes: (N,) int64, of the pixels that the network saw, sorted.
        tensors: by name.
    """

    hashes: Tensor
    tensors: dict[str, Tensor]


class Comparison(NamedTuple):
    """Of two sets of images, over all processes.

    Attributes:
        result: values and notes.
        originals: values of the originals to cache, where they were computed now; else None.
        changed: whether the originals are other images than those of the cached values.
    """

    result: MetricValues
    originals: KeptOriginals | None
    changed: bool


class SetDistance(FeatureMetric):
    """Compares a set of images with a set of originals.

    Cached values of the same originals spare their features (`take`). The hashes of the originals' pixels are compared
    with those in the cache all the same, so that values of other images, as after a changed transform, are never used.

    A subclass implements `add`, `originals` and `compare`.

    Attributes:
        kept: cached values that are used for the originals until `reset`, or None.
        keeps: kind of the values that `originals` gives; metrics of one kind can use each other's.
    """

    keeps: str
    hashes: list[Tensor] | Tensor
    unseen: Tensor

    def __init__(self, name: str, extractor: ExtractorName) -> None:
        super().__init__(name, extractor)
        self.kept: KeptOriginals | None = None
        self._are_others = False  # whether this rank saw an original that is not among the kept ones
        self._empty: dict[str, Tensor] = {}
        self.add_list("hashes", torch.zeros(0, dtype=torch.int64))
        self.add_state("unseen", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def add(self, features: Tensor, hashes: Tensor, real: bool) -> None:
        """Adds B images: (B, F) features and (B,) hashes."""

    @abstractmethod
    def originals(self) -> dict[str, Tensor]:
        """The state of all originals."""

    @abstractmethod
    def compare(self, originals: dict[str, Tensor]) -> MetricValues:
        """The distance of the other images from the result of `originals`."""

    def take(self, kept: KeptOriginals | None) -> None:
        """Uses cached values for the originals until `reset`; the same on all ranks."""
        self.kept = None if kept is None else KeptOriginals(kept.hashes.to(self.device), kept.tensors)
        self._are_others = False

    def wants_originals(self, hashes: Tensor) -> bool:
        """Whether nothing is kept, or this rank saw an original, now or before, that is not among the kept ones."""
        if self.kept is not None and not self._are_others:
            self._are_others = not bool(torch.isin(hashes, self.kept.hashes).all())
        return self.kept is None or self._are_others

    def update(self, features: Features | None, hashes: Tensor, real: bool) -> None:
        if real:
            assert isinstance(self.hashes, list)
            self.hashes.append(hashes)
        if features is None:
            self.unseen += len(hashes)
        else:
            self.add(features.pooled, hashes, real)

    def compute(self) -> Comparison:
        hashes = joined(self.hashes).sort().values
        changed = self.kept is not None and not _is_part(hashes, self.kept.hashes)
        if self.kept is not None and not changed:
            number = len(self.kept.hashes)
            values, notes = self.compare({name: value.to(self.device) for name, value in self.kept.tensors.items()})
            if len(hashes) != number:
                notes.insert(
                    0, f"{self.name} is against kept values of all {number} originals, {len(hashes)} of which were read"
                )
            return Comparison(MetricValues(values, notes), None, changed)
        if self.unseen > 0:
            note = (
                f"{self.name} is left out: the original images are not those of which values were kept, which are "
                "removed; validate again"
            )
            return Comparison(MetricValues({}, [note]), None, changed)
        tensors = self.originals()
        result = self.compare(tensors)
        return Comparison(result, KeptOriginals(hashes, tensors) if result.values else None, changed)

    def values(self) -> MetricValues:
        return self.compute().result

    def reset(self) -> None:
        super().reset()
        self.take(None)
        for name, empty in self._empty.items():
            getattr(self, name).append(empty.to(self.device))

    def add_list(self, name: str, empty: Tensor) -> None:
        """Adds a list state, to be read with `joined`.

        Args:
            name: of the attribute.
            empty: first element, so that a rank without images has a tensor to send.
        """
        self.add_state(name, default=[], dist_reduce_fx="cat")
        self._empty[name] = empty
        getattr(self, name).append(empty)


class OriginalsCache:
    """A cache folder of the states of original images, one file for each data set, network and kind of values.

    Args:
        folder: made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.originals"

    def load(self, key: str) -> KeptOriginals | None:
        """The cached state of a key, on the CPU, or None."""
        content = read_cached(self.path(key), "values of the original images")
        if content is None:
            return None
        tensors = load(content)
        return KeptOriginals(tensors.pop("hashes"), tensors)

    def save(self, key: str, kept: KeptOriginals) -> None:
        """Caches a state under a key. If the folder cannot be written to, that is logged."""
        tensors = {"hashes": kept.hashes, **kept.tensors}
        content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
        write_cached(self.path(key), content, "values of the original images")

    def remove(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)


def originals_key(data_fingerprint: str, extractor: FeatureExtractor, metric: SetDistance) -> str:
    """The cache key: a hash of all that the values depend on.

    Args:
        data_fingerprint: of the files and of how images are made of them.
        extractor: its weights, and how images are prepared for it.
        metric: what is computed of its features.
    """
    parts: dict[str, Any] = {
        "format": FORMAT,
        "data": data_fingerprint,
        "weights": extractor.fingerprint,
        "extractor": extractor.description,
        "kept": metric.keeps,
        "versions": {name: version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def joined(parts: list[Tensor] | Tensor) -> Tensor:
    """A list state as one tensor; torchmetrics concatenates it itself when ranks exchange it."""
    return torch.cat(parts) if isinstance(parts, list) else parts


def _is_part(hashes: Tensor, of: Tensor) -> bool:
    """Whether sorted hashes are a subset of others."""
    return torch.equal(hashes, of) if len(hashes) == len(of) else bool(torch.isin(hashes, of).all())
