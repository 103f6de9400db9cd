"""The config that a checkpoint or an exported tokenizer carries, and what of it is taken without asking."""

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from gsq_lightning import quantizers
from gsq_lightning.errors import InputError, first_line
from gsq_lightning.metrics import REPORTED, ReconstructionMetrics
from gsq_lightning.pretrained.export import CONFIG_FILE
from gsq_lightning.tokenizer import GSQTokenizer

# a config names classes and functions by path, and making an object of a path runs code: only that of these is run on
# the word of a file
TRUSTED = ("gsq_lightning", "torch.optim")
IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
# what the parser cannot take for more than a word: not for a config in JSON or YAML, nor for the name of a config file
PLAIN_WORD = re.compile(r"[A-Za-z0-9_+-]*")
# options whose values are paths of files, and nothing else
FILE_OPTIONS = (
    "weights",
    "inception_weights",
    "alexnet_weights",
    "vgg16_weights",
    "dinov2_weights",
    "statistics_folder",
)
# of the places that webdataset opens, those that no shell and no program of somebody's choice has a part in; its braces
# could spell out others
NUMBERS = r"\{\d+(?:\.\.\d+|(?:,\d+)+)\}"
PLAIN_PLACE = re.compile(
    rf"(?![\w+.-]*:)(?:[^{{}}$]|{NUMBERS})*|(?:https?|gs|s3|hf|ais)://(?:[\w./~%+@:=,?&-]|{NUMBERS})*"
)


def checkpoint_config(path: Path, command: str) -> dict[str, Any]:
    """The config that a checkpoint carries: its module and its data, and where its validation is written.

    Raises:
        InputError: where there is no such file, or it is not a checkpoint of this library.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        model, data = dict(checkpoint["hyper_parameters"]), dict(checkpoint.get("datamodule_hyper_parameters", {}))
    except Exception as error:  # whatever the unpickler makes of a damaged file
        raise InputError(f"{path} is not a readable checkpoint of gsq-lightning: {first_line(error)}") from error
    config: dict[str, Any] = {"model": _without_notes(model)}
    if "_class_path" in data:
        config["data"] = {"class_path": data["_class_path"], "init_args": _without_notes(data)}
    if command != "fit":
        config["trainer"] = {"logger": False, "default_root_dir": str(report_folder(path, command))}
    return config


def report_folder(checkpoint: Path, command: str) -> Path:
    """Where the validation of a checkpoint is written: others may lie beside it."""
    file = checkpoint.resolve()
    return file.parent / command / file.stem


def is_exported(path: Path) -> bool:
    """Whether a path is a folder that `save_pretrained` wrote."""
    return path.is_dir() and (path / CONFIG_FILE).is_file()


def exported_config(folder: Path, command: str) -> dict[str, Any]:
    """The config of an exported tokenizer, and where its validation is written.

    Raises:
        InputError: for training, which needs more than the tokenizer's weights, or where the config cannot be read.
    """
    if command == "fit":
        raise InputError(f"{folder} is an exported tokenizer, from which training cannot go on; give a checkpoint")
    try:
        arguments = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        quantizer = arguments.pop("quantizer")
        quantizer_class = f"{quantizers.__name__}.{quantizer.pop('class')}"
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"the exported tokenizer in {folder} cannot be read: {error}") from error
    arguments["quantizer"] = {"class_path": quantizer_class, "init_args": quantizer}
    tokenizer = {"class_path": f"{GSQTokenizer.__module__}.{GSQTokenizer.__name__}", "init_args": arguments}
    metrics = {
        "class_path": f"{ReconstructionMetrics.__module__}.{ReconstructionMetrics.__name__}",
        "init_args": {"names": list(REPORTED)},
    }
    return {
        "model": {"tokenizer": tokenizer, "metrics": metrics},
        "trainer": {"logger": False, "default_root_dir": str(folder.resolve() / command)},
    }


def trusted(carried: dict[str, Any], source: str, has_config: bool) -> dict[str, Any]:
    """What of a carried config is taken.

    A module with classes of somebody else's is left out where the user gives a config, which then has to name them.

    Args:
        carried: of `checkpoint_config` or `exported_config`.
        source: where it comes from, for messages.
        has_config: whether the user gives a config.

    Raises:
        InputError: where it names what is not of this library or torch.optim, and no config is given; or a place of
            images that may be a command.
    """
    strangers = sorted({path for path in named_paths(carried) if not is_trusted(path)})
    if strangers and not has_config:
        raise InputError(
            f"{source} names {', '.join(strangers)}, which is neither of this library nor torch.optim, and what a file "
            "names is not run on its word; if you trust it, give the config that names it with --config"
        )
    if strangers:
        carried = {name: section for name, section in carried.items() if name not in ("model", "data")}
    for name, place in carried.get("data", {}).get("init_args", {}).items():
        if isinstance(place, str) and not all(PLAIN_PLACE.fullmatch(part) for part in place.split("::")):
            raise InputError(
                f"{source} has data.{name} {place!r}, which may be a command and is not run on its word; give the "
                f"place with --data.{name}"
            )
    return carried


def named_paths(config: dict[str, Any]) -> Iterator[str]:
    """What a config may name to be imported: in the model's section all but plain words, and the class of the data."""
    yield from _names(config.get("model"))
    data = config.get("data")
    if isinstance(data, dict) and isinstance(data.get("class_path"), str):
        yield data["class_path"]


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if IMPORT_PATH.fullmatch(value) or not PLAIN_WORD.fullmatch(value) or (value and Path(value).exists()):
            yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if not (name in FILE_OPTIONS and isinstance(inner, str)):
                yield from _names(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _names(inner)


def is_trusted(path: str) -> bool:
    """Whether a path leads to what a trusted package defines itself, not to something that it imports."""
    module, _, name = path.rpartition(".")
    if not _within_trusted(module):
        return False
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        return False
    return _within_trusted(getattr(found, "__module__", ""))


def _within_trusted(module: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in TRUSTED)


def _without_notes(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that Lightning adds for itself."""
    return {name: value for name, value in hyperparameters.items() if not str(name).startswith("_")}
