"""Our metrics beside those of the programs that the field takes them from, on the same two folders of images.

    python benchmarks/metrics.py                                    # 1,000 crops of bundled photographs
    python benchmarks/metrics.py --count 100
    python benchmarks/metrics.py --root /data/imagenet/val --inception weights-inception-2015-12-05-6726825d.pth

Originals are 256×256; the reconstructions are what JPEG of a low quality leaves of them. Without files of weights all
programs get the same random ones: the arithmetic is that of the real ones, so agreement carries over, values do not.
With fewer images than Inception's 2,048 features the other programs' distances are low by about 1e-4, whatever the
distance: rounding, as a line shows over the same features. LPIPS, which is slow, is over the first images only. Needs
pytorch-fid and clean-fid (extra `dev`).
"""

import argparse
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lpips
import numpy as np
import pytorch_fid.fid_score
import pytorch_fid.inception
import torch
import torch_fidelity
from cleanfid import fid as clean_fid
from PIL import Image
from scipy import linalg
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.models import alexnet, vgg16
from torchvision.transforms.v2 import functional as F

from gsq_lightning.cli.evaluate import evaluate_folders
from gsq_lightning.data import PhotographsDataModule
from gsq_lightning.data.decoding import decode_image
from gsq_lightning.data.sampler import SampleKey
from gsq_lightning.data.sources import FolderSource
from gsq_lightning.data.transforms import ResizeAndCrop
from gsq_lightning.metrics import codebook_statistics
from gsq_lightning.metrics.frechet import FeatureStatistics, frechet_distance
from gsq_lightning.metrics.inception import inception_features, load_inception

JPEG_QUALITY = 12
FEW = 24


class Row(NamedTuple):
    """A value of ours, and of another program on the same images."""

    metric: str
    program: str
    ours: float
    theirs: float


def write_images(arguments: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Originals and reconstructions as PNG."""
    real, fake = folder / "real", folder / "fake"
    real.mkdir()
    fake.mkdir()
    for number in range(arguments.count):
        original = F.to_pil_image(arguments.image(number))
        original.save(real / f"{number:05d}.png")
        compressed = io.BytesIO()
        original.save(compressed, "JPEG", quality=JPEG_QUALITY)
        Image.open(compressed).save(fake / f"{number:05d}.png")
    return real, fake


def originals(arguments: argparse.Namespace) -> Callable[[int], Tensor]:
    if arguments.root is None:
        module = PhotographsDataModule(arguments.size, crops_per_epoch=arguments.count)
        crops = module.make_train_dataset()
        return lambda number: crops[SampleKey(0, number)].pixels  # type: ignore[union-attr]
    source = FolderSource(Path(arguments.root))
    if len(source) < arguments.count:
        raise SystemExit(f"{arguments.root} has {len(source)} images, fewer than --count {arguments.count}")
    transform = ResizeAndCrop(arguments.size, arguments.size)
    return lambda number: transform(decode_image(source.read(number)), torch.Generator)


def pixels_of(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


def weights_file(given: str | None, folder: Path, name: str, network: Callable[[], nn.Module]) -> str:
    if given is None:
        given = str(folder / name)
        torch.manual_seed(0)
        torch.save(network().state_dict(), given)
    return given


def theirs_of_distances(real: Path, fake: Path, inception: str, device: str) -> dict[str, tuple[str, float]]:
    """By our name: the program and its value."""
    cuda = device.startswith("cuda")
    fidelity = torch_fidelity.calculate_metrics(
        input1=str(real), input2=str(fake), fid=True, cuda=cuda, cache=False, verbose=False, save_cpu_ram=True,
        feature_extractor_weights_path=inception, batch_size=32,
    )["frechet_inception_distance"]  # fmt: skip

    metric = FrechetInceptionDistance(feature_extractor_weights_path=inception).to(device)
    for folder, is_real in ((real, True), (fake, False)):
        images = pixels_of(folder)
        for start in range(0, len(images), 32):
            batch = torch.from_numpy(np.stack(images[start : start + 32])).permute(0, 3, 1, 2)
            metric.update(batch.to(device), real=is_real)

    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: torch.load(inception, weights_only=True)
    of_pytorch_fid = pytorch_fid.fid_score.calculate_fid_given_paths([str(real), str(fake)], 32, device, 2048, 0)

    blocks = pytorch_fid.inception.InceptionV3().eval().to(device).blocks

    def trunk(image: Tensor) -> Tensor:  # clean-fid's own network is one more file to download
        x = (image - 128) / 128
        for block in blocks:
            x = block(x)
        return x.flatten(1)

    of_clean_fid = clean_fid.compare_folders(
        str(real), str(fake), trunk, "clean", num_workers=0, batch_size=32, device=torch.device(device), verbose=False
    )
    return {
        "rfid": ("torchmetrics", float(metric.compute())),
        "rfid, antialias: false": ("torch-fidelity", fidelity),
        "rfid_pytorch_fid": ("pytorch-fid", float(of_pytorch_fid)),
        "rfid_clean_fid": ("clean-fid", float(of_clean_fid)),
    }


def theirs_of_lpips(real: Path, fake: Path, trunk: str, state: dict[str, Tensor], count: int, device: str) -> float:
    package = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False).eval()
    own = {name: value for name, value in package.state_dict().items() if name.startswith("net.slice")}
    for name in own:
        _, _, layer, kind = name.split(".")
        own[name] = state[f"features.{layer}.{kind}"]
    package.load_state_dict(own, strict=False)
    package.to(device)
    total = 0.0
    for original, reconstruction in zip(pixels_of(real)[:count], pixels_of(fake)[:count], strict=True):
        pair = [
            torch.from_numpy(x).permute(2, 0, 1)[None].float().to(device) / 127.5 - 1
            for x in (original, reconstruction)
        ]
        with torch.no_grad():
            total += float(package(*pair))
    return total / count


def of_pixels(real: Path, fake: Path) -> dict[str, float]:
    originals, reconstructions = pixels_of(real), pixels_of(fake)
    psnr = [peak_signal_noise_ratio(a, b) for a, b in zip(originals, reconstructions, strict=True)]
    ssim = [
        structural_similarity(
            a.astype(float), b.astype(float), data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(originals, reconstructions, strict=True)
    ]  # fmt: skip
    of_set = peak_signal_noise_ratio(np.stack(originals), np.stack(reconstructions))
    return {"psnr": float(np.mean(psnr)), "psnr_set": float(of_set), "ssim": float(np.mean(ssim))}


def of_codebook() -> list[Row]:
    indices = np.random.default_rng(0).zipf(1.3, 1_000_000) % 8192
    counts = np.bincount(indices, minlength=8192)
    ours = codebook_statistics(torch.from_numpy(counts))
    share = counts[counts > 0] / counts.sum()
    return [
        Row("codebook usage", "numpy", float(ours.usage), np.count_nonzero(counts) / 8192),
        Row("codebook perplexity", "numpy", float(ours.perplexity), float(np.exp(-(share * np.log(share)).sum()))),
    ]


def of_formula(real: Path, fake: Path, inception: str, device: str) -> str:
    """What three ways of computing it make of the same features of a few images."""
    extractor = inception_features(inception, "tensorflow").to(device)
    features = []
    for folder in (real, fake):
        pixels = torch.from_numpy(np.stack(pixels_of(folder)[:FEW])).permute(0, 3, 1, 2)
        features.append(extractor(pixels.to(device)).pooled.double().cpu())
    ours = frechet_distance(*(FeatureStatistics(x.sum(0), x.T @ x, torch.tensor(len(x))) for x in features))
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(x) for x in features), False)
    centered = [((x - x.mean(0)) / (len(x) - 1) ** 0.5).numpy() for x in features]
    squares = sum(float((x**2).sum()) for x in centered) + float(
        (features[0].mean(0) - features[1].mean(0)).square().sum()
    )
    exact = squares - 2.0 * linalg.svdvals(centered[0] @ centered[1].T).sum()  # of images × images, which has full rank
    return (
        f"The same features of {len(features[0])} images: ours {float(ours):.12g}, from the matrix of the images "
        f"{exact:.12g}, torch-fidelity's formula {theirs['frechet_inception_distance']:.12g}"
    )


def measure(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    real, fake = write_images(arguments, folder)
    inception = weights_file(arguments.inception, folder, "inception.pth", lambda: load_inception("random"))
    settings = {"num_workers": 0, "device": arguments.device, "inception_weights": inception}
    started = time.perf_counter()
    names = ["psnr", "psnr_set", "ssim", "rfid", "rfid_pytorch_fid", "rfid_clean_fid"]
    ours = evaluate_folders(real, fake, names, **settings).metrics
    without = evaluate_folders(real, fake, ["rfid"], antialias=False, **settings).metrics
    ours["rfid, antialias: false"] = without["rfid"]
    print(f"ours took {time.perf_counter() - started:.0f} s", flush=True)

    print(of_formula(real, fake, inception, arguments.device), flush=True)
    rows = [Row(name, "scikit-image", ours[name], value) for name, value in of_pixels(real, fake).items()]
    rows += of_codebook()
    few = folder / "few"
    for source in (real, fake):
        (few / source.name).mkdir(parents=True)
        for path in sorted(source.iterdir())[: arguments.lpips]:
            (few / source.name / path.name).symlink_to(path)
    for trunk, option, given, network in (
        ("alex", "alexnet_weights", arguments.alexnet, alexnet),
        ("vgg", "vgg16_weights", arguments.vgg16, vgg16),
    ):
        path = weights_file(given, folder, f"{trunk}.pth", network)
        report = evaluate_folders(
            few / "real", few / "fake", [f"lpips_{trunk}"], num_workers=0, device=arguments.device, **{option: path}
        )
        state = torch.load(path, weights_only=True)
        value = theirs_of_lpips(real, fake, trunk, state, arguments.lpips, arguments.device)
        rows.append(Row(f"lpips_{trunk}", "lpips", report.metrics[f"lpips_{trunk}"], value))

    for name, (program, value) in theirs_of_distances(real, fake, inception, arguments.device).items():
        rows.append(Row(name, program, ours[name], value))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of originals; default: crops of bundled photographs")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--lpips", type=int, default=50, help="images for LPIPS")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    for network in ("inception", "alexnet", "vgg16"):
        parser.add_argument(f"--{network}", help="file of weights; default: random")
    arguments = parser.parse_args()
    arguments.lpips = min(arguments.lpips, arguments.count)
    arguments.image = originals(arguments)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        rows = measure(arguments, Path(folder))
    print(f"\n{arguments.count} images of {arguments.size}×{arguments.size}, LPIPS over {arguments.lpips}\n")
    print("| metric | program | ours | theirs | relative difference |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        difference = abs(row.ours - row.theirs) / abs(row.theirs)
        print(f"| {row.metric} | {row.program} | {row.ours:.8g} | {row.theirs:.8g} | {difference:.1e} |")


if __name__ == "__main__":
    main()
