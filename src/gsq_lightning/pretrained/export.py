"""Tokenizers on disk and on the Hub: a folder with `config.json` and `model.safetensors`, or a training checkpoint.

Only plain data and tensors are read; nothing that a file names is imported or run.
"""

import json
import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from gsq_lightning.errors import InputError, first_line, look_up
from gsq_lightning.files import write_whole

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

Weights = Literal["ema", "raw"]
AVERAGED: dict[Weights, bool] = {"ema": True, "raw": False}


class SavedTokenizer(NamedTuple):
    """A tokenizer as it is stored.

    Attributes:
        config: plain data, for `GSQTokenizer.from_config`.
        weights: the state dict.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]


def write_folder(folder: Path, saved: SavedTokenizer) -> None:
    """Writes `config.json` and `model.safetensors` into `folder`, which is made where it is missing."""
    from safetensors.torch import save

    write_whole(folder / WEIGHTS_FILE, save({name: x.contiguous() for name, x in saved.weights.items()}))
    write_whole(folder / CONFIG_FILE, (json.dumps(saved.config, indent=2) + "\n").encode())


def read_tokenizer(source: str | Path, revision: str | None = None, weights: Weights = "ema") -> SavedTokenizer:
    """Reads a folder that `write_folder` wrote, a training checkpoint, or a repository of the Hugging Face Hub.

    Args:
        source: a path, or the name of a repository.
        revision: branch, tag or commit on the Hub.
        weights: of a checkpoint: "ema" for the averaged ones where it has them, or "raw".

    Raises:
        InputError: where the source is none of these, or cannot be read.
    """
    path = Path(source)
    if path.is_file():
        return read_checkpoint(path, weights)
    return _read_folder(path if path.is_dir() else _download(str(source), revision))


def read_checkpoint(path: Path, weights: Weights = "ema") -> SavedTokenizer:
    """Reads the tokenizer of a training checkpoint, and no more of the file than that.

    Args:
        path: of the checkpoint. Where it is a zip file, as all of today's are, the weights stay on disk until they are
            used.
        weights: "ema" for the averaged ones where the checkpoint has them, or "raw".

    Raises:
        InputError: where the file cannot be read, or is not a checkpoint of this library.
    """
    averaged = look_up("weights", weights, AVERAGED)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        config, state = checkpoint["tokenizer_config"], checkpoint["state_dict"]
        averaged = averaged and int(state.get("ema.n_averaged", 0)) > 0
        prefix = "ema.module." if averaged else "tokenizer."
        found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if not all(isinstance(value, Tensor) for value in found.values()):
            raise TypeError("its weights are not tensors")
    except Exception as error:  # whatever the unpickler makes of a damaged file
        raise InputError(f"{path} is not a readable checkpoint of gsq-lightning: {first_line(error)}") from error
    return SavedTokenizer(config, found)


def check_weights(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Raises InputError with the first tensors of `weights` that `module` lacks, misses or has in another shape."""
    own = module.state_dict()
    differences = [
        f"{name}: {tuple(weights[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    differences += [f"{name}: missing in the file" for name in own if name not in weights]
    differences += [f"{name}: unknown to the model" for name in weights if name not in own]
    if differences:
        shown = "; ".join(differences[:3]) + ("; …" if len(differences) > 3 else "")
        raise InputError(f"the weights of {source} do not fit this model in {len(differences)} tensors: {shown}")


def _read_folder(folder: Path) -> SavedTokenizer:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        return SavedTokenizer(config, load_file(folder / WEIGHTS_FILE))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no exported tokenizer: {Path(error.filename or WEIGHTS_FILE).name} is missing; "
            "save_pretrained writes such a folder"
        ) from error
    # ValueError: no JSON, or no UTF-8
    except (OSError, RecursionError, SafetensorError, ValueError) as error:
        raise InputError(f"the exported tokenizer in {folder} cannot be read: {error}") from error


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{repository!r} is neither a folder nor a checkpoint here, and could not be fetched from the Hugging Face "
            f"Hub: {first_line(error)}"
        ) from error
