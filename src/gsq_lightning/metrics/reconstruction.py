"""How near reconstructions are to their originals, over exact uint8 pixels and in float32 or better."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio

from gsq_lightning.errors import InputError
from gsq_lightning.metrics.codebook import CodebookUsage
from gsq_lightning.metrics.ssim import StructuralSimilarity

MetricName = Literal["psnr", "ssim", "codebook", "rfid", "rfd_random"]

MAX_PIXEL = 255.0
FRECHET_METRICS = ("rfid", "rfd_random")


class ReconstructionMetrics(nn.Module):
    """The metrics of a validation.

    Args:
        names: which to compute:
            "psnr", peak signal-to-noise ratio in dB, averaged over images;
            "ssim", structural similarity (11×11 Gaussian window, σ 1.5), averaged over images;
            "codebook", usage in [0, 1] and perplexity, over all groups pooled;
            "rfid", Fréchet distance over Inception v3 features; needs its weights;
            "rfd_random", the same over random features, for machines that have no Inception weights.
        inception_weights: "pretrained", the path of weights-inception-2015-12-05-6726825d.pth, or "random" (tests).
    """

    def __init__(
        self,
        names: Sequence[MetricName] = ("psnr", "ssim", "codebook", "rfid"),
        inception_weights: str = "pretrained",
    ) -> None:
        super().__init__()
        if len(set(names)) != len(names):
            raise InputError(f"metrics {list(names)} names one of them twice")
        self.names = list(names)
        self.inception_weights = inception_weights
        self.metrics = nn.ModuleDict()

    def load(self, codebook_size: int, num_groups: int) -> None:
        """Makes the metrics and gets their networks ready; called once, when a validation is to come."""
        for name in self.names:
            if name not in self.metrics:
                self.metrics[name] = self._make(name, codebook_size, num_groups)

    def update(self, image: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        """Adds a batch.

        Args:
            image, reconstruction: (B, 3, H, W) in [-1, 1]; what lies beyond is clamped.
            indices: (B, h, w, G) int64.
        """
        original, reconstructed = image_to_pixels(image), image_to_pixels(reconstruction)
        for name in self.names:
            metric = self._metric(name)
            if name == "codebook":
                metric.update(indices)
            elif name in FRECHET_METRICS:
                metric.update(original, real=True)
                metric.update(reconstructed, real=False)
            else:
                metric.update(reconstructed.float(), original.float())

    def compute(self) -> dict[str, float]:
        """Values by name, over all batches and processes; every process must call it."""
        values: dict[str, float] = {}
        for name in self.names:
            result = self._metric(name).compute()
            if name == "codebook":
                values["codebook_usage"] = float(result.usage)
                values["codebook_perplexity"] = float(result.perplexity)
            else:
                values[name] = float(result)
        return values

    def reset(self) -> None:
        for name in self.metrics:
            self._metric(name).reset()

    def _metric(self, name: str) -> Metric:
        metric = self.metrics[name]
        assert isinstance(metric, Metric)
        return metric

    def _make(self, name: str, codebook_size: int, num_groups: int) -> Metric:
        if name == "psnr":
            return PeakSignalNoiseRatio(data_range=MAX_PIXEL, dim=(1, 2, 3), reduction="elementwise_mean")
        if name == "ssim":
            return StructuralSimilarity()
        if name == "codebook":
            return CodebookUsage(codebook_size, num_groups)
        from gsq_lightning.metrics.rfid import rfd_random, rfid

        return rfid(self.inception_weights) if name == "rfid" else rfd_random()


def image_to_pixels(image: Tensor) -> Tensor:
    """[-1, 1], any float type → uint8, clamped and rounded."""
    return ((image.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
