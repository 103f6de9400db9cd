"""`gsq export` and `gsq convert`: a tokenizer as a folder of config, weights and model card."""

import argparse
from dataclasses import asdict
from pathlib import Path

from gsq_lightning.cli.messages import OneLineParser, one_line_errors
from gsq_lightning.cli.source import find_tokenizer
from gsq_lightning.errors import InputError, require
from gsq_lightning.files import write_whole
from gsq_lightning.pretrained.card import CARD_FILE, model_card
from gsq_lightning.pretrained.export import AVERAGED, read_released, read_tokenizer, write_folder
from gsq_lightning.pretrained.saved import SavedTokenizer, check_weights
from gsq_lightning.reports import find_report
from gsq_lightning.tokenizer import GSQTokenizer


def export(arguments: list[str]) -> None:
    """Writes the tokenizer of a checkpoint into a folder that `from_pretrained` and the Hub take.

    Args:
        arguments: without the word `export`.

    Raises:
        SystemExit: with code 2 for bad input.
    """
    parser = _parser(
        "export",
        "a checkpoint, the folder of a run for its newest, a checkpoint of GSQ's authors, or a name on the Hub",
    )
    parser.add_argument("--weights", choices=AVERAGED, default="ema", help="averaged weights (EMA), or raw ones")
    given = parser.parse_args(arguments)
    with one_line_errors("export"):
        _check_empty(given.folder)
        given.checkpoint = str(find_tokenizer(given.checkpoint) or given.checkpoint)
        _write(read_tokenizer(given.checkpoint, weights=given.weights), given)


def convert(arguments: list[str]) -> None:
    """Writes the tokenizer of a checkpoint that GSQ's authors released in the form of this library.

    Args:
        arguments: without the word `convert`.

    Raises:
        SystemExit: with code 2 for bad input.
    """
    checkpoint = "checkpoint.pt of GSQ's authors, or its repository: HelmholtzAI-FZJ/GSQ-F8-D8-V64k"
    given = _parser("convert", checkpoint).parse_args(arguments)
    with one_line_errors("convert"):
        _check_empty(given.folder)
        _write(read_released(given.checkpoint), given)


def _parser(command: str, checkpoint: str) -> OneLineParser:
    parser = OneLineParser(
        prog=f"gsq {command}", description="Writes the tokenizer of a checkpoint as a folder for from_pretrained."
    )
    parser.add_argument("checkpoint", help=checkpoint)
    parser.add_argument("folder", type=Path, help="folder to write, new or empty")
    half = "store the networks' weights in float16, half the bytes; the codebook stays in float32"
    parser.add_argument("--half", action="store_true", help=half)
    parser.add_argument("--license", help="license of the weights for the model card, as on the Hub: apache-2.0, …")
    return parser


def _check_empty(folder: Path) -> None:
    require(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        f"{folder} exists and is not empty; name another folder",
    )


def _write(saved: SavedTokenizer, given: argparse.Namespace) -> None:
    tokenizer = GSQTokenizer.from_config(saved.config)
    check_weights(tokenizer, saved.weights, given.checkpoint)
    report, note = None, ""
    try:
        report = asdict(find_report(Path(given.checkpoint), saved.kind))
    except InputError as error:  # not validated, before it changed, or with the other weights
        note = f"\n  its card has no metrics: {error}"
    saved = saved._replace(config=tokenizer.config)
    write_folder(given.folder, saved, given.half)
    card = model_card(saved, str(given.folder), report, given.license)
    write_whole(given.folder / CARD_FILE, card.encode())
    print(f"  tokenizer  {given.folder}{note}")
