"""The metrics by name, and their feature networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from gsq_lightning.errors import InputError
from gsq_lightning.metrics.codebook import CodebookShape, CodebookUsage
from gsq_lightning.metrics.features import (
    EFFICIENTNET_CHANNELS,
    ExtractorName,
    FeatureExtractor,
    RandomFeatures,
    dinov2_features,
    efficientnet_features,
    random_features,
)
from gsq_lightning.metrics.frechet import FrechetDistance
from gsq_lightning.metrics.inception import INCEPTION_FEATURES, inception_features
from gsq_lightning.metrics.inception_score import InceptionScore
from gsq_lightning.metrics.interface import ImageMetric
from gsq_lightning.metrics.kernel import KernelDistance
from gsq_lightning.metrics.lpips import PerceptualDistance
from gsq_lightning.metrics.precision_recall import PrecisionRecall
from gsq_lightning.metrics.psnr import PeakSignalToNoise, SetPeakSignalToNoise
from gsq_lightning.metrics.ssim import StructuralSimilarity
from gsq_lightning.pretrained.backbones import DINOV2_CHANNELS

MetricName = Literal[
    "psnr",
    "psnr_set",
    "ssim",
    "lpips_alex",
    "lpips_vgg",
    "inception_score",
    "codebook",
    "rfid",
    "rfid_pytorch_fid",
    "rfid_clean_fid",
    "rfd_dinov2",
    "rfd_efficientnet",
    "rfd_random",
    "rkid",
    "rkd_dinov2",
    "rkd_efficientnet",
]
SampleMetricName = Literal[
    "fid",
    "kid",
    "inception_score",
    "precision_recall",
    "rfd_dinov2",
    "rfd_efficientnet",
    "rfd_random",
    "rkd_dinov2",
    "rkd_efficientnet",
    "precision_recall_efficientnet",
]

# what papers report, and recipes name
REPORTED: tuple[MetricName, ...] = ("psnr", "psnr_set", "ssim", "lpips_vgg", "codebook", "rfid", "inception_score")


# what each option concerns: metrics by their name, or by the network whose features they are over
CONCERNED = {
    "inception_weights": ("inception", "inception_pytorch_fid", "inception_clean_fid"),
    "alexnet_weights": ("lpips_alex",),
    "vgg16_weights": ("lpips_vgg",),
    "dinov2_weights": ("dinov2",),
    "efficientnet_weights": ("efficientnet",),
    "antialias": ("inception",),
    "truncate": ("inception",),
    "ssim_rim": ("ssim",),
}


@dataclass(frozen=True)
class MetricOptions:
    """How metrics are computed. Weights are "pretrained", a path, or "random" (tests).

    Attributes:
        antialias: whether images are resized to Inception's 299² with antialiasing, as torchmetrics does, or as
            TensorFlow 1, torch-fidelity and the original FID do.
        truncate: whether reconstructions are truncated to uint8 for Inception, rather than rounded.
        ssim_rim: see `StructuralSimilarity`.
    """

    inception_weights: str = "pretrained"
    alexnet_weights: str = "pretrained"
    vgg16_weights: str = "pretrained"
    dinov2_weights: str = "pretrained"
    efficientnet_weights: str = "pretrained"
    antialias: bool = True
    truncate: bool = False
    ssim_rim: bool = False

    @property
    def settings(self) -> dict[str, bool]:
        """Those that change values and name no file, for another validation of the same kind."""
        return {name: value for name, value in vars(self).items() if isinstance(value, bool)}

    def without_effect(self, metrics: Sequence[ImageMetric]) -> list[str]:
        """Names of those that differ from their defaults and concern none of the metrics."""
        words = {word for metric in metrics for word in (metric.name, metric.wants)}
        return [
            option.name
            for option in fields(self)
            if getattr(self, option.name) != option.default and words.isdisjoint(CONCERNED[option.name])
        ]

    def notes(self, metrics: list[ImageMetric]) -> list[str]:
        """Notes on options that differ from the defaults, for the metrics that they concern."""
        inception = ", ".join(metric.name for metric in metrics if metric.wants == "inception")
        notes = []
        if inception and not self.antialias:
            notes.append(f"images are resized to 299² without antialiasing: {inception}")
        if inception and self.truncate:
            notes.append(f"reconstructions are truncated to uint8, not rounded: {inception}")
        if self.ssim_rim and any(metric.name == "ssim" for metric in metrics):
            notes.append("the rim, where the window sees reflected pixels, is included: ssim")
        return notes


EXTRACTORS: dict[ExtractorName, Callable[[MetricOptions], FeatureExtractor]] = {
    "inception": lambda options: inception_features(
        options.inception_weights, "antialias" if options.antialias else "tensorflow", options.truncate
    ),
    "inception_pytorch_fid": lambda options: inception_features(options.inception_weights, "pytorch_fid"),
    "inception_clean_fid": lambda options: inception_features(options.inception_weights, "clean_fid"),
    "dinov2": lambda options: dinov2_features(options.dinov2_weights),
    "efficientnet": lambda options: efficientnet_features(options.efficientnet_weights),
    "random": lambda _: random_features(),
}

Maker = Callable[[MetricOptions, CodebookShape | None], ImageMetric]


def _codebook(_: MetricOptions, shape: CodebookShape | None) -> CodebookUsage:
    if shape is None:
        raise InputError(
            'the metric "codebook" needs a tokenizer; give load() its codebook_size, or leave it out of the metrics'
        )
    return CodebookUsage(*shape)


METRICS: dict[MetricName, Maker] = {
    "psnr": lambda *_: PeakSignalToNoise(),
    "psnr_set": lambda *_: SetPeakSignalToNoise(),
    "ssim": lambda options, _: StructuralSimilarity(options.ssim_rim),
    "lpips_alex": lambda options, _: PerceptualDistance("alex", options.alexnet_weights),
    "lpips_vgg": lambda options, _: PerceptualDistance("vgg", options.vgg16_weights),
    "inception_score": lambda *_: InceptionScore(),
    "codebook": _codebook,
    "rfid": lambda *_: FrechetDistance("rfid", "inception", INCEPTION_FEATURES),
    "rfid_pytorch_fid": lambda *_: FrechetDistance("rfid_pytorch_fid", "inception_pytorch_fid", INCEPTION_FEATURES),
    "rfid_clean_fid": lambda *_: FrechetDistance("rfid_clean_fid", "inception_clean_fid", INCEPTION_FEATURES),
    "rfd_dinov2": lambda *_: FrechetDistance("rfd_dinov2", "dinov2", DINOV2_CHANNELS),
    "rfd_efficientnet": lambda *_: FrechetDistance("rfd_efficientnet", "efficientnet", EFFICIENTNET_CHANNELS),
    "rfd_random": lambda *_: FrechetDistance("rfd_random", "random", RandomFeatures.num_features),
    "rkid": lambda *_: KernelDistance("rkid", "inception", INCEPTION_FEATURES),
    "rkd_dinov2": lambda *_: KernelDistance("rkd_dinov2", "dinov2", DINOV2_CHANNELS),
    "rkd_efficientnet": lambda *_: KernelDistance("rkd_efficientnet", "efficientnet", EFFICIENTNET_CHANNELS),
}

# distances of generated images have no reconstruction in their name where the field has another name for them
SAMPLE_METRICS: dict[SampleMetricName, Maker] = {
    "fid": lambda *_: FrechetDistance("fid", "inception", INCEPTION_FEATURES),
    "kid": lambda *_: KernelDistance("kid", "inception", INCEPTION_FEATURES),
    "inception_score": METRICS["inception_score"],
    "precision_recall": lambda *_: PrecisionRecall("precision_recall", "inception", INCEPTION_FEATURES),
    "rfd_dinov2": METRICS["rfd_dinov2"],
    "rfd_efficientnet": METRICS["rfd_efficientnet"],
    "rfd_random": METRICS["rfd_random"],
    "rkd_dinov2": METRICS["rkd_dinov2"],
    "rkd_efficientnet": METRICS["rkd_efficientnet"],
    "precision_recall_efficientnet": lambda *_: PrecisionRecall(
        "precision_recall_efficientnet", "efficientnet", EFFICIENTNET_CHANNELS
    ),
}
