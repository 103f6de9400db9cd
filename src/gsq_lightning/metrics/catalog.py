"""The metrics by name, and the networks that they see images through."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torchmetrics import Metric

from gsq_lightning.metrics.features import FeatureExtractor, dinov2_features, random_features
from gsq_lightning.metrics.inception import inception_features
from gsq_lightning.metrics.lpips import PerceptualDistance
from gsq_lightning.metrics.psnr import PeakSignalToNoise, SetPeakSignalToNoise
from gsq_lightning.metrics.ssim import StructuralSimilarity

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
    "rfd_random",
]

# what papers report, and recipes name
REPORTED: tuple[MetricName, ...] = ("psnr", "psnr_set", "ssim", "lpips_vgg", "codebook", "rfid", "inception_score")

PIXEL_METRICS = ("psnr", "psnr_set", "ssim", "lpips_alex", "lpips_vgg")

# the network through which each other metric sees images; rfid and inception_score share one look
EXTRACTOR_OF = {
    "rfid": "inception",
    "inception_score": "inception",
    "rfid_pytorch_fid": "inception_pytorch_fid",
    "rfid_clean_fid": "inception_clean_fid",
    "rfd_dinov2": "dinov2",
    "rfd_random": "random",
}


class Networks(NamedTuple):
    """Weights of the networks, each "pretrained", a path or "random", and how Inception's images are resized."""

    inception: str
    alexnet: str
    vgg16: str
    dinov2: str
    antialias: bool


def make_extractor(name: str, networks: Networks) -> FeatureExtractor:
    """A network of `EXTRACTOR_OF`. Raises InputError where its weights cannot be had."""
    make: dict[str, Callable[[], FeatureExtractor]] = {
        "inception": lambda: inception_features(
            networks.inception, "antialias" if networks.antialias else "tensorflow"
        ),
        "inception_pytorch_fid": lambda: inception_features(networks.inception, "pytorch_fid"),
        "inception_clean_fid": lambda: inception_features(networks.inception, "clean_fid"),
        "dinov2": lambda: dinov2_features(networks.dinov2),
        "random": random_features,
    }
    return make[name]()


def make_pixel_metric(name: str, networks: Networks) -> Metric:
    """A metric of `PIXEL_METRICS`: its `update` takes reconstruction and image, (B, 3, H, W) uint8 each.

    Raises:
        InputError: where weights cannot be had.
    """
    make: dict[str, Callable[[], Metric]] = {
        "psnr": PeakSignalToNoise,
        "psnr_set": SetPeakSignalToNoise,
        "ssim": StructuralSimilarity,
        "lpips_alex": lambda: PerceptualDistance("alex", networks.alexnet),
        "lpips_vgg": lambda: PerceptualDistance("vgg", networks.vgg16),
    }
    return make[name]()
