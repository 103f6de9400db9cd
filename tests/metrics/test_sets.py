"""Kernel distance, precision and recall: of whole sets of features, against independent computations."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchvision.transforms.v2.functional import resize

from gsq_lightning.metrics import ReconstructionMetrics, SampleMetrics, feature_sets, kernel
from gsq_lightning.metrics.features import EfficientNetInput, Features, efficientnet_features
from gsq_lightning.metrics.kernel import KernelDistance, kernel_distance, partners_of
from gsq_lightning.metrics.precision_recall import PrecisionRecall, precision_recall
from gsq_lightning.pixels import image_to_pixels
from gsq_lightning.pretrained.efficientnet import load_efficientnet_lite0


def feature_sets_of(first: int, second: int, channels: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(first, channels, generator=generator),
        1.1 * torch.randn(second, channels, generator=generator) + 0.2,
    )


def unbiased_mmd(x: np.ndarray, y: np.ndarray, pairs: Sequence[tuple[int, int]] = ()) -> float:
    """arXiv 1801.01401, equation 4, with its kernel; without the kernels of some pairs of x and y."""
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    compared = np.ones_like(xy, dtype=bool)
    for pair in pairs:
        compared[pair] = False
    return float(within - 2 * xy[compared].mean())


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several of them, and a last one that is not full."""
    monkeypatch.setattr(kernel, "TILE", 300)


@pytest.mark.usefixtures("small_tiles")
def test_kernel_distance_over_all_images_equals_the_formula() -> None:
    first, second = feature_sets_of(700, 450)
    result = kernel_distance(first, second)
    assert result.of_all == pytest.approx(unbiased_mmd(first.double().numpy(), second.double().numpy()), rel=1e-6)
    assert result.mean is None  # fewer than a subset has


@pytest.mark.usefixtures("small_tiles")
def test_kernel_distance_over_subsets_equals_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same subsets, of which it reports mean and deviation."""
    monkeypatch.setattr(kernel, "SUBSETS", 8)
    first, second = feature_sets_of(1300, 1100)
    result = kernel_distance(first, second)
    theirs = kid_features_to_metric(first.double(), second.double(), kid_subsets=8, kid_subset_size=1000, verbose=False)
    assert result.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert result.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)
    assert result.of_all == pytest.approx(unbiased_mmd(first.double().numpy(), second.double().numpy()), rel=1e-6)


def test_of_as_many_images_as_a_subset_has_each_subset_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "SUBSETS", 2)
    first, second = feature_sets_of(1000, 1000)
    result = kernel_distance(first, second)
    assert result.mean == pytest.approx(result.of_all, rel=1e-9)
    assert result.std == pytest.approx(0.0, abs=1e-12)
    assert kernel_distance(first[1:], second).mean is None


def test_few_images_do_not_bias_the_kernel_distance() -> None:
    """Of halves of one set it is about 0, as often below as above, where a Fréchet distance is far above."""
    first, second = feature_sets_of(4000, 0)[0].view(40, 2, 50, 16).unbind(dim=1)
    distances = [kernel_distance(x, y).of_all for x, y in zip(first, second, strict=True)]
    assert 10 <= sum(distance < 0 for distance in distances) <= 30
    assert abs(np.mean(distances)) < 3 * np.std(distances) / np.sqrt(40)


def test_perfect_reconstructions_are_at_kernel_distance_0() -> None:
    """None is compared with its own image, as no image is with itself: all three means are of the same pairs."""
    metrics = ReconstructionMetrics(["psnr"], own=[KernelDistance("rkd_random", "random", 64)])
    image = torch.rand(9, 3, 16, 16) * 2 - 1
    for part in image.split(4):
        metrics.update(part, part)
    assert metrics.compute()["rkd_random"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.usefixtures("small_tiles")
def test_an_image_is_not_compared_with_its_own_reconstruction() -> None:
    first, second = feature_sets_of(700, 450)
    partners = torch.full((450,), -1)
    partners[5:400:3] = torch.randperm(700)[: len(partners[5:400:3])]
    pairs = [(int(partners[j]), j) for j in range(5, 400, 3)]
    distance = kernel_distance(first, second, partners).of_all
    assert distance == pytest.approx(unbiased_mmd(first.double().numpy(), second.double().numpy(), pairs), rel=1e-6)
    assert kernel_distance(first, second).of_all != pytest.approx(distance, rel=1e-4)


@pytest.mark.usefixtures("small_tiles")
def test_nor_is_it_in_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "SUBSETS", 3)
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 400)
    first, second = feature_sets_of(700, 500)
    members = [member.bool() for member in kernel._draw_subsets(700, 500, torch.device("cpu"))]
    partners = torch.arange(100, 600)
    expected = []
    for in_first, in_second in zip(*members, strict=True):
        i, j = (member.nonzero().squeeze(1) for member in (in_first, in_second))
        pairs = [(int(a), int(b)) for a, b in (i[:, None] == partners[j][None, :]).nonzero()]
        assert pairs
        expected.append(unbiased_mmd(first[i].double().numpy(), second[j].double().numpy(), pairs))
    result = kernel_distance(first, second, partners)
    assert result.mean == pytest.approx(np.mean(expected), rel=1e-6)
    assert result.std == pytest.approx(np.std(expected), rel=1e-6)


def test_pairs_do_not_bias_the_kernel_distance() -> None:
    """Two noisy views of each thing: the same distribution, so that the true distance is 0."""
    things, first_noise, second_noise = torch.randn(3, 60, 30, 16, generator=torch.Generator().manual_seed(3)).double()
    partners = torch.arange(30)
    first, second = things + 0.3 * first_noise, things + 0.3 * second_noise
    paired = np.array([kernel_distance(x, y, partners).of_all for x, y in zip(first, second, strict=True)])
    full = np.array([kernel_distance(x, y).of_all for x, y in zip(first, second, strict=True)])
    assert abs(paired.mean()) < 3 * paired.std() / np.sqrt(60)
    assert full.mean() < -3 * full.std() / np.sqrt(60)
    assert all(kernel_distance(x, x, partners).of_all == 0.0 for x in first)


def test_partners_have_the_same_hash_and_are_taken_once() -> None:
    hashes, others = torch.tensor([1, 3, 3, 3, 7, 9]), torch.tensor([0, 1, 3, 3, 8])
    assert partners_of(hashes, others).tolist() == [1, 2, 3, -1, -1, -1]
    assert partners_of(others, hashes).tolist() == [-1, 0, 1, 2, -1]


def batches(features: Tensor, hashes: Tensor, size: int) -> Iterator[tuple[Features, Tensor]]:
    for part, part_hashes in zip(features.split(size), hashes.split(size), strict=True):
        yield Features(part), part_hashes


def compared(metric: KernelDistance | PrecisionRecall, order: Tensor, size: int) -> dict[str, float]:
    sets = feature_sets_of(60, 60)
    hashes = torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:60]
    for side, real in zip(sets, (True, False), strict=True):
        for part in batches(side[order], hashes[order], size):
            metric.update(*part, real)
    return metric.values().values


@pytest.mark.parametrize("kind", [KernelDistance, PrecisionRecall])
def test_order_and_size_of_batches_do_not_matter(kind: type[KernelDistance | PrecisionRecall]) -> None:
    whole = compared(kind("name", "random", 16), torch.arange(60), 60)
    assert compared(kind("name", "random", 16), torch.randperm(60), 7) == whole


@pytest.mark.parametrize("images", [60, 25])
def test_more_images_than_memory_holds_are_a_choice_by_their_pixels(
    monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    """The same ones in any order, and both sets of the same originals."""
    monkeypatch.setattr(feature_sets, "MOST_IMAGES", 20)
    first, second = feature_sets_of(images, images)
    hashes = torch.randperm(1000)[:images]
    metric = KernelDistance("rkd", "random", 16)
    for side, real in ((first, True), (second, False)):
        for part in batches(side, hashes, 7):
            metric.update(*part, real)
    assert sum(map(len, metric.real)) < 2 * 20 + 7
    chosen = hashes.argsort()[:20]
    values, notes = metric.values()
    own = [(i, i) for i in range(20)]
    assert values["rkd"] == pytest.approx(unbiased_mmd(first[chosen].numpy(), second[chosen].numpy(), own), rel=1e-5)
    assert notes == ["rkd is over 20 images, chosen by their pixels"]


@pytest.mark.parametrize("kind", [KernelDistance, PrecisionRecall])
def test_originals_that_are_left_out_are_said(
    monkeypatch: pytest.MonkeyPatch, kind: type[KernelDistance | PrecisionRecall]
) -> None:
    """Where they alone are more than memory holds, as a whole training set."""
    monkeypatch.setattr(feature_sets, "MOST_IMAGES", 20)
    metric = kind("precision_recall", "random", 16)
    for real, images in ((True, 30), (False, 9)):
        metric.update(Features(torch.rand(images, 16)), torch.arange(images), real)
    assert metric.values().notes == ["precision_recall is against 20 of 30 originals, chosen by their pixels"]


@pytest.mark.parametrize(("real", "fake"), [(300, 200), (40, 90)])
def test_precision_and_recall_equal_torch_fidelity(real: int, fake: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsq_lightning.metrics.precision_recall.ROWS", 64)
    first, second = feature_sets_of(real, fake, channels=4)
    result = precision_recall(first, second)
    # it takes the generated images first
    theirs = prc_features_to_metric(second, first, prc_neighborhood=3, save_cpu_ram=False, verbose=False)
    assert result.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert result.recall == pytest.approx(theirs["recall"], abs=1e-6)
    assert 0.1 < result.precision < 1.0
    assert 0.1 < result.recall < 1.0


def test_precision_measures_quality_and_recall_variety() -> None:
    real = torch.randn(200, 4)
    assert precision_recall(real, real) == (1.0, 1.0)
    narrow = precision_recall(real, 0.1 * torch.randn(200, 4))
    wide = precision_recall(real, 10 * torch.randn(200, 4))
    assert narrow.precision > 0.9 > 0.5 > narrow.recall
    assert wide.recall > 0.9 > 0.5 > wide.precision


def test_too_few_images_leave_them_out() -> None:
    first, second = feature_sets_of(3, 3)
    metric = PrecisionRecall("precision_recall", "random", 16)
    distance = KernelDistance("rkd", "random", 16)
    for name in (metric, distance):
        name.update(Features(first), torch.arange(3), real=True)
    metric.update(Features(second), torch.arange(3), real=False)
    distance.update(Features(second[:1]), torch.arange(1), real=False)
    assert metric.values() == ({}, ["precision_recall is left out: it needs more than 3 images of each kind"])
    few = ({}, ["rkd is left out: a kernel distance needs at least 2 images, there is 1"])
    assert distance.values() == few
    distance.reset()
    distance.update(Features(first[:1]), torch.arange(1), real=True)
    distance.update(Features(second), torch.arange(3), real=False)
    assert distance.values() == few


def test_efficientnet_sees_pixels_as_it_was_trained_to() -> None:
    """(pixel - 127) / 128, after Pillow's antialiased resizing, which works on uint8."""
    from PIL import Image

    pixels = torch.nn.functional.interpolate(torch.rand(2, 3, 9, 9), size=(300, 260), mode="bicubic")
    pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    seen = efficientnet_features("random")(pixels).pooled
    network = load_efficientnet_lite0("random").eval()  # the same, as timm made it
    resized = [
        np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BILINEAR))
        for image in pixels
    ]
    x = (torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
    assert seen.shape == (2, 1280)
    torch.testing.assert_close(seen, expected, rtol=0.05, atol=0.02 * float(expected.abs().max()))


def test_generated_images_may_be_more_than_the_real_ones() -> None:
    real, fake = torch.rand(70, 3, 16, 16) * 2 - 1, torch.rand(80, 3, 12, 12) * 2 - 1
    metrics = SampleMetrics("rfd_random", statistics_folder=None)
    for images, is_real in ((real, True), (fake, False)):
        for batch in images.split(32):
            metrics.update(batch, is_real)
    values = metrics.compute()
    assert (values["images"], values["real_images"]) == (80, 70)
    network = metrics.extractors["random"]
    first, second = (network(image_to_pixels(x)).pooled.double().numpy() for x in (real, fake))
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    theirs = fid_statistics_to_metric(
        *({"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (first, second)), verbose=False
    )["frechet_inception_distance"]
    assert values["rfd_random"] == pytest.approx(theirs, rel=1e-3)


def test_equal_images_lie_within_their_own_manifold() -> None:
    """Whose balls have a radius of 0."""
    equal = torch.ones(5, 3)
    assert precision_recall(equal, equal) == (1.0, 1.0)


def test_efficientnet_sees_images_as_it_was_trained() -> None:
    """Resized with antialiasing, by torchvision, then (pixel - 127) / 128, as its authors have it."""
    pixels = torch.randint(0, 256, (2, 3, 300, 400), dtype=torch.uint8)
    expected = (resize(pixels.float(), [224, 224], antialias=True) - 127) / 128
    torch.testing.assert_close(EfficientNetInput()(pixels), expected)
