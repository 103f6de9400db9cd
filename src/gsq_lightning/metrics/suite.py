"""Several metrics over the same images: their networks, the cache of the originals, and notes on their values."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from gsq_lightning.distributed import from_rank_0, is_rank_0
from gsq_lightning.errors import InputError, look_up, require
from gsq_lightning.files import cache_folder
from gsq_lightning.metrics.catalog import EXTRACTORS, METRICS, Maker, MetricName, MetricOptions
from gsq_lightning.metrics.codebook import CodebookShape
from gsq_lightning.metrics.features import FeatureExtractor
from gsq_lightning.metrics.images import Counts, ImageCounts, pixel_hash
from gsq_lightning.metrics.interface import FeatureMetric, ImageMetric, check_shapes
from gsq_lightning.metrics.originals import OriginalImages, OriginalsCache, SetDistance, originals_key
from gsq_lightning.pixels import check_float, check_range, image_to_pixels
from gsq_lightning.precision import full_precision, keep_precision, with_float64

logger = logging.getLogger(__name__)


class MetricSuite(nn.Module):
    """Several metrics by name. A subclass implements `update`, and sets `catalog`, the metrics that names stand for.

    Its networks are not in checkpoints. It stays in float32 and float64 whatever dtype its owner is cast to.

    Args:
        names: which to compute.
        options: how they are computed.
        statistics_folder: cache of values that depend on the original images alone; "default" is `statistics` in
            $GSQ_CACHE, or in gsq-lightning in the user's cache folder; none caches nothing.
        own: metrics beside those of the catalog.

    Attributes:
        notes: remarks on the values of the last `compute`, in sentences.
        seen: counts of the images of the last `compute`.
        logs_notes: whether notes go to the log too, once each.
    """

    catalog: ClassVar[Mapping[Any, Maker]]

    def __init__(
        self,
        names: Sequence[str],
        options: MetricOptions,
        statistics_folder: str | None,
        own: Sequence[ImageMetric] = (),
    ) -> None:
        super().__init__()
        require(len(names) + len(own) > 0, "metrics is empty; name one or more, or leave metrics out altogether")
        every = [*names, *(metric.name for metric in own)]
        require(len(set(every)) == len(every), f"metrics {every} names one of them twice")
        for name in names:
            look_up("a metric", name, self.catalog)
        self.names = list(names)
        self.options = options
        self.statistics_folder = statistics_folder
        self.notes: list[str] = []
        self.metrics = nn.ModuleDict()
        self.extractors = nn.ModuleDict()
        self.counts = ImageCounts()
        self.seen: Counts | None = None
        self.logs_notes = True
        self._own = list(own)
        self._unchecked = {"original", "other"}
        self._codebook: CodebookShape | None = None
        self._originals: OriginalImages | None = None
        self._keys: dict[str, str] = {}  # of the cache, by metric, on rank 0
        self._logged: set[str] = set()

    def load(self, codebook_size: int | None = None, num_groups: int = 1, num_codebooks: int = 1) -> None:
        """Makes the metrics and loads their networks; without this call, the first images do.

        Args:
            codebook_size: V, which "codebook" needs.
            num_groups: G.
            num_codebooks: 1 where all groups share one codebook, else G.

        Raises:
            InputError: where weights cannot be had.
        """
        shape = None if codebook_size is None else CodebookShape(codebook_size, num_groups, num_codebooks)
        for name in self.names:
            if name not in self.metrics or (name == "codebook" and shape != self._codebook):
                self.metrics[name] = self.catalog[name](self.options, shape)
        self.metrics.update({metric.name: metric for metric in self._own})
        self._codebook = shape
        for metric in self._all():
            if isinstance(metric, FeatureMetric) and metric.wants not in self.extractors:
                self.extractors[metric.wants] = look_up("an extractor", metric.wants, EXTRACTORS)(self.options)

    def start(self, originals: OriginalImages | None = None) -> None:
        """Resets all metrics for new images. Every rank must call it.

        Args:
            originals: identifies the images that will be seen; rank 0's counts. With it, features of the originals come
                from the cache, or `compute` writes them there if no image was missing. Without, there is no cache.
        """
        if not self.metrics:
            self.load()
        self.reset()
        self._originals = originals
        self._keys = {}
        cache = self._cache
        if cache is None:
            return
        for metric in self._set_distances():
            kept = None
            if originals is not None and is_rank_0():
                key = originals_key(originals.fingerprint, self._extractor(metric.wants), metric)
                self._keys[metric.name] = key
                kept = cache.load(key)
                if kept is not None and len(kept.hashes) != originals.number:
                    kept = None
            metric.take(from_rank_0(kept))

    def compute(self) -> dict[str, float]:
        """Values by name, over all batches and ranks; every rank must call it.

        A metric that is not defined for so few images is left out; `notes` says so.

        Raises:
            InputError: where nothing was measured.
        """
        self.notes = []
        counts = self.seen = self.counts.compute()
        images = int(counts.images)
        require(images > 0, "nothing was measured: there were no images, or none of them could be read")
        if self._originals is not None and images < self._originals.number:
            self._note(f"{images} of {self._originals.number} images were validated; the others could not be read")
        values: dict[str, float] = {}
        for metric in self._all():
            result = metric.values()
            values |= result.values
            for note in result.notes:
                self._note(note)
        require(len(values) > 0, f"nothing was measured: {'; '.join(self.notes)}")
        for note in self.options.notes(self._all()):
            self._note(note)
        self._keep_originals(images)
        return {"images": float(images), **values}

    def reset(self) -> None:
        self._unchecked = {"original", "other"}
        self.counts.reset()
        for metric in self._all():
            metric.reset()

    @property
    def protocols(self) -> dict[str, str]:
        """How values were computed, in words, by metric: network and preparation of images, where there are any."""
        protocols = {}
        for metric in self._all():
            network = self._extractor(metric.wants).description if isinstance(metric, FeatureMetric) else ""
            if protocol := "; ".join(part for part in (network, metric.protocol) if part):
                protocols[metric.name] = protocol
        return protocols

    @property
    def options_without_effect(self) -> list[str]:
        """Names of options that were given and concern none of these metrics. Needs `load`."""
        return self.options.without_effect(self._all())

    @property
    def reused(self) -> list[str]:
        """Metrics whose originals came from the cache."""
        return [metric.name for metric in self._set_distances() if metric.kept is not None]

    def _keep_originals(self, images: int) -> None:
        """Caches what was computed of the originals, and removes an entry that turned out to be of other images."""
        cache = self._cache
        for metric in self._set_distances():
            key = self._keys.get(metric.name)
            if cache is None or key is None or self._originals is None:
                continue
            comparison = metric.compute()
            if comparison.changed:
                cache.remove(key)
            # fewer images than there are: some could not be read this time; more: a sampler repeated some
            if comparison.originals is not None and images == self._originals.number:
                cache.save(key, comparison.originals)

    def _update_feature_metrics(self, image: Tensor, pixels: Tensor, hashes: Tensor, real: bool) -> None:
        """Runs each network once, and gives the features to the metrics that want them.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            pixels: (B, 3, H, W) uint8, the rounded image.
            hashes: (B,) int64, of the pixels of the originals; of the images themselves where they have none.
            real: whether these are originals, of which not every metric wants the features.
        """
        for name in self.extractors:
            extractor = self._extractor(name)
            metrics = [metric for metric in self._that_want(name) if isinstance(metric, FeatureMetric)]
            wanted = [not real or metric.wants_originals(hashes) for metric in metrics]
            truncates = extractor.truncates and not real
            seen = image_to_pixels(image, truncate=True) if truncates else pixels
            features = extractor(seen) if any(wanted) else None
            for metric, wants_them in zip(metrics, wanted, strict=True):
                metric.update(features if wants_them else None, hashes, real)

    def _note(self, text: str) -> None:
        """Adds a note; the log has it once, not at each validation of a training."""
        self.notes.append(text)
        if self.logs_notes and text not in self._logged and is_rank_0():
            logger.warning(text)
        self._logged.add(text)

    @property
    def _cache(self) -> OriginalsCache | None:
        if self.statistics_folder is None:
            return None
        given = self.statistics_folder != "default"
        return OriginalsCache(Path(self.statistics_folder).expanduser() if given else cache_folder("statistics"))

    def _all(self) -> list[ImageMetric]:
        return cast(list[ImageMetric], list(self.metrics.values()))

    def _that_want(self, what: str) -> list[ImageMetric]:
        return [metric for metric in self._all() if metric.wants == what]

    def _set_distances(self) -> list[SetDistance]:
        return [metric for metric in self._all() if isinstance(metric, SetDistance)]

    def _extractor(self, name: str) -> FeatureExtractor:
        extractor = self.extractors[name]
        assert isinstance(extractor, FeatureExtractor)
        return extractor

    def _check(self, image: Tensor, kind: Literal["original", "other"]) -> None:
        """Raises InputError for images that are no floats; of the first since `reset` the range is checked too."""
        check_float(image)
        if kind in self._unchecked:
            self._unchecked.remove(kind)
            check_range(image, may_overshoot=kind == "other")

    def _follow(self, image: Tensor) -> torch.device:
        """Loads, unless that was done, and moves to the device of the images if it has float64. Returns where it is."""
        if not self.metrics:
            self.load()
        device = with_float64(image.device)
        if self.counts.images.device != device:
            self.to(device)
        return device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MetricSuite":
        """Moves to a device with its owner, if it has float64, but keeps its dtypes."""
        device = fn(torch.empty(0)).device
        return super()._apply(keep_precision(fn, widen=False), recurse) if with_float64(device) == device else self


class ReconstructionMetrics(MetricSuite):
    """How near reconstructions are to their originals. Any LightningModule can own one: `load` in its `setup`,
    `start` when an epoch starts, `update` in each step, `compute` when it ends.

    Args:
        names: which to compute:
            "psnr", peak signal-to-noise ratio in dB, averaged over images;
            "psnr_set", the same from the mean squared error of all images together, as the GSQ paper's reference;
            "ssim", structural similarity (11×11 Gaussian window, σ 1.5), averaged over images;
            "lpips_alex", "lpips_vgg", learned perceptual distance, averaged over images; need weights;
            "codebook", usage in [0, 1] and perplexity, and of each group where there are several;
            "rfid", Fréchet distance over Inception v3 features; needs its weights;
            "inception_score", mean and deviation over ten splits; needs the same weights;
            "rfid_pytorch_fid", "rfid_clean_fid", as those programs prepare images, see `metrics/inception.py`;
            "rfd_efficientnet", Fréchet distance over EfficientNet-Lite0, whose weights come with pip; no rFID;
            "rfd_dinov2", the same over DINOv2; needs its weights;
            "rkid", "rkd_efficientnet", "rkd_dinov2", kernel distances over the same networks, which few images do not
            bias: mean and deviation over subsets, and over all images;
            "rfd_random", Fréchet distance over random features, for tests.
        inception_weights: "pretrained", the path of weights-inception-2015-12-05-6726825d.pth, or "random" (tests).
        alexnet_weights: "pretrained", the path of alexnet-owt-7be5be79.pth, or "random" (tests).
        vgg16_weights: "pretrained", the path of vgg16-397923af.pth, or "random" (tests).
        dinov2_weights: "pretrained", the path of model.safetensors of timm/vit_small_patch14_reg4_dinov2.lvd142m, or
            "random" (tests).
        efficientnet_weights: "pretrained", the path of efficientnet-lite0-57934424.pth, or "random" (tests).
        antialias: how rfid, rkid and inception_score resize to Inception's 299²: antialiased, as torchmetrics does, or
            as TensorFlow 1, torch-fidelity, the original FID and the GSQ paper do. The value differs.
        truncate: truncate reconstructions to uint8 for rfid, rkid and inception_score, as the GSQ paper's reference,
            instead of rounding them.
        ssim_rim: include the rim of images in ssim, where the window sees reflected pixels, as torchmetrics and the
            GSQ paper's reference.
        statistics_folder: where what is computed of the original images is kept for the next validation; "default" is
            `statistics` in $GSQ_CACHE, or in gsq-lightning in the user's cache folder; none keeps nothing.
        own: metrics of your own classes, beside those named.
    """

    catalog = METRICS

    def __init__(
        self,
        names: MetricName | Sequence[MetricName] = ("psnr", "ssim", "codebook", "rfid"),
        inception_weights: str = "pretrained",
        alexnet_weights: str = "pretrained",
        vgg16_weights: str = "pretrained",
        dinov2_weights: str = "pretrained",
        efficientnet_weights: str = "pretrained",
        antialias: bool = True,
        truncate: bool = False,
        ssim_rim: bool = False,
        statistics_folder: str | None = "default",
        own: Sequence[ImageMetric] = (),
    ) -> None:
        options = MetricOptions(
            inception_weights=inception_weights,
            alexnet_weights=alexnet_weights,
            vgg16_weights=vgg16_weights,
            dinov2_weights=dinov2_weights,
            efficientnet_weights=efficientnet_weights,
            antialias=antialias,
            truncate=truncate,
            ssim_rim=ssim_rim,
        )
        super().__init__([names] if isinstance(names, str) else names, options, statistics_folder, own)

    def update(self, image: Tensor, reconstruction: Tensor, indices: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            image, reconstruction: (B, 3, H, W) in [-1, 1]; what lies beyond is clamped.
            indices: (B, h, w, G) int64, which "codebook" needs.

        Raises:
            InputError: for images of other shapes, that are no floats, or whose first batch is in [0, 255]; one that
                seems to be in [0, 1] gives a warning.
        """
        if len(image) == 0:
            return
        check_shapes(reconstruction, image)
        self._check(image, "original")
        self._check(reconstruction, "other")
        device = self._follow(image)
        image, reconstruction = image.to(device), reconstruction.to(device)
        with torch.no_grad(), full_precision(device):
            finite = reconstruction.flatten(1).isfinite().all(dim=1)
            reconstruction = reconstruction.nan_to_num()
            original, reconstructed = image_to_pixels(image), image_to_pixels(reconstruction)
            hashes = pixel_hash(original)
            self.counts.update(finite, original, hashes)
            for metric in self._that_want("pixels"):
                metric.update(reconstructed, original)
            for metric in self._that_want("indices"):
                if indices is None:
                    raise InputError(f'the metric "{metric.name}" needs indices')
                metric.update(indices.to(device))
            self._update_feature_metrics(reconstruction, reconstructed, hashes, real=False)
            self._update_feature_metrics(image, original, hashes, real=True)

    def compute(self) -> dict[str, float]:
        """As `MetricSuite`'s. Where a reconstruction was not finite, "nonfinite_images" counts them and every metric is
        NaN.
        """
        values = super().compute()
        assert self.seen is not None
        images, nonfinite = int(self.seen.images), int(self.seen.nonfinite)
        if nonfinite > 0:
            self._note(
                f"{nonfinite} of {images} reconstructions have values that are not finite: no metric is reported"
            )
            values = {name: float("nan") for name in values}
            values |= {"images": float(images), "nonfinite_images": float(nonfinite)}
        return values
