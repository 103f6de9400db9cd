"""Our numbers beside those of the programs that the field takes them from, on the same folders of images.

All of them get the same random Inception weights, so that nothing is downloaded. `benchmarks/metrics.py` does it for
more images.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch import nn
from torch_fidelity.metric_isc import isc_features_to_metric

from gsq_lightning.cli.evaluate import evaluate_folders
from gsq_lightning.metrics.features import Features
from gsq_lightning.metrics.frechet import FeatureStatistics, frechet_distance
from gsq_lightning.metrics.images import pixel_hash
from gsq_lightning.metrics.inception import inception_features, load_inception
from gsq_lightning.pretrained.backbones import load_lpips
from tests.conftest import write_images

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other programs
COUNT = 4
SPLITS = 10  # of an Inception score, in all programs


def write_pairs(root: Path, size: tuple[int, int]) -> tuple[Path, Path]:
    """Originals, and reconstructions as a tokenizer that blurs and adds noise would make them."""
    generator = np.random.default_rng(5)
    (root / "fake").mkdir()
    for path in write_images(root / "real", COUNT, size, seed=4):
        pixels = np.asarray(Image.open(path)).astype(float)
        blurred = (pixels + np.roll(pixels, 1, axis=0) + np.roll(pixels, 1, axis=1)) / 3
        noisy = (blurred + generator.normal(0, 12, pixels.shape)).clip(0, 255).round().astype(np.uint8)
        Image.fromarray(noisy).save(root / "fake" / path.name)
    return root / "real", root / "fake"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Larger than Inception's input, where antialiasing matters most."""
    return write_pairs(tmp_path_factory.mktemp("proof"), size=(420, 360))


@pytest.fixture(scope="module")
def small_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pairs(tmp_path_factory.mktemp("small"), size=(48, 40))


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the file that the programs read."""
    path = tmp_path_factory.mktemp("weights") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(load_inception("random").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def ours(folders: tuple[Path, Path], inception: Path) -> dict[str, float]:
    """With the cache elsewhere; antialias on."""
    names = ["psnr", "psnr_set", "rfid", "rfid_pytorch_fid", "rfid_clean_fid"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GSQ_CACHE", str(inception.parent))
        return evaluate_folders(*folders, names, num_workers=0, batch_size=3, inception_weights=str(inception)).metrics


@pytest.fixture(scope="module")
def pytorch_fid_network(inception: Path) -> nn.Module:
    """pytorch-fid's own Inception."""
    pytorch_fid = pytest.importorskip("pytorch_fid.inception")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *_, **__: torch.load(inception))
        return pytorch_fid.InceptionV3().eval()


def pixels_of(folder: Path) -> torch.Tensor:
    """(N, 3, H, W) uint8."""
    return torch.stack(
        [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in sorted(folder.iterdir())]
    )


def test_rfid_without_antialias_is_torch_fidelitys(
    folders: tuple[Path, Path], inception: Path, ours: dict[str, float]
) -> None:
    real, fake = folders
    theirs = torch_fidelity.calculate_metrics(
        input1=str(real), input2=str(fake), fid=True, cuda=False, cache=False, verbose=False, save_cpu_ram=True,
        feature_extractor_weights_path=str(inception), batch_size=2,
    )["frechet_inception_distance"]  # fmt: skip
    report = evaluate_folders(
        real, fake, ["rfid"], num_workers=0, batch_size=3, antialias=False, inception_weights=str(inception)
    )
    assert report.metrics["rfid"] == pytest.approx(theirs, rel=1e-3)
    assert report.metrics["rfid"] != pytest.approx(ours["rfid"], rel=1e-3)  # antialiasing moves the value


def test_rfid_with_antialias_is_torchmetrics(
    folders: tuple[Path, Path], inception: Path, ours: dict[str, float]
) -> None:
    """The class of torchmetrics as a user would call it, its features and its distance."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature_extractor_weights_path=str(inception))
    for folder, real in zip(folders, (True, False), strict=True):
        metric.update(pixels_of(folder), real=real)
    assert ours["rfid"] == pytest.approx(float(metric.compute()), rel=1e-3)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Of features (N, F); test_metrics.py has it beside the formula."""
    features = [torch.from_numpy(features).double() for features in (first, second)]
    sums = [FeatureStatistics(x.sum(0), x.T @ x, torch.tensor(len(x))) for x in features]
    return float(frechet_distance(*sums))


def test_rfid_pytorch_fid_is_over_pytorch_fids_features(
    folders: tuple[Path, Path], pytorch_fid_network: nn.Module, ours: dict[str, float]
) -> None:
    """Its reading, resizing, scaling and network."""
    score = pytest.importorskip("pytorch_fid.fid_score")
    features = [
        score.get_activations(sorted(folder.iterdir()), pytorch_fid_network, 4, num_workers=0) for folder in folders
    ]
    assert ours["rfid_pytorch_fid"] == pytest.approx(distance(*features), rel=1e-3)


def test_rfid_clean_fid_is_over_clean_fids_features(
    folders: tuple[Path, Path], pytorch_fid_network: nn.Module, ours: dict[str, float]
) -> None:
    """Its reading and resizing; of its network, which is one file to download, the same trunk from pytorch-fid."""
    fid = pytest.importorskip("cleanfid.fid")
    features = [
        fid.get_folder_features(
            str(folder),
            clean_fid_network(pytorch_fid_network),
            num_workers=0,
            device=torch.device("cpu"),
            verbose=False,
        )
        for folder in folders
    ]
    assert ours["rfid_clean_fid"] == pytest.approx(distance(*features), rel=1e-3)


@pytest.mark.slow  # two matrix roots of 2048×2048 by scipy
def test_rfid_is_that_of_pytorch_fid_and_clean_fid_called_directly(
    folders: tuple[Path, Path],
    inception: Path,
    pytorch_fid_network: nn.Module,
    ours: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = pytest.importorskip("pytorch_fid.inception")
    score = pytest.importorskip("pytorch_fid.fid_score")
    fid = pytest.importorskip("cleanfid.fid")
    monkeypatch.setattr(network, "load_state_dict_from_url", lambda *_, **__: torch.load(inception))
    theirs = score.calculate_fid_given_paths([str(folder) for folder in folders], 4, "cpu", 2048, num_workers=0)
    assert ours["rfid_pytorch_fid"] == pytest.approx(theirs, rel=1e-3)
    theirs = fid.compare_folders(
        str(folders[0]), str(folders[1]), clean_fid_network(pytorch_fid_network), "clean", num_workers=0,
        device=torch.device("cpu"), verbose=False,
    )  # fmt: skip
    assert ours["rfid_clean_fid"] == pytest.approx(theirs, rel=1e-3)


def clean_fid_network(pytorch_fid_network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """(B, 3, 299, 299) in [0, 255] → (B, 2048), as clean-fid's network takes it."""
    trunk = nn.ModuleList(pytorch_fid_network.blocks)  # type: ignore[arg-type]

    def run(image: torch.Tensor) -> torch.Tensor:
        x = (image - 128) / 128
        for block in trunk:
            x = block(x)
        return x.flatten(1)

    return run


def test_preparations_differ_by_more_than_the_programs_agree(ours: dict[str, float]) -> None:
    values = [ours["rfid"], ours["rfid_pytorch_fid"], ours["rfid_clean_fid"]]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert values[first] != pytest.approx(values[second], rel=1e-3)


def test_psnr_of_each_image_and_of_the_set(folders: tuple[Path, Path], ours: dict[str, float]) -> None:
    originals, reconstructions = (pixels_of(folder).permute(0, 2, 3, 1).numpy() for folder in folders)
    of_each = [peak_signal_noise_ratio(a, b) for a, b in zip(originals, reconstructions, strict=True)]
    assert ours["psnr"] == pytest.approx(np.mean(of_each), abs=1e-9)
    assert ours["psnr_set"] == pytest.approx(peak_signal_noise_ratio(originals, reconstructions), abs=1e-9)
    assert ours["psnr_set"] < ours["psnr"]


@pytest.mark.parametrize("trunk", ["alex", "vgg"])
def test_lpips_is_the_packages(small_folders: tuple[Path, Path], trunk: str, tmp_path: Path) -> None:
    """Read from torchvision's file, as its weights are published."""
    import torchvision

    torch.manual_seed(2)
    published = (torchvision.models.alexnet if trunk == "alex" else torchvision.models.vgg16)()
    state = {name: value for name, value in published.state_dict().items() if name.startswith("features.")}
    torch.save(state, tmp_path / "trunk.pth")
    option = {"alex": "alexnet_weights", "vgg": "vgg16_weights"}[trunk]
    report = evaluate_folders(
        *small_folders,
        [f"lpips_{trunk}"],
        num_workers=0,
        batch_size=3,
        **{option: str(tmp_path / "trunk.pth")},  # type: ignore[arg-type]
    )
    package = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False).eval()
    own = {name: value for name, value in package.state_dict().items() if name.startswith("net.slice")}
    for name in own:
        _, _, layer, kind = name.split(".")
        own[name] = state[f"features.{layer}.{kind}"]
    package.load_state_dict(own, strict=False)
    originals, reconstructions = (pixels_of(folder).float() / 127.5 - 1 for folder in small_folders)
    with torch.no_grad():
        theirs = float(package(originals, reconstructions).mean())
    assert theirs > 1e-3
    assert report.metrics[f"lpips_{trunk}"] == pytest.approx(theirs, rel=1e-5)


def test_inception_score_is_torch_fidelitys_on_the_same_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own function over each split, on features of which our class knows nothing."""
    from gsq_lightning.metrics.inception_score import InceptionScore

    images = torch.randint(0, 256, (200, 3, 4, 4), dtype=torch.uint8)
    logits = 3 * torch.randn(200, 1008)
    metric = InceptionScore()
    for start in range(0, 200, 30):
        part = slice(start, start + 30)
        metric.update(Features(logits[part], logits[part]), pixel_hash(images[part]))
    splits = pixel_hash(images) % SPLITS
    scores = [
        isc_features_to_metric(logits[splits == split], splits=1, shuffle=False)["inception_score_mean"]
        for split in range(SPLITS)
    ]
    result = metric.compute()
    assert float(result.mean) == pytest.approx(np.mean(scores), rel=1e-9)
    assert float(result.std) == pytest.approx(np.std(scores), rel=1e-9)
    assert torch.bincount(splits).max() < 3 * torch.bincount(splits).min()  # the hash deals fairly


def test_logits_are_torch_fidelitys(inception: Path, folders: tuple[Path, Path]) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(inception))
    pixels = pixels_of(folders[0])[:3]
    pooled, logits = theirs(pixels)
    seen = inception_features(str(inception), "tensorflow")(pixels)
    torch.testing.assert_close(seen.pooled, pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen.logits, logits, rtol=1e-5, atol=1e-5)


def test_random_lpips_weights_are_the_same_each_time() -> None:
    first, second = (load_lpips("alex", "random").state_dict() for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
