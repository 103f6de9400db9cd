"""Metrics of generated images against real ones, as sets, without pairs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gsq_lightning.errors import require
from gsq_lightning.metrics.catalog import SAMPLE_METRICS, MetricOptions, SampleMetricName
from gsq_lightning.metrics.images import ImageCounts, pixel_hash
from gsq_lightning.metrics.suite import MetricSuite
from gsq_lightning.pixels import image_to_pixels
from gsq_lightning.precision import full_precision


class SampleMetrics(MetricSuite):
    """Metrics of generated images against real ones, which may differ in number and size.

    Args:
        names: which to compute:
            "fid", Fréchet distance over Inception v3 features; needs its weights;
            "kid", kernel distance over the same features: mean and deviation over subsets, and over all images;
            "inception_score", of the generated images; needs the same weights;
            "precision_recall", shares of generated images within the manifold of the real ones and the other way round
            (arXiv 1904.06991), over the same features;
            "rfd_efficientnet", "rkd_efficientnet", "precision_recall_efficientnet", the same over EfficientNet-Lite0,
            whose weights come with pip; no FID;
            "rfd_dinov2", "rkd_dinov2", the same over DINOv2; need its weights;
            "rfd_random", for tests.
        options: weights of the networks, and how images are prepared for them.
        statistics_folder: see `MetricSuite`.
    """

    catalog = SAMPLE_METRICS

    def __init__(
        self,
        names: SampleMetricName | Sequence[SampleMetricName] = ("fid", "inception_score", "precision_recall"),
        options: MetricOptions = MetricOptions(),  # noqa: B008 - frozen
        statistics_folder: str | None = "default",
    ) -> None:
        super().__init__([names] if isinstance(names, str) else names, options, statistics_folder)
        self.generated = ImageCounts()

    def update(self, image: Tensor, real: bool) -> None:
        """Adds a batch of (B, 3, H, W) in [-1, 1], real or generated; what lies beyond is clamped.

        Raises:
            InputError: as `ReconstructionMetrics.update`.
        """
        if len(image) == 0:
            return
        self._check(image, "original" if real else "other")
        device = self._follow(image)
        image = image.to(device)
        with torch.no_grad(), full_precision(device):
            pixels = image_to_pixels(image)
            hashes = pixel_hash(pixels)
            finite = image.flatten(1).isfinite().all(dim=1)
            (self.counts if real else self.generated).update(finite, pixels, hashes)
            self._update_feature_metrics(image, pixels, hashes, real)

    def compute(self) -> dict[str, float]:
        """As `MetricSuite`'s; "images" is the number of generated ones."""
        generated = self.generated.compute()
        require(int(generated.images) > 0, "nothing was measured: there are no generated images")
        require(int(generated.nonfinite) == 0, f"{int(generated.nonfinite)} generated images are not finite")
        values = super().compute()
        return {"images": float(generated.images), "real_images": values.pop("images"), **values}

    def reset(self) -> None:
        super().reset()
        self.generated.reset()
