"""`gsq evaluate`: reconstructions that lie in a folder."""

import errno
import math
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch_fidelity.metric_prc import prc_features_to_metric
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize, to_pil_image

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, TokenizerModule
from gsq_lightning.__main__ import main
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.data.pairs import ImagePairs
from gsq_lightning.metrics import ReconstructionMetrics
from gsq_lightning.metrics.features import FeatureExtractor, efficientnet_features
from gsq_lightning.reports import read_report
from gsq_lightning.reports import report as report_module
from tests.conftest import write_images


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Originals in classes, and darker copies of them under the same names with another suffix."""
    for number, name in enumerate(("cats", "dogs")):
        for path in write_images(tmp_path / "real" / name, 3, seed=number):
            (tmp_path / "fake" / name).mkdir(parents=True, exist_ok=True)
            pixels = np.asarray(Image.open(path))
            Image.fromarray((pixels * 0.9).astype(np.uint8)).save(tmp_path / "fake" / name / f"{path.stem}.bmp")
    return tmp_path / "real", tmp_path / "fake"


def evaluate(*arguments: object) -> None:
    main(["evaluate", "--num_workers=0", "--device=cpu", *map(str, arguments)])


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit_info:
        evaluate(*arguments)
    assert exit_info.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gsq: error: ")]
    return line


def test_files_of_the_same_path_are_compared(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    real, fake = folders
    evaluate("--real", real, "--fake", fake, "--metrics", "[psnr,rfd_random]", "--bits_per_image", 720)
    report = read_report(Path(f"{fake}-report") / "metrics.json")
    expected = [
        peak_signal_noise_ratio(
            np.asarray(Image.open(path)), np.asarray(Image.open(fake / path.parent.name / f"{path.stem}.bmp"))
        )
        for path in real.glob("*/*.png")
    ]
    assert report.metrics["psnr"] == pytest.approx(np.mean(expected), rel=1e-9)
    assert report.metrics["images"] == 6
    assert report.metrics["bits_per_pixel"] == 0.5
    assert (report.name, report.image_size) == ("fake", "36×40")
    assert "PSNR" in capsys.readouterr().out


def test_files_that_are_left_out_are_noted(folders: tuple[Path, Path]) -> None:
    real, fake = folders
    for number in range(3):
        (fake / f"{number}.heic").write_bytes(b"")
    evaluate("--real", real, "--fake", fake, "--metrics", "psnr")
    report = read_report(Path(f"{fake}-report") / "metrics.json")
    assert report.notes == [f"{fake}: 3 files are left out, not named like an image: 3 .heic"]


def test_a_list_of_absolute_and_relative_names_has_partners_or_says_which_it_lacks(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, fake = folders
    names = [str(path) for path in sorted(real.glob("*/*.png"))]
    images = tmp_path / "images.txt"
    images.write_text("\n".join(names))
    evaluate("--real", images, "--fake", fake, "--metrics", "psnr")
    assert read_report(Path(f"{fake}-report") / "metrics.json").metrics["images"] == 6
    images.write_text("\n".join([*names[:5], "real/dogs/image_002.png"]))
    assert "6 of 12 images have no partner" in error_of(capsys, "--real", images, "--fake", fake, "--metrics", "psnr")


def test_an_archive_of_the_same_images_gives_the_same_metrics(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "originals"), "zip", folders[0])
    for real in (folders[0], tmp_path / "originals.zip"):
        evaluate("--real", real, "--fake", folders[1], "--metrics", "[psnr,ssim]", "--output", f"{real}-report")
    of_folder, of_archive = (read_report(path / "metrics.json") for path in sorted(tmp_path.glob("*-report")))
    assert of_folder.metrics == of_archive.metrics
    assert of_folder.metrics["images"] == 6


def test_of_a_folder_with_splits_and_of_its_archive_the_same_images_are_read(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Those of validation, with the folder around them and without."""
    real, fake = folders
    shutil.move(real, tmp_path / "set" / "val")
    write_images(tmp_path / "set" / "train" / "cats", 2)
    shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path, "set")
    shutil.make_archive(str(tmp_path / "bare"), "zip", tmp_path / "set")
    found = []
    for name in ("set", "set.zip", "bare.zip", "set/val"):
        evaluate("--real", tmp_path / name, "--fake", fake, "--metrics", "psnr", "--output", tmp_path / "report")
        found.append(read_report(tmp_path / "report" / "metrics.json").metrics)
    assert found[0]["images"] == 6
    assert found == [found[0]] * 4


def test_it_is_the_yardstick_of_validate(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Originals resized and cropped here; reconstructions of that size come as they are."""
    real, _ = folders
    for path in real.glob("*/*.png"):
        pixels = pil_to_tensor(Image.open(path))
        small = center_crop(resize(pixels, [16], antialias=True), [16])
        (tmp_path / "square" / path.parent.name).mkdir(parents=True, exist_ok=True)
        to_pil_image(small).save(tmp_path / "square" / path.parent.name / path.name)
    evaluate(
        "--real",
        real,
        "--fake",
        tmp_path / "square",
        "--metrics",
        "psnr",
        "--image_size",
        16,
        "--output",
        tmp_path / "r",
    )
    report = read_report(tmp_path / "r" / "metrics.json")
    assert report.preparation == "short side to 16, center crop of 16×16"
    assert report.metrics["psnr"] == math.inf


def test_images_of_several_sizes_go_together(folders: tuple[Path, Path]) -> None:
    real, fake = folders
    for folder in folders:
        write_images(folder / "birds", 2, size=(25, 31), seed=9)
    evaluate("--real", real, "--fake", fake, "--metrics", "[psnr_set,rfd_random]", "--batch_size", 4)
    report = read_report(Path(f"{fake}-report") / "metrics.json")
    assert report.metrics["images"] == 8
    assert report.image_size == "several"


def test_the_report_lies_beside_the_folder_as_it_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    real, fake = folders
    link = tmp_path / "mine"
    link.symlink_to(fake)
    evaluate("--real", real, "--fake", link, "--metrics", "psnr", "--num_workers", 0)
    assert read_report(tmp_path / "mine-report" / "metrics.json").name == "mine"


def test_missing_partners_are_named(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    real, fake = folders
    (fake / "dogs" / "image_001.bmp").unlink()
    line = error_of(capsys, "--real", real, "--fake", fake)
    assert f"1 of 6 images have no partner in {fake}: dogs/image_001;" in line
    (real / "dogs" / "image_001.png").unlink()
    (real / "cats" / "image_000.png").unlink()
    assert f"1 of 5 images have no partner in {real}: cats/image_000;" in error_of(
        capsys, "--real", real, "--fake", fake
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_differing_sizes_are_named(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], num_workers: int
) -> None:
    real, fake = folders
    path = fake / "dogs" / "image_001.bmp"
    Image.open(path).resize((40, 40)).save(path)
    line = error_of(capsys, "--real", real, "--fake", fake, "--metrics", "psnr", f"--num_workers={num_workers}")
    assert line.startswith(f"gsq: error: {path} has 40×40 pixels, its original 36×40; image_size N")


def test_an_original_that_cannot_be_resized_is_named_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("real", "fake"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (60_000, 1)).save(tmp_path / folder / "strip.png")
    places = ("--real", tmp_path / "real", "--fake", tmp_path / "fake")
    line = error_of(capsys, *places, "--metrics", "psnr", "--image_size", "256")
    strip = tmp_path / "real" / "strip.png"
    assert line.startswith(f"gsq: error: {strip} cannot be resized: 60000×1 pixels are too narrow: with a short side")


def test_a_report_that_cannot_be_written_costs_no_number(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(report_module, "write_whole", full)
    real, fake = folders
    with pytest.raises(SystemExit) as exit_info:
        evaluate("--real", real, "--fake", fake, "--metrics", "psnr")
    assert exit_info.value.code == 2
    printed = capsys.readouterr()
    assert "PSNR" in printed.out
    assert f"gsq: error: the report cannot be written to {fake}-report: No space left on device" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "[psnr,fid]"], "metrics fid cannot be computed of images and their reconstructions"),
        (["--metrics", "psnr", "fid"], "unrecognized arguments: fid; a list is written [a,b]"),
        (["--metric", "psnr"], "unrecognized arguments: --metric psnr; did you mean --metrics?"),
        (
            ["--metrics", "codebook"],
            "known are: psnr, psnr_set, ssim, lpips_alex, lpips_vgg, inception_score, rfid,",
        ),
        (["--metrics", "psnr,ssim"], "; a list is written [psnr,ssim]"),
        (["--metrics", "ssmi"], "; did you mean ssim?"),
        (["--metrics", "[]"], "metrics is empty; name one or more"),
        (["--unpaired", "maybe"], "unpaired is maybe; it must be true or false"),
        (["--alexnet_weights", "nowhere.pth"], "alexnet_weights: without effect on psnr; leave it out"),
        (["--antialias", "false", "--ssim_rim", "true"], "antialias, ssim_rim: without effect on psnr"),
        (["--plot", "plot.png"], "--plot draws over bits per pixel; give --bits_per_image"),
        (["--crop_ratio", "0", "--image_size", "16"], "crop_ratio 0.0"),
        (["--crop_ratio", "0.875"], "crop_ratio 0.875 has no effect without image_size; leave it out"),
        (["--device", "tpu9"], "device 'tpu9' cannot be used here"),
        (
            ["--metrics", "rfid", "--inception_weights", "nowhere.pth"],
            "there is no file 'nowhere.pth'",
        ),
        (["--compare", "nowhere"], "there is no nowhere"),
        (["--output", __file__], "it is a file; name a folder with --output"),
        (["--plot", "plot.txt"], "plot.txt is no picture; its name must end in one of: "),
        (["--bits_per_image", "nan"], "bits_per_image is nan; it must be a number or null"),
        (["--device", "meta"], "device 'meta' cannot be used here"),
        (["--image_size", "100000000"], "the first must be from 1 to 16384"),
        (["--fake", "nowhere"], "there is no file or folder nowhere"),
        (["--fake", __file__], "test_evaluate.py is no source of images"),
    ],
)
def test_wrong_input_ends_in_one_line(
    folders: tuple[Path, Path], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    real, fake = folders
    assert message in error_of(capsys, "--real", real, "--fake", fake, "--metrics", "psnr", *arguments)


def test_folders_without_options_are_told_apart(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", *map(str, folders)])
    assert "folders are named by --real FOLDER --fake FOLDER" in capsys.readouterr().err


def test_originals_that_viewers_turn_are_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Reconstructions of the turned images give a low PSNR where they are square, and another size where not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder in ("real", "fake"):
        (tmp_path / folder).mkdir()
    for number, path in enumerate(write_images(tmp_path / "drawn", 4, size=(24, 24))):
        with Image.open(path) as image:
            turned = [{}, {"exif": exif}][number % 2]
            image.save(tmp_path / "real" / f"{number}.{('png', 'jpg')[number // 2]}", **turned)
            image.save(tmp_path / "fake" / f"{number}.png")
    arguments = ("--real", tmp_path / "real", "--fake", tmp_path / "fake", "--metrics", "[psnr_set,rfd_random]")
    evaluate(*arguments, "--batch_size", 3)
    (note,) = [note for note in read_report(tmp_path / "fake-report" / "metrics.json").notes if "EXIF" in note]
    assert note.startswith("2 originals have an EXIF orientation, which is ignored here and obeyed by encode_image")
    assert capsys.readouterr().out.count(note) == 1
    assert not [message for message in caplog.messages if "rfd_random" in message]  # its note is below the table

    with Image.open(tmp_path / "drawn" / "image_000.png") as image:
        image.resize((24, 30)).save(tmp_path / "real" / "1.png", exif=exif)
        image.resize((30, 24)).save(tmp_path / "fake" / "1.png")
    assert "its original 30×24, and an EXIF orientation, which is ignored; image_size N" in error_of(capsys, *arguments)


def test_metrics_of_an_earlier_report_are_not_lost_without_a_word(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for metrics in ("[psnr,ssim]", "psnr", "rfd_random"):
        evaluate("--real", folders[0], "--fake", folders[1], "--metrics", metrics)
    evaluate("--real", folders[0], "--fake", folders[1], "--metrics", "rfd_random", "--unpaired")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  in place of")]
    assert lines == [f"  in place of one with {name}, which metrics.md has still" for name in ("ssim", "psnr")]
    table = (Path(f"{folders[1]}-report") / "metrics.md").read_text()
    assert table.count("| fake |") == 3
    assert "SSIM" in table


def test_by_default_there_are_no_more_workers_than_cores(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    loader = ImagePairs.loader
    monkeypatch.setattr(
        ImagePairs, "loader", lambda self, size, workers: asked.append(workers) or loader(self, size, 0)
    )
    monkeypatch.setattr("gsq_lightning.cli.evaluate.usable_cores", lambda: 2)
    main(["evaluate", "--real", str(folders[0]), "--fake", str(folders[1]), "--metrics=psnr", "--device=cpu"])
    assert asked == [2]


def test_originals_are_looked_at_once_by_validate_and_evaluate(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same files, size and crop they are the same images."""
    monkeypatch.setenv("GSQ_CACHE", str(tmp_path))
    real, fake = folders
    for path in fake.glob("*/*"):
        Image.open(path).resize((16, 16)).save(path)
    evaluate("--real", real, "--fake", fake, "--metrics", "rfd_random", "--image_size", 16)
    data = ImageNetDataModule(str(real), 16, num_workers=0)
    quantizer = GroupedSphericalQuantizer(latent_channels=8, codebook_size=16)
    tokenizer = GSQTokenizer(quantizer, (1, 2), 8, 1, 1, norm_groups=4)
    metrics = ReconstructionMetrics(["rfd_random"])
    run = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    run.validate(TokenizerModule(tokenizer, metrics=metrics), data, verbose=False)
    assert metrics.reused == ["rfd_random"]
    assert len(list((tmp_path / "statistics").iterdir())) == 1
    report = read_report(Path(f"{fake}-report") / "metrics.json")
    assert metrics.seen is not None
    assert report.originals == metrics.seen.hash_in_words


def test_names_match_however_their_accents_are_written(folders: tuple[Path, Path]) -> None:
    """macOS takes letters and accents apart."""
    real, fake = folders
    write_images(real / unicodedata.normalize("NFC", "Kätzchen"), 2)
    write_images(fake / unicodedata.normalize("NFD", "Kätzchen"), 2)
    evaluate("--real", real, "--fake", fake, "--metrics", "psnr_set")
    assert read_report(Path(f"{fake}-report") / "metrics.json").metrics["images"] == 8


def test_generated_images_are_compared_with_real_ones_as_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other names, numbers and sizes on both sides; the second time what was kept of the real images serves."""
    monkeypatch.setenv("GSQ_CACHE", str(tmp_path / "cache"))
    real = write_images(tmp_path / "real", 8, seed=1)
    fake = write_images(tmp_path / "fake", 6, (24, 20), seed=2)
    metrics = "[rfd_random,rkd_efficientnet,precision_recall_efficientnet]"
    options = ("--unpaired", "--metrics", metrics, "--efficientnet_weights", "random", "--batch_size", 3)
    options += ("--bits_per_image", 240)
    evaluate("--real", tmp_path / "real", "--fake", tmp_path / "fake", *options)
    first = read_report(tmp_path / "fake-report-unpaired" / "metrics.json")
    assert (first.metrics["images"], first.metrics["real_images"]) == (6, 8)
    assert first.metrics["bits_per_pixel"] == 0.5  # of the generated images
    assert "3 nearest neighbors" in first.protocols["precision_recall_efficientnet"]

    pixels = [
        [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] for path in paths]
        for paths in (real, fake)
    ]
    network = efficientnet_features("random")
    seen = [torch.cat([network(image).pooled for image in images]) for images in pixels]
    theirs = prc_features_to_metric(seen[1], seen[0], prc_neighborhood=3, save_cpu_ram=False, verbose=False)
    assert first.metrics["precision_efficientnet"] == pytest.approx(theirs["precision"], abs=1e-3)
    assert first.metrics["recall_efficientnet"] == pytest.approx(theirs["recall"], abs=1e-3)
    x, y = (features.double() for features in seen)
    kernels = [((a @ b.T) / 1280 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    within = [(kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1)) for kernel in kernels[:2]]
    assert first.metrics["rkd_efficientnet"] == pytest.approx(float(sum(within) - 2 * kernels[2].mean()), rel=1e-3)

    looked = 0
    forward = FeatureExtractor.forward

    def counting(self: FeatureExtractor, *inputs: torch.Tensor) -> object:
        nonlocal looked
        looked += len(inputs[0])
        return forward(self, *inputs)

    monkeypatch.setattr(FeatureExtractor, "forward", counting)
    evaluate("--real", tmp_path / "real", "--fake", tmp_path / "fake", *options)
    assert looked == 2 * 6  # generated ones, by two networks
    assert read_report(tmp_path / "fake-report-unpaired" / "metrics.json").metrics == pytest.approx(
        first.metrics, rel=1e-6
    )
    assert "real images" in capsys.readouterr().out
    message = error_of(
        capsys, "--real", real[0].parent, "--fake", fake[0].parent, "--unpaired", "true", "--metrics", "psnr"
    )
    assert "psnr cannot be computed of images without pairs; known are: fid, kid," in message
