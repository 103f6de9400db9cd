"""How near reconstructions are to their originals, over exact uint8 pixels and in float32 or better."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from gsq_lightning.distributed import as_first_process, is_first_process
from gsq_lightning.errors import InputError
from gsq_lightning.files import cache_folder
from gsq_lightning.metrics.catalog import (
    EXTRACTOR_OF,
    PIXEL_METRICS,
    MetricName,
    Networks,
    make_extractor,
    make_pixel_metric,
)
from gsq_lightning.metrics.codebook import CodebookUsage
from gsq_lightning.metrics.features import FeatureExtractor
from gsq_lightning.metrics.frechet import FrechetDistance, FrechetResult
from gsq_lightning.metrics.images import Counts, ImageCounts
from gsq_lightning.metrics.inception_score import InceptionScore
from gsq_lightning.metrics.statistics_cache import OriginalImages, StatisticsCache, statistics_key
from gsq_lightning.pixels import image_to_pixels
from gsq_lightning.precision import full_precision, keep_precision

logger = logging.getLogger(__name__)


class ReconstructionMetrics(nn.Module):
    """The metrics of a validation. Any LightningModule can own one: `load` in its `setup`, `start` when an epoch
    starts, `update` in each step, `compute` when it ends.

    It keeps no weights in checkpoints, and float32 and float64 whatever its owner is cast to.

    Args:
        names: which to compute:
            "psnr", peak signal-to-noise ratio in dB, averaged over images;
            "psnr_set", the same from the mean squared error of all images together, as the GSQ paper's reference;
            "ssim", structural similarity (11×11 Gaussian window, σ 1.5), averaged over images;
            "lpips_alex", "lpips_vgg", learned perceptual distance, averaged over images; need weights;
            "codebook", usage in [0, 1] and perplexity, over all groups pooled, and of each where there are several;
            "rfid", Fréchet distance over Inception v3 features; needs its weights;
            "inception_score", mean and deviation over ten splits; needs the same weights;
            "rfid_pytorch_fid", "rfid_clean_fid", as those programs prepare images, see `metrics/inception.py`;
            "rfd_dinov2", Fréchet distance over DINOv2 features; needs its weights;
            "rfd_random", the same over random features, for machines that have no Inception weights.
        inception_weights: "pretrained", the path of weights-inception-2015-12-05-6726825d.pth, or "random" (tests).
        alexnet_weights: "pretrained", the path of alexnet-owt-7be5be79.pth, or "random" (tests).
        vgg16_weights: "pretrained", the path of vgg16-397923af.pth, or "random" (tests).
        dinov2_weights: "pretrained", the path of model.safetensors of timm/vit_small_patch14_reg4_dinov2.lvd142m, or
            "random" (tests).
        antialias: how rfid and inception_score resize to Inception's 299²: antialiased, as torchmetrics does, or as
            TensorFlow 1, torch-fidelity and the original FID do. The value differs.
        statistics_folder: where statistics of the original images are kept for the next validation; "default" is
            `statistics` in $GSQ_CACHE, or in gsq-lightning in the user's cache folder; none keeps nothing.

    Attributes:
        notes: what the last `compute` has to say about its values.
        seen: the images that it was over.
    """

    def __init__(
        self,
        names: Sequence[MetricName] = ("psnr", "ssim", "codebook", "rfid"),
        inception_weights: str = "pretrained",
        alexnet_weights: str = "pretrained",
        vgg16_weights: str = "pretrained",
        dinov2_weights: str = "pretrained",
        antialias: bool = True,
        statistics_folder: str | None = "default",
    ) -> None:
        super().__init__()
        if len(set(names)) != len(names):
            raise InputError(f"metrics {list(names)} names one of them twice")
        self.names = list(names)
        self.inception_weights = inception_weights
        self.alexnet_weights = alexnet_weights
        self.vgg16_weights = vgg16_weights
        self.dinov2_weights = dinov2_weights
        self.antialias = antialias
        self.statistics_folder = statistics_folder
        self.notes: list[str] = []
        self.metrics = nn.ModuleDict()
        self.extractors = nn.ModuleDict()
        self.counts = ImageCounts()
        self.seen: Counts | None = None
        self._originals: OriginalImages | None = None
        self._keys: dict[str, str] = {}  # on the first process, of the statistics that this validation may keep
        self._told: set[str] = set()

    def load(self, codebook_size: int | None = None, num_groups: int = 1) -> None:
        """Makes the metrics and gets their networks ready; called once, when a validation is to come.

        Args:
            codebook_size: V, which "codebook" needs.
            num_groups: G.

        Raises:
            InputError: where weights cannot be had.
        """
        for name in self.names:
            extractor = EXTRACTOR_OF.get(name)
            if extractor is not None and extractor not in self.extractors:
                self.extractors[extractor] = make_extractor(extractor, self._networks)
            if name not in self.metrics:
                self.metrics[name] = self._make(name, codebook_size, num_groups)

    def start(self, originals: OriginalImages | None = None) -> None:
        """Forgets what was seen. Every process must call it.

        Args:
            originals: the images that are to come. With them, statistics of the originals are taken from the cache, or
                kept there by `compute` where none of them was missing; without, the cache is left alone. Those of the
                first process count.
        """
        self.reset()
        self._originals = originals
        self._keys = {}
        cache = self._cache
        if cache is None:
            return
        for name in self._frechet_names:
            statistics = None
            if originals is not None and is_first_process():
                self._keys[name] = statistics_key(originals.fingerprint, self._extractor_of(name))
                statistics = cache.load(self._keys[name])
                if statistics is not None and int(statistics.images) != originals.number:
                    statistics = None
            if as_first_process(statistics is not None):
                self._frechet(name).set_real(statistics)

    def update(self, image: Tensor, reconstruction: Tensor, indices: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            image, reconstruction: (B, 3, H, W) in [-1, 1]; what lies beyond is clamped.
            indices: (B, h, w, G) int64, which "codebook" needs.
        """
        if len(image) == 0:
            return
        with torch.no_grad(), full_precision(image.device):
            finite = reconstruction.flatten(1).isfinite().all(dim=1)
            original = image_to_pixels(image)
            reconstructed = image_to_pixels(reconstruction.nan_to_num())
            self.counts.update(finite, original)
            for name in PIXEL_METRICS:
                if name in self.metrics:
                    self._metric(name).update(reconstructed, original)
            if "codebook" in self.metrics:
                assert indices is not None, '"codebook" needs indices'
                self._metric("codebook").update(indices)
            for extractor in self.extractors:
                self._update_seen_through(extractor, original, reconstructed)

    def compute(self) -> dict[str, float]:
        """Values by name, over all batches and processes; every process must call it.

        Where a reconstruction was not finite, "nonfinite_images" counts them and every metric is NaN. A metric that is
        not defined over so few images is left out. `notes` says so.
        """
        self.notes = []
        counts = self.seen = self.counts.compute()
        values = {"images": float(counts.images)}
        if counts.images == 0:
            self._note("there were no images to validate on")
            return values
        if self._originals is not None and counts.images < self._originals.number:
            self._note(
                f"{int(counts.images)} of {self._originals.number} images were validated; the others could not be read"
            )
        for name in self.names:
            values |= self._values_of(name)
        if counts.nonfinite > 0:
            self._note(
                f"{int(counts.nonfinite)} of {int(counts.images)} reconstructions have values that are not finite: "
                "no metric is reported"
            )
            values = {name: float("nan") for name in values}
            values |= {"images": float(counts.images), "nonfinite_images": float(counts.nonfinite)}
        return values

    def reset(self) -> None:
        self.counts.reset()
        for name in self.metrics:
            self._metric(name).reset()

    @property
    def description(self) -> dict[str, str]:
        """The networks in use, in words, by metric."""
        return {name: self._extractor_of(name).description for name in self.names if name in EXTRACTOR_OF}

    @property
    def reused_statistics(self) -> list[str]:
        """Metrics whose originals were not looked at again."""
        return [name for name in self._frechet_names if self._frechet(name).has_real]

    def _values_of(self, name: str) -> dict[str, float]:
        metric = self._metric(name)
        result = metric.compute()
        if isinstance(metric, CodebookUsage):
            return _codebook_values(result, metric)
        if isinstance(metric, InceptionScore):
            if result.smallest_split == 0:
                self._note(f"{name} is left out: one of its ten splits has no image")
                return {}
            return {name: float(result.mean), f"{name}_std": float(result.std)}
        if isinstance(metric, FrechetDistance):
            return self._frechet_values(name, metric, result)
        return {name: float(result)}

    def _frechet_values(self, name: str, metric: FrechetDistance, result: FrechetResult) -> dict[str, float]:
        images = int(result.fake_images)
        cache, key = self._cache, self._keys.get(name)
        if images != int(result.real.images):
            self._note(
                f"{name} compares {images} reconstructions with the kept statistics of all "
                f"{int(result.real.images)} originals"
            )
        if images < 2:
            self._note(f"{name} is left out: a Fréchet distance needs at least 2 images, there is 1")
            return {}
        if images < metric.num_features:
            self._note(
                f"{name} is over {images} images, fewer than its {metric.num_features} features: it is biased upwards, "
                "and comparable only with values over the same images"
            )
        # fewer images than there are: some could not be read this time; more: a sampler repeated some
        if key and cache and self._originals and not metric.has_real and images == self._originals.number:
            cache.save(key, result.real)
        return {name: float(result.distance)}

    def _update_seen_through(self, extractor: str, original: Tensor, reconstructed: Tensor) -> None:
        look = self.extractors[extractor]
        seen = look(reconstructed)
        for name in self.names:
            if EXTRACTOR_OF.get(name) != extractor:
                continue
            metric = self._metric(name)
            if isinstance(metric, InceptionScore):
                metric.update(seen.logits, original)
            elif isinstance(metric, FrechetDistance):
                metric.update(seen.pooled, real=False)
                if not metric.has_real:
                    metric.update(look(original).pooled, real=True)

    def _note(self, text: str) -> None:
        self.notes.append(text)
        if text not in self._told and is_first_process():
            logger.warning(text)
        self._told.add(text)

    @property
    def _cache(self) -> StatisticsCache | None:
        if self.statistics_folder is None:
            return None
        given = self.statistics_folder != "default"
        return StatisticsCache(Path(self.statistics_folder).expanduser() if given else cache_folder("statistics"))

    @property
    def _frechet_names(self) -> list[str]:
        return [name for name in self.names if isinstance(self._metric(name), FrechetDistance)]

    def _frechet(self, name: str) -> FrechetDistance:
        metric = self.metrics[name]
        assert isinstance(metric, FrechetDistance)
        return metric

    def _metric(self, name: str) -> Metric:
        metric = self.metrics[name]
        assert isinstance(metric, Metric)
        return metric

    def _extractor_of(self, name: str) -> FeatureExtractor:
        extractor = self.extractors[EXTRACTOR_OF[name]]
        assert isinstance(extractor, FeatureExtractor)
        return extractor

    def _make(self, name: str, codebook_size: int | None, num_groups: int) -> Metric:
        if name == "codebook":
            if codebook_size is None:
                raise InputError('the metric "codebook" needs a tokenizer; leave it out of the metrics')
            return CodebookUsage(codebook_size, num_groups)
        if name == "inception_score":
            return InceptionScore()
        if name in EXTRACTOR_OF:
            return FrechetDistance(self._extractor_of(name).num_features)
        return make_pixel_metric(name, self._networks)

    @property
    def _networks(self) -> Networks:
        return Networks(
            self.inception_weights, self.alexnet_weights, self.vgg16_weights, self.dinov2_weights, self.antialias
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ReconstructionMetrics":
        """Follows its owner to a device, and to no other type of number."""
        return super()._apply(keep_precision(fn, widen=False), recurse)


def _codebook_values(pooled: Any, metric: CodebookUsage) -> dict[str, float]:
    values = {"codebook_usage": float(pooled.usage), "codebook_perplexity": float(pooled.perplexity)}
    if metric.num_groups > 1:
        per_group = metric.compute_per_group()
        for group in range(metric.num_groups):
            values[f"codebook_usage_group_{group}"] = float(per_group.usage[group])
            values[f"codebook_perplexity_group_{group}"] = float(per_group.perplexity[group])
    return values
