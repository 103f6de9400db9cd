"""The source of validation, test and prediction: a checkpoint or an exported tokenizer, with its defaults.

Files are not trusted: plain values of known options are taken from them, and the names of classes of this library are
looked up in tables. Nothing that a file names is imported or run.
"""

import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple, get_args

from torch import Tensor

import gsq_lightning.data
from gsq_lightning import quantizers
from gsq_lightning.cli.arguments import PLACES
from gsq_lightning.errors import InputError, look_up, require
from gsq_lightning.metrics import REPORTED, MetricName, MetricOptions
from gsq_lightning.pretrained.export import CONFIG_FILE, Weights, bundled, read_tokenizer, tokenizer_in
from gsq_lightning.pretrained.released import RELEASED_FILE
from gsq_lightning.quantizers import Quantizer
from gsq_lightning.reports import sha256_of
from gsq_lightning.run_folders import expanded, newest_checkpoint
from gsq_lightning.runs.checkpoint_io import load_checkpoint_file

# options that say nothing of other images
OF_THOSE_IMAGES = ("val_share", "source", "image_column", "label_column", "class_names")
WORD = re.compile(r"\w*", re.ASCII)  # no path, no place to import from


class Source(NamedTuple):
    """A trained tokenizer.

    Attributes:
        path: of the checkpoint's file, or of the folder of an export.
        sha256: of the bytes that the weights were read from.
        config: of the tokenizer, plain data.
        weights: its state dict.
        kind: of the weights, "ema" or "raw", of a checkpoint that has both.
        data: settings of the data that it was trained on, plain data; of an export the size of images, if it has one.
        metrics: names of what its own validation computed, or None.
        metric_settings: how it did: options of `ReconstructionMetrics`, or None.
        recipe: configs that it was trained with.
        step: generator steps of its training.
    """

    path: Path
    sha256: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    kind: str | None
    data: dict[str, Any]
    metrics: list[str] | None = None
    metric_settings: dict[str, bool] | None = None
    recipe: str | None = None
    step: int | None = None

    @property
    def own_quantizer(self) -> str | None:
        """Name of the quantizer's class where it is not one of this library: a config must then give the tokenizer."""
        quantizer = self.config.get("quantizer")
        return str(quantizer["own_class"]) if isinstance(quantizer, dict) and "own_class" in quantizer else None


def read_source(path: Path, weights: Weights) -> Source:
    """Reads a checkpoint or an export.

    Args:
        path: of either.
        weights: of a checkpoint: "ema" or "raw".

    Raises:
        InputError: where it is neither, or cannot be read.
    """
    if path.is_dir():
        saved = read_tokenizer(path, weights=weights)
        size = {"class": "ImageNetDataModule", "image_size": saved.image_size} if saved.image_size else {}
        return Source(path, sha256_of(path), saved.config, saved.weights, saved.kind, size)
    content, sha256 = load_checkpoint_file(path)
    saved = tokenizer_in(content, path, weights)
    metrics, recipe, step = content.get("metrics"), content.get("recipe"), content.get("global_step")
    data, settings = content.get("data_settings"), content.get("metric_settings")
    settings = settings if isinstance(settings, dict) else {}
    return Source(
        path,
        sha256,
        saved.config,
        saved.weights,
        saved.kind,
        data if isinstance(data, dict) else {},
        metrics if isinstance(metrics, list) and all(name in get_args(MetricName) for name in metrics) else None,
        {name: settings[name] for name in MetricOptions().settings if isinstance(settings.get(name), bool)},
        recipe if isinstance(recipe, str) else None,
        step if isinstance(step, int) else None,
    )


def find_tokenizer(source: str) -> Path | None:
    """The file of a checkpoint, or the folder of an export.

    Args:
        source: path of either, of a run or a recipe for its newest checkpoint, or of a folder with what GSQ's authors
            released; or the name of a tokenizer that comes with this package.

    Returns:
        None where there is nothing of this name; some commands take it for that of a repository of the Hub.

    Raises:
        InputError: where a folder holds none.
    """
    path = expanded(source)
    if path.is_file() or is_export(path):
        return path
    if (path / RELEASED_FILE).is_file():
        return path / RELEASED_FILE
    demo = bundled(source)
    if path.is_dir():
        try:
            return newest_checkpoint(path)
        except InputError:
            if demo is None:
                raise
    return demo


def is_export(path: Path) -> bool:
    """Whether a path is a folder that `save_pretrained` wrote."""
    return (path / CONFIG_FILE).is_file()


def parser_defaults(source: Source, with_places: bool) -> dict[str, Any]:
    """What a source brings to the command's options, below config files and flags.

    Args:
        source: what is evaluated.
        with_places: whether images are taken from where a checkpoint's were, unless an option says otherwise.

    Raises:
        InputError: where its config is not that of a tokenizer of this version.
    """
    defaults: dict[str, Any] = {
        "model.metrics": {
            "class_path": "gsq_lightning.metrics.ReconstructionMetrics",
            "init_args": {"names": source.metrics or list(REPORTED), **(source.metric_settings or {})},
        },
    }
    if source.own_quantizer is None:
        defaults["model.tokenizer"] = tokenizer_default(source)
    data = data_default(source.data, with_places)
    return defaults | ({"data": data} if data else {})


def tokenizer_default(source: Source) -> dict[str, Any]:
    """The tokenizer's config in the form of the command's options."""
    known = {name: kind for name, kind in vars(quantizers).items() if isinstance(kind, type)}
    try:
        arguments = dict(source.config)
        quantizer = dict(arguments.pop("quantizer"))
        name = quantizer.pop("class")
        kind = look_up("the quantizer's class", name, known)
        require(issubclass(kind, Quantizer), f"{name} is no quantizer")
        require(is_plain(arguments) and is_plain(quantizer), "it holds more than plain values")
    except (InputError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the tokenizer's config in {source.path} does not fit this version of gsq-lightning: {error}"
        ) from error
    arguments["quantizer"] = {"class_path": f"{quantizers.__name__}.{name}", "init_args": quantizer}
    return {"class_path": "gsq_lightning.GSQTokenizer", "init_args": arguments}


def data_default(settings: dict[str, Any], with_places: bool) -> dict[str, Any] | None:
    """The data's settings in the form of the command's options, where they name a data module of this library.

    Args:
        settings: of a checkpoint.
        with_places: whether images are taken from where the checkpoint's were, if these are local.
    """
    kinds = {name: kind for name, kind in vars(gsq_lightning.data).items() if name.endswith("DataModule")}
    kind = kinds.get(str(settings.get("class")))
    if kind is None:
        return None
    known = inspect.signature(kind).parameters
    options = {name: settings[name] for name in settings if name in known and name not in PLACES}
    options = {name: value for name, value in options.items() if is_plain(value) or is_names(name, value)}
    if not with_places:
        options = {name: value for name, value in options.items() if name not in OF_THOSE_IMAGES}
    else:
        options |= {name: settings[name] for name in PLACES if name in known and is_local(settings.get(name))}
    return {"class_path": f"gsq_lightning.data.{kind.__name__}", "init_args": options}


def is_names(option: str, value: Any) -> bool:
    """Whether an option has the names of classes, which may be any text."""
    return (
        option in ("class_names", "trained_class_names")
        and isinstance(value, list)
        and all(isinstance(name, str) for name in value)
    )


def is_local(place: Any) -> bool:
    """Whether a place of images is an absolute path of something here: no URL, no pattern, no command."""
    return isinstance(place, str) and Path(place).is_absolute() and Path(place).exists()


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a word, or a list or the first level of a dict of these."""
    if isinstance(value, dict):
        return all(
            isinstance(name, str) and not isinstance(inner, dict) and is_plain(inner) for name, inner in value.items()
        )
    if isinstance(value, list | tuple):
        return all(not isinstance(inner, dict) and is_plain(inner) for inner in value)
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and bool(WORD.fullmatch(value)))
