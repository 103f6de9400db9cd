"""The commands that need no training: `gsq evaluate` and `gsq compare`."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from gsq_lightning.errors import InputError
from gsq_lightning.reports import (
    Row,
    comparison_lines,
    find_report,
    metrics_table,
    published_rows,
    report_row,
    write_report,
)

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def compare(arguments: list[str]) -> None:
    """`gsq compare`: prints reports side by side, sorted by bits per image.

    Args:
        arguments: without the word `compare`.

    Raises:
        SystemExit: with code 2 for bad input.
    """
    parser = _Parser(prog="gsq compare", description="Reports side by side, sorted by bits per image.")
    parser.add_argument("sources", nargs="*", help="metrics.json files, folders with one, checkpoints")
    _add_comparison(parser)
    given = parser.parse_args(arguments)
    try:
        _check_plot(given)
        if not given.sources and not given.paper:
            raise InputError("gsq compare needs reports, such as metrics.json or a checkpoint that was validated")
        _show([report_row(find_report(Path(source))) for source in given.sources], given)
    except InputError as error:
        _fail(str(error))


def evaluate(arguments: list[str]) -> None:
    """`gsq evaluate`: metrics of reconstructions in a folder, whatever made them.

    Args:
        arguments: without the word `evaluate`.

    Raises:
        SystemExit: with code 2 for bad input.
    """
    parser = _Parser(
        prog="gsq evaluate",
        description="Metrics of a folder of reconstructions against a folder of originals. Files belong together that "
        "have the same path below their folders, whatever their suffix.",
    )
    parser.add_argument("--real", required=True, help="folder of originals")
    parser.add_argument("--fake", required=True, help="folder of reconstructions")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="as model.metrics.names of validate, all but codebook; default: psnr psnr_set ssim rfid",
    )
    parser.add_argument("--image_size", type=int, help="resize and crop the originals to this square first")
    parser.add_argument("--crop_ratio", type=float, default=1.0, help="as data.val_crop_ratio of validate")
    parser.add_argument("--bits_per_image", type=float, help="of the tokens that the reconstructions were made from")
    parser.add_argument("--name", help="what the tokenizer is called in reports; default: the folder's name")
    parser.add_argument("--output", help="folder of the report; default: FAKE-report")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=4, help="loading processes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, …")
    parser.add_argument(
        "--antialias",
        choices=("true", "false"),
        default="true",
        help="whether rfid resizes to 299² as torchmetrics does, or else as torch-fidelity",
    )
    for network in ("inception", "alexnet", "vgg16", "dinov2"):
        parser.add_argument(f"--{network}_weights", default="pretrained", help='"pretrained" or a path')
    parser.add_argument("--compare", nargs="+", default=[], metavar="REPORT", help="reports to print beside it")
    _add_comparison(parser)
    given = parser.parse_args(arguments)
    fake = Path(given.fake).expanduser()
    folder = Path(given.output).expanduser() if given.output else Path(f"{os.path.abspath(fake)}-report")
    try:
        _check_plot(given)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"the report cannot be written to {folder}: it is a file; name a folder with --output")
        others = [report_row(find_report(Path(source))) for source in given.compare]
        from gsq_lightning.cli.evaluate import evaluate_folders  # imports torch

        report = evaluate_folders(
            Path(given.real),
            fake,
            metrics=given.metrics,
            image_size=given.image_size,
            crop_ratio=given.crop_ratio,
            bits_per_image=given.bits_per_image,
            name=given.name,
            batch_size=given.batch_size,
            num_workers=given.num_workers,
            device=given.device,
            antialias=given.antialias == "true",
            inception_weights=given.inception_weights,
            alexnet_weights=given.alexnet_weights,
            vgg16_weights=given.vgg16_weights,
            dinov2_weights=given.dinov2_weights,
            show_progress=sys.stderr.isatty(),
        )
        print("\n".join([*metrics_table(report.metrics), *(f"  note: {note}" for note in report.notes)]), flush=True)
        try:
            print(f"\n  report  {write_report(report, folder)}")
        except OSError as error:
            raise InputError(f"the report cannot be written to {folder}: {error.strerror or error}") from error
        if others or given.paper or given.plot:
            print()
            _show([report_row(report), *others], given)
    except InputError as error:
        _fail(str(error).replace("model.metrics.", "--"))
    except KeyboardInterrupt:
        _fail("interrupted; no report was written", EXIT_INTERRUPTED)


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--paper", action="store_true", help="add the published figures of the GSQ paper's tables")
    parser.add_argument("--plot", metavar="PNG", help="draw metrics over bits per pixel")


def _check_plot(given: argparse.Namespace) -> None:
    """Before anything is computed."""
    if given.plot:
        from gsq_lightning.reports.plot import check_plot

        check_plot(Path(given.plot))


def _show(rows: list[Row], given: argparse.Namespace) -> None:
    if given.paper:
        rows = rows + published_rows()
    print("\n".join(comparison_lines(rows)))
    if given.paper:
        print("\npaper: as arXiv 2412.02632 prints them, at 256×256 on ImageNet; crops and programs differ among them")
    if given.plot:
        from gsq_lightning.reports.plot import plot_rows

        try:
            plot_rows(rows, Path(given.plot).expanduser())
        except OSError as error:
            raise InputError(f"the plot cannot be written to {given.plot}: {error.strerror or error}") from error
        print(f"\n  plot  {given.plot}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _fail(f"{message}; {self.prog} --help lists the options")


def _fail(message: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    # an error of a loading process arrives with that process's traceback before it
    line = " ".join(message.rsplit("InputError: ", 1)[-1].split())
    print(f"gsq: error: {line}", file=sys.stderr)
    raise SystemExit(code)
