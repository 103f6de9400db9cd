"""What processes counted, each of its own images, is put together to what one would have counted of all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchmetrics import Metric

from gsq_lightning.metrics import CodebookUsage
from gsq_lightning.metrics.features import Features
from gsq_lightning.metrics.frechet import FrechetDistance
from gsq_lightning.metrics.images import ImageCounts
from gsq_lightning.metrics.inception_score import CLASSES, InceptionScore
from gsq_lightning.metrics.interface import FeatureMetric, PixelMetric
from gsq_lightning.metrics.kernel import KernelDistance
from gsq_lightning.metrics.precision_recall import PrecisionRecall
from gsq_lightning.metrics.psnr import PeakSignalToNoise, SetPeakSignalToNoise
from gsq_lightning.metrics.ssim import StructuralSimilarity

NUMBER = 30
SHARES = [slice(0, 17), slice(17, 20), slice(20, 30)]  # of each process
METRICS: dict[str, Callable[[], Metric]] = {
    "codebook": lambda: CodebookUsage(40, num_groups=2),
    "psnr": PeakSignalToNoise,
    "psnr_set": SetPeakSignalToNoise,
    "ssim": StructuralSimilarity,
    "frechet": lambda: FrechetDistance("rfd", "random", 5),
    "inception_score": InceptionScore,
    "kernel": lambda: KernelDistance("rkd", "random", 5),
    "precision_recall": lambda: PrecisionRecall("precision_recall", "random", 5),
    "counts": ImageCounts,
}


def see(metric: Metric, images: slice) -> None:
    generator = torch.Generator().manual_seed(0)
    originals, others = torch.randint(0, 256, (2, NUMBER, 3, 12, 12), dtype=torch.uint8, generator=generator)
    pooled = torch.randn(2, NUMBER, 5, generator=generator)
    logits = torch.randn(NUMBER, CLASSES, generator=generator)
    indices = torch.randint(0, 20, (NUMBER, 2, 2, 2), generator=generator)
    hashes = torch.arange(NUMBER)
    if isinstance(metric, CodebookUsage):
        metric.update(indices[images])
    elif isinstance(metric, PixelMetric | SetPeakSignalToNoise):
        metric.update(others[images], originals[images])
    elif isinstance(metric, FeatureMetric):
        for side, real in enumerate((True, False)):
            metric.update(Features(pooled[side, images], logits[images]), hashes[images], real)
    else:
        size = 12 if images.start == 0 else 11  # a process whose images are larger
        metric.update(hashes[images] % 4 > 0, originals[images, :, :, :size], hashes[images])


def result(metric: Metric) -> dict[str, Any]:
    return metric.compute()._asdict() if isinstance(metric, ImageCounts) else metric.values().values  # type: ignore


def joined(parts: list[Metric]) -> Metric:
    """As each state says that it is reduced over processes."""
    whole, *others = parts
    for other in others:
        whole.merge_state(other)
    return whole


@pytest.mark.parametrize("name", METRICS)
def test_shares_make_the_whole(name: str) -> None:
    alone, *parts = (METRICS[name]() for _ in range(4))
    for share, part in zip(SHARES, parts, strict=True):
        see(alone, share)
        see(part, share)
    expected, got = result(alone), result(joined(parts))
    assert expected
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_distance_is_left_out_where_one_process_passed_over_its_originals() -> None:
    parts = [FrechetDistance("rfd", "random", 5) for _ in SHARES]
    for share, part in zip(SHARES, parts, strict=True):
        see(part, share)
    parts[1].update(None, torch.arange(100, 103), real=True)
    values, notes = joined(parts).values()  # type: ignore[operator]
    assert values == {}
    assert "rfd is left out: the original images are not those of which values were kept" in notes[0]
