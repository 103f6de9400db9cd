"""Small sets, broken models, other precisions."""

import math
import pickle
import warnings
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from scipy import linalg
from torch import Tensor
from torch.utils.data import DataLoader
from torch_fidelity.metric_fid import fid_statistics_to_metric

from gsq_lightning import InputError
from gsq_lightning.callbacks import Report
from gsq_lightning.metrics import CodebookUsage, MetricName, ReconstructionMetrics, SampleMetrics
from gsq_lightning.metrics.features import FeatureExtractor
from gsq_lightning.metrics.frechet import FeatureStatistics, frechet_distance
from gsq_lightning.pixels import image_to_pixels
from gsq_lightning.pretrained.backbones import ImageNetInput, load_dinov2
from gsq_lightning.reports import read_report


def pairs(count: int, size: int = 32) -> tuple[Tensor, Tensor]:
    image = torch.nn.functional.interpolate(torch.rand(count, 3, 5, 5), size=(size, size), mode="bicubic") * 2 - 1
    return image.clamp(-1, 1), image + 0.2 * torch.randn_like(image)


def metrics_of(names: list[str], image: Tensor, reconstruction: Tensor, batch_size: int = 64) -> ReconstructionMetrics:
    metrics = ReconstructionMetrics(cast(list[MetricName], names), inception_weights="random", statistics_folder=None)
    metrics.load()
    metrics.start()
    for start in range(0, len(image), batch_size):
        metrics.update(image[start : start + batch_size], reconstruction[start : start + batch_size])
    return metrics


def statistics(features: np.ndarray) -> FeatureStatistics:
    x = torch.from_numpy(features)
    return FeatureStatistics(x.sum(0), x.T @ x, torch.tensor(len(x)))


@pytest.mark.parametrize("count", [400, 20])
def test_distance_equals_the_formula(count: int) -> None:
    """With more images than features, and with fewer."""
    generator = np.random.default_rng(0)
    first = generator.normal(size=(count, 50)) @ generator.normal(size=(50, 50))
    second = 0.9 * first + generator.normal(size=(count, 50))
    covariances = [np.cov(x, rowvar=False) for x in (first, second)]
    # the root's trace from the smaller matrix of the samples, which has full rank where the covariance has not
    centered = [(x - x.mean(0)) / math.sqrt(count - 1) for x in (first, second)]
    root = linalg.svdvals(centered[0] @ centered[1].T).sum()
    if count > 50:
        assert root == pytest.approx(np.trace(linalg.sqrtm(covariances[0] @ covariances[1])).real)
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * root
    assert float(frechet_distance(statistics(first), statistics(second))) == pytest.approx(expected, rel=1e-9)


def test_distance_is_exact_where_the_usual_formula_rounds() -> None:
    """Near sets of fewer images than features: torch-fidelity takes roots of eigenvalues that ought to be 0."""
    generator = np.random.default_rng(0)
    first = generator.random(size=(12, 600)) * 2
    second = first + generator.normal(0, 0.001, size=first.shape)
    centered = [(x - x.mean(0)) / math.sqrt(11) for x in (first, second)]
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + sum((x**2).sum() for x in centered)
    expected -= 2 * linalg.svdvals(centered[0] @ centered[1].T).sum()
    usual = [{"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (first, second)]
    rounded = fid_statistics_to_metric(*usual, verbose=False)["frechet_inception_distance"]
    ours = float(frechet_distance(statistics(first), statistics(second)))
    assert ours == pytest.approx(expected, rel=1e-6)
    assert abs(rounded - expected) > 100 * abs(ours - expected)


def test_fewer_images_than_features_are_noted_with_both_numbers(caplog: pytest.LogCaptureFixture) -> None:
    metrics = metrics_of(["rfd_random"], *pairs(5))
    values = metrics.compute()
    assert values["rfd_random"] > 0
    assert metrics.notes == [
        "rfd_random is over 5 images, fewer than its 64 features: it is biased upwards, and comparable only with "
        "values over the same images"
    ]
    assert metrics.notes[0] in caplog.messages
    enough = metrics_of(["rfd_random"], *pairs(70))
    enough.compute()
    assert enough.notes == []


@pytest.mark.parametrize("count", [5, 70])
def test_identical_sets_are_at_distance_zero(count: int) -> None:
    image, _ = pairs(count)
    values = metrics_of(["rfd_random", "psnr", "psnr_set", "ssim"], image, image).compute()
    assert 0 <= values["rfd_random"] < 1e-9
    assert values["psnr"] == values["psnr_set"] == math.inf
    assert values["ssim"] == pytest.approx(1.0)


def test_one_image_has_no_frechet_distance() -> None:
    metrics = metrics_of(["psnr", "rfd_random"], *pairs(1))
    values = metrics.compute()
    assert set(values) == {"images", "psnr"}
    assert metrics.notes == ["rfd_random is left out: a Fréchet distance needs at least 2 images, there is 1"]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing was measured: there were no images, or none of them could be read"):
        metrics_of(["psnr", "rfd_random"], *pairs(0)).compute()
    with pytest.raises(InputError, match=r"nothing was measured: rfd_random is left out: .* there is 1"):
        metrics_of(["rfd_random"], *pairs(1)).compute()


def test_codes_are_those_of_the_last_validation() -> None:
    metrics = CodebookUsage(codebook_size=4)
    metrics.update(torch.tensor([[1], [1], [3]]))
    metrics.compute()
    assert metrics.uses is not None
    assert metrics.uses.tolist() == [0, 2, 0, 1]
    metrics.reset()
    assert metrics.uses is None


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_the_size_of_batches_does_not_matter(batch_size: int) -> None:
    image, reconstruction = pairs(20)
    names = ["psnr", "psnr_set", "ssim", "rfd_random"]
    whole = metrics_of(names, image, reconstruction, 20).compute()
    parts = metrics_of(names, image, reconstruction, batch_size).compute()
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_reconstructions_that_are_not_finite_are_said_and_not_averaged_away(bad: float) -> None:
    image, reconstruction = pairs(6)
    reconstruction[4, 1, 2, 3] = bad
    metrics = metrics_of(["psnr", "ssim", "rfd_random"], image, reconstruction, batch_size=4)
    values = metrics.compute()
    assert values["images"] == 6
    assert values["nonfinite_images"] == 1
    assert all(math.isnan(values[name]) for name in ("psnr", "ssim", "rfd_random"))
    assert metrics.notes[-1].startswith("1 of 6 reconstructions have values that are not finite")
    metrics.start()
    metrics.update(image, image)
    assert metrics.compute()["ssim"] == pytest.approx(1.0)  # the next validation is clean


def test_an_inception_score_needs_an_image_in_each_split() -> None:
    image, reconstruction = pairs(3)
    metrics = metrics_of(["inception_score"], image, reconstruction)
    with pytest.raises(InputError, match="inception_score is left out: one of its ten splits has no image"):
        metrics.compute()


def test_inception_looks_once_for_rfid_and_inception_score(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = metrics_of(["rfid", "inception_score"], *pairs(2))
    looks = []
    forward = FeatureExtractor.forward
    monkeypatch.setattr(FeatureExtractor, "forward", lambda self, x: looks.append(1) or forward(self, x))
    metrics.update(*pairs(2))
    assert len(looks) == 2  # originals, reconstructions


def test_metrics_are_float32_within_autocast() -> None:
    image, reconstruction = pairs(8)
    names = ["psnr", "ssim", "rfd_random"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = metrics_of(names, image, reconstruction).compute()
    assert within == metrics_of(names, image, reconstruction).compute()


def test_metrics_stay_exact_when_their_owner_is_cast() -> None:
    class Owner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.metrics = ReconstructionMetrics(["psnr", "rfd_random"], statistics_folder=None)
            self.metrics.load()

    image, reconstruction = pairs(8)
    expected = metrics_of(["psnr", "rfd_random"], image, reconstruction).compute()
    for cast_owner in (lambda x: x.to(torch.bfloat16), lambda x: x.half(), lambda x: x.double()):
        owner = cast_owner(Owner())
        owner.metrics.update(image, reconstruction)
        assert owner.metrics.compute() == expected


def test_rfd_dinov2_is_over_the_class_token() -> None:
    image, reconstruction = pairs(3)
    metrics = ReconstructionMetrics(["rfd_dinov2"], dinov2_weights="random", statistics_folder=None)
    metrics.load()
    metrics.update(image, reconstruction)
    with torch.no_grad():
        network = load_dinov2("random", 224).eval()
        features = [
            network(ImageNetInput(224)(image_to_pixels(x).float() / 127.5 - 1)).double().numpy()
            for x in (image, reconstruction)
        ]
    assert features[0].shape == (3, 384)
    expected = float(frechet_distance(*map(statistics, features)))
    assert metrics.compute()["rfd_dinov2"] == pytest.approx(expected, rel=1e-6)


def test_each_group_of_a_codebook_is_counted() -> None:
    metrics = ReconstructionMetrics(["codebook"], statistics_folder=None)
    metrics.load(codebook_size=4, num_groups=2)
    metrics.start()
    indices = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 3]]).view(1, 2, 2, 2)
    metrics.update(*pairs(1), indices)
    values = metrics.compute()
    assert (values["codebook_usage_group_0"], values["codebook_perplexity_group_0"]) == (0.25, 1.0)
    assert values["codebook_usage_group_1"] == 0.75
    assert values["codebook_perplexity_group_1"] == pytest.approx(np.exp(0.5 * np.log(4) + 0.5 * np.log(2)))
    assert values["codebook_usage"] == 1.0


def test_codebook_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match='"codebook" needs a tokenizer'):
        ReconstructionMetrics(["codebook"]).load()


def test_lpips_of_images_too_small_for_its_network_is_refused() -> None:
    metrics = ReconstructionMetrics(["lpips_alex"], alexnet_weights="random", statistics_folder=None)
    metrics.load()
    with pytest.raises(InputError, match="lpips_alex needs images of at least 31×31 pixels, these have 30×30"):
        metrics.update(*pairs(1, size=30))
    metrics.update(*pairs(1, size=31))
    assert metrics.compute()["lpips_alex"] > 0


class OtherProject(LightningModule):
    """As the docstring of ReconstructionMetrics says that others may own one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)
        self.metrics = ReconstructionMetrics(["psnr", "rfd_random"], statistics_folder=None)

    def setup(self, stage: str) -> None:
        self.metrics.load()

    def on_validation_epoch_start(self) -> None:
        self.metrics.start()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.metrics.update(batch, self.layer(batch))

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.metrics.compute().items()})


def test_any_module_can_own_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, (image, _) = OtherProject(), pairs(10)
    run = Trainer(
        accelerator="cpu", logger=False, callbacks=[Report(name="other")], default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    run.validate(module, DataLoader(image, batch_size=4), verbose=False)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = metrics_of(["psnr", "rfd_random"], image, module.layer(image)).compute()
    report = read_report(tmp_path / "metrics.json")
    assert report.metrics == pytest.approx(expected, rel=1e-4)
    assert report.name == "other"
    assert set(module.state_dict()) == {"layer.weight", "layer.bias"}
    assert "rfd_random" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["original", "reconstruction", "real", "generated"])
def test_images_in_another_range_are_noticed(place: str) -> None:
    """Clamped to [-1, 1] they would give figures that look like any."""
    image, other = pairs(2)

    def update(changed: Tensor) -> None:
        if place in ("original", "reconstruction"):
            metrics = ReconstructionMetrics("psnr", statistics_folder=None)
            metrics.start()
            metrics.update(*((changed, other) if place == "original" else (image, changed)))
        else:
            SampleMetrics("rfd_random", statistics_folder=None).update(changed, real=place == "real")

    with pytest.raises(InputError, match=r"torch.uint8; it must be float in \[-1, 1\]"):
        update(image_to_pixels(image))
    with pytest.raises(InputError, match="values up to 255"):
        update(image_to_pixels(image).float().index_fill(0, torch.tensor(0), 255.0))
    with pytest.warns(UserWarning, match=r"lie in \[0, 1\]"):
        update(image.abs())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(image)
        if place in ("reconstruction", "generated"):
            update(1.5 * image)  # networks overshoot


@pytest.mark.parametrize("loaded", [False, True])
def test_metrics_go_to_other_processes(loaded: bool) -> None:
    image, reconstruction = pairs(3)
    samples = SampleMetrics(["rfd_random"], statistics_folder=None)
    metrics = ReconstructionMetrics(["psnr", "rfd_random"], statistics_folder=None)
    if loaded:
        metrics.load()
        samples.load()
    copy = pickle.loads(pickle.dumps(metrics))
    for one in (metrics, copy):
        one.update(image, reconstruction)
    assert copy.compute() == metrics.compute()
    assert pickle.loads(pickle.dumps(samples)).names == ["rfd_random"]
