"""`gsq evaluate`: metrics of a folder of reconstructions, the same as of `gsq validate` for any tokenizer, and of
generated images.
"""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast, get_args

import torch
from jsonargparse import ArgumentParser
from tqdm import tqdm

from gsq_lightning.cli.compare import check_plot, show
from gsq_lightning.cli.messages import fail, one_line_errors, plain_message
from gsq_lightning.cli.option_help import PlainHelp
from gsq_lightning.data.pairs import EvaluatedImages, ImagePairs
from gsq_lightning.data.transforms import MAX_IMAGE_SIZE, ResizeAndCrop, short_side_for
from gsq_lightning.errors import InputError, require
from gsq_lightning.metrics import (
    MetricName,
    MetricOptions,
    MetricSuite,
    OriginalImages,
    ReconstructionMetrics,
    SampleMetricName,
    SampleMetrics,
)
from gsq_lightning.pixels import pixels_to_image
from gsq_lightning.reports import EvaluationReport, find_report, metrics_table, report_row, write_report
from gsq_lightning.run_folders import expanded

DEFAULT_METRICS: tuple[MetricName, ...] = ("psnr", "psnr_set", "ssim", "rfid")


def evaluate(arguments: list[str]) -> None:
    """Prints the metrics of a folder of reconstructions, and writes them beside it.

    Args:
        arguments: without the word `evaluate`.

    Raises:
        SystemExit: with code 2 for bad input.
    """
    parser = _Parser(
        prog="gsq evaluate",
        description="Metrics of a folder of reconstructions against a folder of originals. Files belong together that "
        "have the same path below their folders, whatever their suffix. With --unpaired, of a folder of generated "
        "images against real ones.",
        allow_abbrev=False,
        formatter_class=PlainHelp,
    )
    added = parser.add_function_arguments(evaluate_folders, as_group=False, skip={"show_progress"})
    parser.add_argument("--output", type=str | None, help="Folder of the report; by default FAKE-report.")
    parser.add_argument("--compare", nargs="+", default=[], help="Reports to print beside it.")
    parser.add_argument("--paper", action="store_true", help="Add the published figures of the GSQ paper's tables.")
    parser.add_argument("--plot", type=str | None, help="Path of a picture of metrics over bits per pixel.")
    given = parser.parse_args(arguments)
    folder = Path(given.output).expanduser() if given.output else report_folder(given.fake)
    with one_line_errors("evaluate"):
        check_plot(given.plot)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"the report cannot be written to {folder}: it is a file; name a folder with --output")
        others = [report_row(find_report(expanded(source))) for source in given.compare]
        report = evaluate_folders(**{name: given[name] for name in added}, show_progress=sys.stderr.isatty())
        print("\n".join([*metrics_table(report.metrics), *(f"  note: {note}" for note in report.notes)]), flush=True)
        try:
            print(f"\n  report  {write_report(report, folder)}")
        except OSError as error:
            raise InputError(f"the report cannot be written to {folder}: {error.strerror or error}") from error
        if others or given.paper or given.plot:
            print()
            show([report_row(report), *others], given.paper, given.plot)


def report_folder(fake: str) -> Path:
    """Beside the folder of reconstructions, under the name by which it is given."""
    return Path(f"{os.path.abspath(Path(fake).expanduser())}-report")


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(plain_message(message, list(self.get_defaults().keys())))


def evaluate_folders(
    real: str,
    fake: str,
    metrics: MetricName | SampleMetricName | list[MetricName | SampleMetricName] | None = None,
    image_size: int | None = None,
    crop_ratio: float = 1.0,
    bits_per_image: float | None = None,
    name: str | None = None,
    batch_size: int = 32,
    num_workers: int = 4,
    device: str = "auto",
    antialias: bool = True,
    inception_weights: str = "pretrained",
    alexnet_weights: str = "pretrained",
    vgg16_weights: str = "pretrained",
    dinov2_weights: str = "pretrained",
    efficientnet_weights: str = "pretrained",
    ssim_rim: bool = False,
    unpaired: bool = False,
    show_progress: bool = False,
) -> EvaluationReport:
    """Computes the metrics of a folder of reconstructions, or of generated images.

    Args:
        real: folder of originals, or a .zip, .tar, list or .parquet file of them; of one with splits its val images.
        fake: likewise the reconstructions or generated images, in a format that loses nothing, such as PNG.
        metrics: names, as in `ReconstructionMetrics`, all but "codebook"; with `unpaired` as in `SampleMetrics`.
        image_size: originals are first resized to a short side of image_size / crop_ratio and center-cropped to this
            square, as in validation; None leaves them as they are.
        crop_ratio: share of the resized image that the crop keeps, in (0, 1].
        bits_per_image: bits of the tokens behind the reconstructions, for comparisons.
        name: what the tokenizer is called; by default the name of the folder.
        batch_size: images at a time; those of other sizes than their neighbors go alone.
        num_workers: DataLoader workers.
        device: "auto" takes a GPU where there is one.
        antialias: resize to Inception's size with antialiasing, as in `ReconstructionMetrics`.
        inception_weights: path of the weights, if they are not in a cache.
        alexnet_weights: likewise.
        vgg16_weights: likewise.
        dinov2_weights: likewise.
        efficientnet_weights: likewise.
        ssim_rim: include the rim of images in SSIM, as in `ReconstructionMetrics`.
        unpaired: compare the two folders as sets: the images of `fake` are generated and have no originals.
        show_progress: draw a bar in the terminal.

    Raises:
        InputError: where files have no partner or differ in size, for unknown metrics, or without weights.
    """
    if bits_per_image is not None and not 0 < bits_per_image < math.inf:
        raise InputError(f"bits_per_image is {bits_per_image}; it must be above 0")
    if batch_size < 1 or num_workers < 0:
        raise InputError(f"batch_size {batch_size} must be at least 1, num_workers {num_workers} at least 0")
    options = MetricOptions(
        inception_weights=inception_weights,
        alexnet_weights=alexnet_weights,
        vgg16_weights=vgg16_weights,
        dinov2_weights=dinov2_weights,
        efficientnet_weights=efficientnet_weights,
        antialias=antialias,
        ssim_rim=ssim_rim,
    )
    names = [metrics] if isinstance(metrics, str) else metrics
    transform = _transform(image_size, crop_ratio)
    folders = Path(real).expanduser(), Path(fake).expanduser()
    loading = _Loading(batch_size, num_workers, _device(device), show_progress)
    computed = (_compare_sets if unpaired else _compare_pairs)(folders, names, transform, options, loading)
    values = computed.compute()
    seen = computed.seen
    assert seen is not None
    if bits_per_image is not None:
        values["bits_per_image"] = bits_per_image
        if seen.size is not None:
            values["bits_per_pixel"] = bits_per_image / math.prod(seen.size)
    return EvaluationReport(
        name=name or Path(os.path.abspath(fake)).name,
        metrics=values,
        notes=list(computed.notes),
        checkpoint=None,
        data=real,
        originals=seen.hash_in_words,
        image_size=seen.size_in_words,
        preparation="as they are" if transform is None else str(transform),
        protocols=computed.protocols,
        precision=f"images in {fake}",
    )


class _Loading(NamedTuple):
    batch_size: int
    num_workers: int
    device: torch.device
    show_progress: bool

    def batches(self, dataset: EvaluatedImages | ImagePairs, what: str) -> Iterator[Any]:
        loader = dataset.loader(self.batch_size, self.num_workers)
        for batch in tqdm(loader, what, disable=not self.show_progress, unit="batch"):
            yield from batch


def _compare_pairs(
    folders: tuple[Path, Path],
    names: Sequence[str] | None,
    transform: ResizeAndCrop | None,
    options: MetricOptions,
    loading: _Loading,
) -> MetricSuite:
    known = [name for name in get_args(MetricName) if name != "codebook"]
    _check_names(names, known, "of images and their reconstructions")
    pairs = ImagePairs(*folders, transform)
    metrics = ReconstructionMetrics(cast(Any, names) or DEFAULT_METRICS, **asdict(options))
    metrics.load()
    metrics.to(loading.device)
    metrics.start(OriginalImages(pairs.fingerprint, len(pairs)))
    for pair in loading.batches(pairs, "images"):
        metrics.update(*(pixels_to_image(pixels.to(loading.device)) for pixels in pair))
    return metrics


def _compare_sets(
    folders: tuple[Path, Path],
    names: Sequence[str] | None,
    transform: ResizeAndCrop | None,
    options: MetricOptions,
    loading: _Loading,
) -> MetricSuite:
    _check_names(names, get_args(SampleMetricName), "of images without pairs")
    real, fake = EvaluatedImages(folders[0], transform), EvaluatedImages(folders[1])
    metrics = SampleMetrics(cast(Any, names), options) if names else SampleMetrics(options=options)
    metrics.load()
    metrics.to(loading.device)
    metrics.start(OriginalImages(real.fingerprint, len(real)))
    for images, is_real in ((real, True), (fake, False)):
        for pixels in loading.batches(images, "real images" if is_real else "generated images"):
            metrics.update(pixels_to_image(pixels.to(loading.device)), is_real)
    return metrics


def _check_names(names: Sequence[str] | None, known: Sequence[str], what: str) -> None:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InputError(f"metrics {', '.join(unknown)} cannot be computed {what}; known are: {', '.join(known)}")


def _transform(image_size: int | None, crop_ratio: float) -> ResizeAndCrop | None:
    if image_size is None:
        require(crop_ratio == 1.0, f"crop_ratio {crop_ratio} has no effect without image_size; leave it out")
        return None
    if not 1 <= image_size <= MAX_IMAGE_SIZE or not 0.0 < crop_ratio <= 1.0:
        raise InputError(
            f"image_size is {image_size} and crop_ratio {crop_ratio}; the first must be from 1 to {MAX_IMAGE_SIZE}, "
            "the second above 0 and at most 1"
        )
    return ResizeAndCrop(image_size, short_side_for(image_size, crop_ratio))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).cpu()  # the meta device makes tensors, but has no values
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
