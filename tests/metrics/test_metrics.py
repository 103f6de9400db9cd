"""Metrics against independent computations."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import linalg
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from gsq_lightning import InputError
from gsq_lightning.metrics import CodebookUsage, MetricOptions, ReconstructionMetrics, SampleMetrics, ssim
from gsq_lightning.metrics.catalog import CONCERNED, MetricName
from gsq_lightning.metrics.features import RandomFeatures, random_features
from gsq_lightning.metrics.images import ImageCounts, pixel_hash
from gsq_lightning.metrics.inception import load_inception
from gsq_lightning.metrics.psnr import PeakSignalToNoise, SetPeakSignalToNoise
from gsq_lightning.pixels import image_to_pixels, pixels_to_image
from gsq_lightning.reports import EvaluationReport, comparison_lines, report_row


def pairs(count: int = 5, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.nn.functional.interpolate(torch.rand(count, 3, 5, 5), size=(size, size), mode="bicubic") * 2 - 1
    return image.clamp(-1, 1), image + 0.2 * torch.randn_like(image)


def computed(names: list[str], image: torch.Tensor, reconstruction: torch.Tensor) -> dict[str, float]:
    metrics = ReconstructionMetrics(cast(list[MetricName], names))
    metrics.load(codebook_size=4, num_groups=2)
    for start in range(0, len(image), 2):  # batches of 2, 2, 1
        part = slice(start, start + 2)
        metrics.update(image[part], reconstruction[part], torch.zeros(1, 1, 1, 2, dtype=torch.int64))
    return metrics.compute()


def test_images_that_exchange_a_pixel_are_other_images() -> None:
    """A hash of all originals says whether two reports are of the same; their order does not matter."""

    def hash_of(image: torch.Tensor) -> int:
        counts = ImageCounts()
        counts.update(torch.ones(len(image), dtype=torch.bool), image, pixel_hash(image))
        return int(counts.compute().hash)

    image = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    exchanged = image.clone()
    exchanged[:2, 0, 0, 0] = torch.tensor([10, 20], dtype=torch.uint8)
    image[:2, 0, 0, 0] = torch.tensor([20, 10], dtype=torch.uint8)
    assert hash_of(exchanged) != hash_of(image)
    assert hash_of(image.flip(0)) == hash_of(image)


def test_psnr_and_ssim_equal_scikit_image() -> None:
    image, reconstruction = pairs()
    got = computed(["psnr", "psnr_set", "ssim"], image, reconstruction)
    originals, reconstructions = (image_to_pixels(x).permute(0, 2, 3, 1).numpy() for x in (image, reconstruction))
    psnr = [peak_signal_noise_ratio(a, b) for a, b in zip(originals, reconstructions, strict=True)]
    similarity = [
        structural_similarity(
            a.astype(np.float64),
            b.astype(np.float64),
            data_range=255,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(originals, reconstructions, strict=True)
    ]
    assert got["psnr"] == pytest.approx(np.mean(psnr), abs=1e-4)
    assert got["psnr_set"] == pytest.approx(peak_signal_noise_ratio(originals, reconstructions), abs=1e-9)
    assert got["ssim"] == pytest.approx(np.mean(similarity), abs=1e-12)


@pytest.mark.parametrize("kind", [PeakSignalToNoise, SetPeakSignalToNoise])
def test_errors_of_a_large_image_do_not_overflow(kind: type[PeakSignalToNoise | SetPeakSignalToNoise]) -> None:
    """Black for white: 2^31 is passed at 105×105 pixels."""
    metric, black = kind(), torch.zeros(1, 3, 120, 120, dtype=torch.uint8)
    metric.update(black, black + 255)
    assert float(metric.compute()) == 0.0


def test_images_are_counted_with_their_sizes() -> None:
    counts = ImageCounts()
    for width, words in ((4, "4×4"), (6, "several")):
        image = torch.zeros(3, 3, 4, width, dtype=torch.uint8)
        counts.update(torch.tensor([False, True, False]), image, pixel_hash(image))
        assert counts.compute().size_in_words == words
    images, nonfinite, pixels, smallest, largest, _ = (value.tolist() for value in counts.compute())
    assert (images, nonfinite, pixels) == (6, 4, 3 * 4 * 4 + 3 * 4 * 6)
    assert (smallest, largest) == ([4, 4], [4, 6])


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (6, 1, 32, 32), (6, 3, 32, 31), (3, 32, 32)])
def test_shapes_that_do_not_fit_give_no_figures(shape: tuple[int, ...]) -> None:
    image = torch.rand(6, 3, 32, 32) * 2 - 1
    with pytest.raises(InputError, match=r"the image is \(6, 3, 32, 32\), its reconstruction "):
        ReconstructionMetrics(["psnr", "ssim"]).update(image, torch.zeros(shape))
    for metric in (PeakSignalToNoise(), SetPeakSignalToNoise(), ssim.StructuralSimilarity()):
        with pytest.raises(InputError, match=r"both must be the same \(B, 3, H, W\)"):
            metric.update(torch.zeros(shape, dtype=torch.uint8), image_to_pixels(image))


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([[16, 0]]), "indices are from 0 to 16; codes are 0 to 15"),
        (torch.tensor([[0, -1]]), "indices are from -1 to 0"),
        (torch.tensor([[3]]), "must be the 2 groups"),
    ],
)
def test_indices_that_are_no_codes_are_not_counted(indices: torch.Tensor, message: str) -> None:
    usage = CodebookUsage(16, 2)
    with pytest.raises(InputError, match=message):
        usage.update(indices)
    usage.update(torch.tensor([[15, 0]]))
    usage.reset()  # after which the next batch is checked again
    with pytest.raises(InputError, match=message):
        usage.update(indices)


def test_ssim_with_the_rim_equals_torchmetrics() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    image, reconstruction = pairs(3, size=40)
    metrics = ReconstructionMetrics("ssim", ssim_rim=True)
    metrics.update(image, reconstruction)
    pixels = [image_to_pixels(x).double() for x in (reconstruction, image)]
    expected = float(structural_similarity_index_measure(*pixels, data_range=255.0))
    assert metrics.compute()["ssim"] == pytest.approx(expected, abs=1e-12)
    assert metrics.compute()["ssim"] != pytest.approx(computed(["ssim"], image, reconstruction)["ssim"], abs=1e-3)
    assert "rim" in metrics.protocols["ssim"]
    assert any("rim" in note for note in metrics.notes)


def test_ssim_does_not_depend_on_how_many_images_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (2, 5, 3, 20, 31), dtype=torch.uint8)
    whole = ssim.structural_similarity(*images)
    monkeypatch.setattr(ssim, "PIXELS_AT_ONCE", 2 * 3 * 20 * 31)
    assert torch.equal(ssim.structural_similarity(*images), whole)


def test_rfd_random_equals_the_formula() -> None:
    image, reconstruction = pairs(count=90)
    got = computed(["rfd_random"], image, reconstruction)["rfd_random"]
    torch.manual_seed(0)
    network = RandomFeatures()
    with torch.no_grad():
        features = [network(image_to_pixels(x)).double().numpy() for x in (image, reconstruction)]
    means, covariances = [f.mean(0) for f in features], [np.cov(f, rowvar=False) for f in features]
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * np.real(root))
    assert got == pytest.approx(expected, rel=1e-3)


def test_rfd_random_is_the_same_whatever_was_drawn_before_and_leaves_the_stream_alone() -> None:
    first = random_features()
    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    second = random_features()
    assert torch.equal(torch.rand(1), expected)
    for ours, theirs in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_metrics_hold_no_weights() -> None:
    metrics = ReconstructionMetrics(["psnr", "ssim", "codebook", "rfd_random"])
    metrics.load(8, 2)
    assert metrics.state_dict() == {}
    assert list(metrics.parameters()) == []


def test_inception_with_random_weights_gives_2048_features_whatever_the_size() -> None:
    network = load_inception("random")
    with torch.no_grad():
        features = network(torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8))
    assert features.shape == (1, 2048)
    assert features.isfinite().all()
    assert features.std() > 0


def test_codebook_usage_and_perplexity_equal_a_count() -> None:
    metric = CodebookUsage(codebook_size=10, num_groups=3)
    batches = [torch.randint(0, 7, (2, 4, 5, 3)), torch.randint(2, 4, (1, 4, 5, 3))]
    for batch in batches:
        metric.update(batch)
    flat = np.concatenate([batch.reshape(-1, 3).numpy() for batch in batches])
    values, _ = metric.values()
    for suffix, column in [("", flat.ravel()), *((f"_group_{group}", flat[:, group]) for group in range(3))]:
        usage, perplexity = counted(column, 10)
        assert values[f"codebook_usage{suffix}"] == usage
        assert values[f"codebook_perplexity{suffix}"] == pytest.approx(perplexity)


def counted(indices: np.ndarray, codebook_size: int) -> tuple[float, float]:
    """Usage and perplexity."""
    counts = np.bincount(indices, minlength=codebook_size)
    share = counts[counts > 0] / counts.sum()
    return np.count_nonzero(counts) / codebook_size, float(np.exp(-(share * np.log(share)).sum()))


def test_codebooks_of_their_own_are_not_pooled() -> None:
    """Eight codebooks, of each of which one code of 64 is in use, are not one codebook with eight in use."""
    metric = CodebookUsage(codebook_size=64, num_groups=8, num_codebooks=8)
    metric.update(torch.arange(8).expand(5, 8))
    assert metric.values().values["codebook_usage"] == 1 / 64
    assert metric.values().values["codebook_perplexity"] == 1.0
    metric.update(torch.arange(8, 16).expand(5, 8))
    assert metric.values().values["codebook_usage"] == 2 / 64
    assert metric.values().values["codebook_perplexity"] == pytest.approx(2.0)
    assert metric.uses is not None
    expected = torch.zeros(8, 64, dtype=torch.int64)
    for group in range(8):
        expected[group, [group, group + 8]] = 5
    assert torch.equal(metric.uses, expected.flatten())
    shared = CodebookUsage(codebook_size=64, num_groups=8)
    shared.update(torch.arange(8).expand(5, 8))
    assert shared.values().values["codebook_usage"] == 8 / 64
    assert shared.values().values["codebook_perplexity"] == pytest.approx(8.0)


def test_metrics_loaded_for_another_codebook_count_that_one() -> None:
    metrics = ReconstructionMetrics("codebook", statistics_folder=None)
    image = torch.zeros(1, 3, 8, 8)
    for size in (64, 16):
        metrics.load(codebook_size=size)
        metrics.start()
        metrics.update(image, image, torch.zeros(1, 2, 2, 1, dtype=torch.int64))
        assert metrics.compute()["codebook_usage"] == 1 / size


def test_ssim_below_its_window_is_refused() -> None:
    with pytest.raises(InputError, match="at least 11×11 pixels, these have 8×8"):
        computed(["ssim"], torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_codebook_of_one_code_and_of_none_seen() -> None:
    metric = CodebookUsage(codebook_size=1)
    assert list(metric.values().values.values()) == [0.0, 1.0, 0.0]
    metric.update(torch.zeros(3, 1, dtype=torch.int64))
    assert list(metric.values().values.values()) == [1.0, 1.0, 1.0]


def test_reset_forgets() -> None:
    image, reconstruction = pairs()
    metrics = ReconstructionMetrics(["psnr", "codebook"])
    metrics.load(4, 1)
    metrics.update(image, -image, torch.zeros(1, 1, 1, 1, dtype=torch.int64))
    metrics.reset()
    metrics.update(image, reconstruction, torch.zeros(1, 1, 1, 1, dtype=torch.int64))
    assert metrics.compute()["psnr"] == pytest.approx(computed(["psnr"], image, reconstruction)["psnr"], abs=1e-4)


def test_pixels_are_clamped_and_rounded() -> None:
    image = torch.tensor([-7.0, -1.0, 0.0, 1.0, 1.2, 100 / 127.5 - 1 + 0.4 / 127.5, 100 / 127.5 - 1 + 0.6 / 127.5])
    assert image_to_pixels(image).tolist() == [0, 0, 128, 255, 255, 100, 101]
    assert image_to_pixels(image, truncate=True).tolist() == [0, 0, 127, 255, 255, 100, 100]
    every = torch.arange(256, dtype=torch.uint8)
    for truncate in (False, True):  # what an image file holds comes back, whatever float32 rounds
        assert torch.equal(image_to_pixels(pixels_to_image(every), truncate), every)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["psnr", "psnr"], "names one of them twice"),
        (["psnr", "fid"], "a metric is 'fid'; it must be one of: psnr, psnr_set, "),
        ("PSNR", "a metric is 'PSNR'; it must be one of: psnr, "),
        ([], "metrics is empty"),
    ],
)
def test_wrong_names_are_refused_when_metrics_are_made(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ReconstructionMetrics(names)  # type: ignore[arg-type]


def test_metrics_that_nobody_loaded_load_themselves() -> None:
    image, reconstruction = pairs()
    names = ["psnr", "rfd_random"]
    metrics = ReconstructionMetrics(names, statistics_folder=None)  # type: ignore[arg-type]
    metrics.update(image, reconstruction)
    assert metrics.compute() == pytest.approx(computed(names, image, reconstruction))


def test_generated_images_are_truncated_where_asked() -> None:
    """By half a step at each pixel, so that what is rounded is another image."""
    image = pixels_to_image(image_to_pixels(pairs(3)[0]).clamp(0, 254))
    scores = []
    for truncate, shift in ((True, 0.8), (True, 0.0), (False, 0.8)):
        options = MetricOptions(inception_weights="random", truncate=truncate)
        metrics = SampleMetrics("kid", options, statistics_folder=None)
        metrics.update(image, real=True)
        metrics.update(image.flip(-1) + shift * 2 / 255, real=False)
        scores.append(metrics.compute()["kid"])
    assert scores[0] == scores[1] != scores[2]


def test_two_protocols_of_one_metric_are_kept_apart_in_reports_and_comparisons() -> None:
    """The field's rFID and the one of the paper's reference: another value, under a protocol that says so."""
    image, reconstruction = pairs(3)
    rows = []
    for antialias, truncate in ((True, False), (False, True)):
        metrics = ReconstructionMetrics(
            "rfid", inception_weights="random", antialias=antialias, truncate=truncate, statistics_folder=None
        )
        metrics.update(image, reconstruction)
        report = EvaluationReport(f"truncate {truncate}", metrics.compute(), metrics.notes, protocols=metrics.protocols)
        rows.append(report_row(report))
    assert rows[0].metrics["rfid"] != rows[1].metrics["rfid"]
    assert "truncated" in metrics.protocols["rfid"]
    assert any("without antialiasing: rfid" in note for note in metrics.notes)
    assert any("truncated to uint8, not rounded: rfid" in note for note in metrics.notes)
    assert any(line.startswith("not comparable in protocol of rfid") for line in comparison_lines(rows))


@pytest.mark.parametrize(
    "name",
    [
        *("psnr", "lpips_alex", "lpips_vgg", "rfid", "rfid_pytorch_fid", "rfid_clean_fid", "rfd_dinov2"),
        "rkd_efficientnet",
    ],
)
def test_weights_that_a_metric_does_not_read_are_without_effect(name: MetricName) -> None:
    """It loads all the same where they are missing, and misses the others."""
    weights: dict[str, Any] = {option: f"{option}.pth" for option in CONCERNED if option.endswith("_weights")}
    unused = list(weights)
    try:
        metrics = ReconstructionMetrics(name, **weights)
        metrics.load()
    except InputError as error:
        (read,) = [option for option in unused if f"{option}.pth" in str(error)]
        unused.remove(read)
        metrics = ReconstructionMetrics(name, **{**weights, read: "random"})
        metrics.load()
    assert metrics.options_without_effect == unused
    assert (len(unused) == 5) == (name == "psnr")


def test_options_of_a_preparation_are_without_effect_on_others() -> None:
    metrics = ReconstructionMetrics(["psnr"], antialias=False, truncate=True, ssim_rim=True)
    metrics.load()
    assert metrics.options_without_effect == ["antialias", "truncate", "ssim_rim"]
    metrics = ReconstructionMetrics(
        ["ssim", "inception_score"], "random", antialias=False, truncate=True, ssim_rim=True
    )
    metrics.load()
    assert metrics.options_without_effect == []
