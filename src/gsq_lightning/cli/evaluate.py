"""`gsq evaluate`: metrics of a folder of reconstructions, the same as of `gsq validate` for any tokenizer, and of
generated images.
"""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast, get_args

import torch
from jsonargparse import ArgumentParser
from tqdm import tqdm

from gsq_lightning.cli.compare import show
from gsq_lightning.cli.messages import fail, one_line_errors, plain_message, suggestion
from gsq_lightning.cli.option_help import PlainHelp
from gsq_lightning.data.loader import MOST_WORKERS, usable_cores
from gsq_lightning.data.pairs import EvaluatedImages, ImagePairs
from gsq_lightning.data.transforms import MAX_IMAGE_SIZE, ResizeAndCrop, short_side_for
from gsq_lightning.errors import InputError, how_many, require
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
from gsq_lightning.reports import (
    EvaluationReport,
    find_report,
    metrics_table,
    read_report,
    report_row,
    write_report,
)
from gsq_lightning.reports.plot import check_plot
from gsq_lightning.reports.report import JSON_NAME, MARKDOWN_NAME
from gsq_lightning.run_folders import expanded

DEFAULT_METRICS: tuple[MetricName, ...] = ("psnr", "psnr_set", "ssim", "rfid")


def evaluate(arguments: list[str]) -> None:
    """Prints the metrics of a folder of reconstructions, and writes them beside it.

    Args:
        arguments: without the word `evaluate`.

    Raises:
        SystemExit: with code 2 for bad input.
    """
    parser = _make_parser()
    if arguments and not arguments[0].startswith("-"):
        fail(f"gsq evaluate does not know what {arguments[0]} is; folders are named by --real FOLDER --fake FOLDER")
    given = parser.parse_args(arguments)
    folder = Path(given.output).expanduser() if given.output else report_folder(given.fake, given.unpaired)
    with one_line_errors("evaluate"):
        if given.plot:
            check_plot(Path(given.plot))
        require(
            folder.is_dir() or not folder.exists(),
            f"the report cannot be written to {folder}: it is a file; name a folder with --output",
        )
        others = [report_row(find_report(expanded(source))) for source in given.compare]
        require(
            not given.plot
            or given.paper
            or given.bits_per_image is not None
            or any("bits_per_pixel" in row.metrics for row in others),
            "--plot draws over bits per pixel; give --bits_per_image, the bits of the tokens of an image",
        )
        options = {name: given[name] for name in signature(evaluate_folders).parameters if name != "show_progress"}
        report = evaluate_folders(**options, show_progress=sys.stderr.isatty())
        print("\n".join([*metrics_table(report.metrics), *(f"  note: {note}" for note in report.notes)]), flush=True)
        earlier = metrics_in(folder)
        try:
            print(f"\n  report  {write_report(report, folder)}")
        except OSError as error:
            raise InputError(f"the report cannot be written to {folder}: {error.strerror or error}") from error
        replaced = [name for name in earlier if name not in report.metrics]
        if replaced:
            print(f"  in place of one with {', '.join(replaced)}, which {MARKDOWN_NAME} has still")
        if others or given.paper or given.plot:
            print()
            show([report_row(report), *others], given.paper, given.plot)


def _make_parser() -> ArgumentParser:
    parser = _Parser(
        prog="gsq evaluate",
        usage="gsq evaluate --real PATH --fake PATH [options]",
        description="Metrics of a folder of reconstructions against a folder of originals. Files belong together that "
        "have the same path below their folders, whatever their suffix. With --unpaired, of a folder of generated "
        "images against real ones.",
        allow_abbrev=False,
        formatter_class=PlainHelp,
    )
    parser.add_function_arguments(evaluate_folders, as_group=False, skip={"unpaired", "show_progress"})
    parser.add_argument(
        "--unpaired",
        nargs="?",
        const=True,
        default=False,
        type=bool,
        help="Compare the folders as sets: the images of FAKE are generated and have no originals.",
    )
    parser.add_argument(
        "--output", type=str | None, help="Folder of the report; by default FAKE-report, FAKE-report-unpaired of sets."
    )
    parser.add_argument("--compare", nargs="+", default=[], help="Reports to print beside it.")
    parser.add_argument("--paper", action="store_true", help="Add the published figures of the GSQ paper's tables.")
    parser.add_argument("--plot", type=str | None, help="Path of a picture of metrics over bits per pixel.")
    return parser


def report_folder(fake: str, unpaired: bool) -> Path:
    """Beside the folder of reconstructions, under the name by which it is given."""
    return Path(f"{os.path.abspath(Path(fake).expanduser())}-report{'-unpaired' if unpaired else ''}")


def metrics_in(folder: Path) -> list[str]:
    """Names of the metrics of the report in a folder; none where there is none that can be read."""
    try:
        return list(read_report(folder / JSON_NAME).metrics)
    except InputError:
        return []


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(plain_message(message, list(self.get_defaults().keys())))


def evaluate_folders(
    real: str,
    fake: str,
    metrics: str | list[str] | None = None,
    image_size: int | None = None,
    crop_ratio: float = 1.0,
    bits_per_image: float | None = None,
    name: str | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
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
        metrics: a name, or a list [a,b]; `gsq evaluate --help` lists them.
        image_size: originals are first resized to a short side of image_size / crop_ratio and center-cropped to this
            square, as in validation; by default they stay as they are.
        crop_ratio: share of the resized image that the crop keeps, in (0, 1].
        bits_per_image: bits of the tokens behind the reconstructions, for comparisons.
        name: what the tokenizer is called; by default the name of the folder.
        batch_size: images at a time; those of other sizes than their neighbors go alone.
        num_workers: worker processes that load images; by default one per core, at most 8.
        device: "auto" takes a GPU where there is one.
        antialias: resize to Inception's 299² with antialiasing, as torchmetrics does; else as TensorFlow 1.
        inception_weights: path of the weights for metrics over Inception v3, if they are not in the cache.
        alexnet_weights: the same for lpips_alex.
        vgg16_weights: the same for lpips_vgg.
        dinov2_weights: the same for metrics over DINOv2.
        efficientnet_weights: the same for metrics over EfficientNet-Lite0.
        ssim_rim: include the rim of images in SSIM, where the window sees reflected pixels.
        unpaired: compare the two folders as sets: the images of `fake` are generated and have no originals.
        show_progress: draw a bar in the terminal.

    Raises:
        InputError: where files have no partner or differ in size, for unknown metrics, for options that concern none
            of them, or without weights.
    """
    if num_workers is None:
        num_workers = min(usable_cores(), MOST_WORKERS)
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
    values, seen = computed.values, computed.metrics.seen
    assert seen is not None
    if bits_per_image is not None:
        values["bits_per_image"] = bits_per_image
        if computed.size is not None:
            values["bits_per_pixel"] = bits_per_image / math.prod(computed.size)
    return EvaluationReport(
        name=name or Path(os.path.abspath(fake)).name,
        metrics=values,
        notes=[*computed.notes, *computed.metrics.notes],
        checkpoint=None,
        data=real,
        originals=seen.hash_in_words,
        image_size=seen.size_in_words,
        preparation="as they are" if transform is None else str(transform),
        protocols=computed.metrics.protocols,
        precision=f"images in {fake}",
    )


class _Result(NamedTuple):
    """Of both folders.

    Attributes:
        metrics: that saw the images.
        values: by name.
        notes: on the images.
        size: H and W of the reconstructions or generated images, where all have the same.
    """

    metrics: MetricSuite
    values: dict[str, float]
    notes: list[str]
    size: tuple[int, int] | None


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
) -> _Result:
    known = [name for name in get_args(MetricName) if name != "codebook"]
    _check_names(names, known, "of images and their reconstructions")
    pairs = ImagePairs(*folders, transform)
    metrics = ReconstructionMetrics(cast(Any, DEFAULT_METRICS if names is None else names), **asdict(options))
    _prepare(metrics, loading.device)
    metrics.start(OriginalImages(pairs.fingerprint, len(pairs)))
    turned = 0
    for pair in loading.batches(pairs, "images"):
        images = (pair.original, pair.reconstruction)
        metrics.update(*(pixels_to_image(pixels.to(loading.device)) for pixels in images))
        turned += pair.turned
    note = (
        f"{how_many(turned, 'original has', 'originals have')} an EXIF orientation, which is ignored here and "
        "obeyed by encode_image: pairs may be turned against each other"
    )
    values, notes = metrics.compute(), _left_out(pairs.real, pairs.fake)
    assert metrics.seen is not None
    return _Result(metrics, values, [*notes, note] if turned else notes, metrics.seen.size)


def _compare_sets(
    folders: tuple[Path, Path],
    names: Sequence[str] | None,
    transform: ResizeAndCrop | None,
    options: MetricOptions,
    loading: _Loading,
) -> _Result:
    _check_names(names, get_args(SampleMetricName), "of images without pairs")
    real, fake = EvaluatedImages(folders[0], transform), EvaluatedImages(folders[1])
    metrics = SampleMetrics(options=options) if names is None else SampleMetrics(cast(Any, names), options)
    _prepare(metrics, loading.device)
    metrics.start(OriginalImages(real.fingerprint, len(real)))
    for images, is_real in ((real, True), (fake, False)):
        for pixels in loading.batches(images, "real images" if is_real else "generated images"):
            metrics.update(pixels_to_image(pixels.to(loading.device)), is_real)
    return _Result(metrics, metrics.compute(), _left_out(real, fake), metrics.generated.compute().size)


def _left_out(*images: EvaluatedImages) -> list[str]:
    """What is said of the files at each place, such as how many are left out."""
    return [f"{one.source.place}: {note}" for one in images for note in one.source.notes]


def _check_names(names: Sequence[str] | None, known: Sequence[str], what: str) -> None:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        hint = f"; a list is written [{unknown[0]}]" if "," in unknown[0] else suggestion(unknown[0], known, "")
        raise InputError(f"metrics {', '.join(unknown)} cannot be computed {what}; known are: {', '.join(known)}{hint}")


def _prepare(metrics: MetricSuite, device: torch.device) -> None:
    """Loads networks; raises InputError for options that no metric uses. Notes are printed below the table alone."""
    metrics.load()
    unused = metrics.options_without_effect
    require(not unused, f"{', '.join(unused)}: without effect on {', '.join(metrics.names)}; leave it out")
    metrics.logs_notes = False
    metrics.to(device)


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
