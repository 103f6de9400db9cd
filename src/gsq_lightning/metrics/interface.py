"""The interface of metrics: a name, the input it wants, an update, and values with notes."""

from abc import abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from gsq_lightning.errors import require
from gsq_lightning.metrics.features import ExtractorName, Features

Wants = Literal["pixels", "indices"] | ExtractorName


class MetricValues(NamedTuple):
    """The result of a metric over all images.

    Attributes:
        values: by name; none where the metric is not defined for so few images.
        notes: remarks on them, in sentences.
    """

    values: dict[str, float]
    notes: list[str]


class ImageMetric(Metric):
    """A metric of images. Its state is that of torchmetrics: over all batches and processes.

    Attributes:
        name: of its main value.
        wants: what `update` is given: "pixels" of reconstructions and originals, "indices" of the codebook, or the
            features of the extractor of that name.
        protocol: how it is computed, in words, where that can be chosen; for features, beside the extractor's own.
    """

    full_state_update = False
    name: str
    wants: Wants
    protocol: str = ""

    @abstractmethod
    def values(self) -> MetricValues:
        """Over all ranks; every rank must call it."""


class PixelMetric(ImageMetric):
    """Compares each reconstruction with its original, and averages over images. A subclass implements `of_each`."""

    wants = "pixels"
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def of_each(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Two times (B, 3, H, W) uint8 → (B,). Raises InputError for images too small."""

    def update(self, reconstruction: Tensor, image: Tensor) -> None:
        """Two times (B, 3, H, W) uint8. Raises InputError for other shapes, and for images too small."""
        check_shapes(reconstruction, image)
        self.total += self.of_each(reconstruction, image).double().sum()
        self.count += len(image)

    def compute(self) -> Tensor:
        """Scalar, float64."""
        return self.total / self.count

    def values(self) -> MetricValues:
        return MetricValues({self.name: float(self.compute())}, [])


def check_shapes(reconstruction: Tensor, image: Tensor) -> None:
    """Raises InputError unless both are (B, 3, H, W), and equal: others may broadcast, and give figures."""
    require(
        image.ndim == 4 and image.shape[1] == 3 and image.shape == reconstruction.shape,
        f"the image is {tuple(image.shape)}, its reconstruction {tuple(reconstruction.shape)}; both must be the same "
        "(B, 3, H, W)",
    )


class FeatureMetric(ImageMetric):
    """Compares images by the features of a network.

    Args:
        name: of its main value.
        extractor: the network.
    """

    def __init__(self, name: str, extractor: ExtractorName) -> None:
        super().__init__()
        self.name = name
        self.wants = extractor

    def wants_originals(self, hashes: Tensor) -> bool:
        """Whether features of original images are wanted.

        Args:
            hashes: (B,) int64, of their pixels.
        """
        return False

    @abstractmethod
    def update(self, features: Features | None, hashes: Tensor, real: bool) -> None:
        """Adds images.

        Args:
            features: of B images; None for originals whose features are not wanted.
            hashes: (B,) int64, of the pixels of the originals; of the images themselves where they have none.
            real: whether these are originals.
        """
