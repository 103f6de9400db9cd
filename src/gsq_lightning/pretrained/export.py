"""Tokenizers on disk and on the Hub: a folder with `config.json` and `model.safetensors`, or a checkpoint.

Only plain data and tensors are read; nothing that a file names is imported or run.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gsq_lightning.errors import InputError, first_line, look_up, require
from gsq_lightning.files import WEIGHTS_FILE, write_whole
from gsq_lightning.pretrained.card import CARD_FILE
from gsq_lightning.pretrained.hub import reachable
from gsq_lightning.pretrained.released import RELEASED_FILE, convert, is_released
from gsq_lightning.pretrained.saved import SavedTokenizer, read_plain
from gsq_lightning.run_folders import newest_checkpoint

CONFIG_FILE = "config.json"
IMAGE_SIZE = "image_size"  # in the config's file, beside what makes the tokenizer

DEMOS = Path(__file__).parents[1] / "demo"  # tokenizers that come with this package, a folder each
DEFAULT_DEMO = "demo_g3"

Weights = Literal["ema", "raw"]
AVERAGED: dict[Weights, bool] = {"ema": True, "raw": False}
ONE_KIND = 'holds weights of one kind; only a checkpoint of training has "raw" ones beside the averaged ones'


def write_folder(folder: Path, saved: SavedTokenizer, half: bool = False) -> None:
    """Writes `config.json` and `model.safetensors` into `folder`, which is made where it is missing.

    Args:
        folder: where to.
        saved: the tokenizer.
        half: store the networks' weights in float16, half the bytes; `read_tokenizer` gives float32 again. The
            quantizer's stay as they are: in float16 close codes would be one.

    Raises:
        InputError: where `folder` is a file, or holds another tokenizer with a model card, whose numbers are its own.
    """
    from safetensors.torch import save

    require(not folder.is_file(), f"{folder} is a file; name a folder")
    kept = {
        name: x.half() if half and x.is_floating_point() and not name.startswith("quantizer.") else x
        for name, x in saved.weights.items()
    }
    content = save({name: x.contiguous() for name, x in kept.items()})
    before = folder / WEIGHTS_FILE
    require(
        not (before.exists() and (folder / CARD_FILE).exists() and before.read_bytes() != content),
        f"{folder} holds another tokenizer, and {CARD_FILE} its model card; name another folder, or remove the card",
    )
    write_whole(before, content)
    size = {} if saved.image_size is None else {IMAGE_SIZE: saved.image_size}
    write_whole(folder / CONFIG_FILE, (json.dumps(saved.config | size, indent=2) + "\n").encode())


def push_folder(repository: str, folder: Path, private: bool) -> str:
    """Uploads a folder to a repository of the Hugging Face Hub, which is made where it is missing; its address.

    Raises:
        InputError: where the Hub does not take it.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Tokenizer of gsq-lightning")
    except Exception as error:  # also those of its HTTP library, which is another in each version
        raise InputError(
            f"{repository!r} could not be written to on the Hugging Face Hub: {first_line(error)}"
        ) from error
    return str(address)


def read_tokenizer(source: str | Path, revision: str | None = None, weights: Weights = "ema") -> SavedTokenizer:
    """Reads a folder that `write_folder` wrote, a checkpoint, or a repository of the Hugging Face Hub with either.

    Args:
        source: a path of these, or of a run or a recipe's runs for the newest checkpoint; the name of a tokenizer that
            comes with this package, or that of a repository.
        revision: branch, tag or commit on the Hub.
        weights: of a training checkpoint: "ema" for the averaged ones where it has them, or "raw". The others have
            one kind, which is not "raw". Weights of a checkpoint stay on disk until they are used.

    Raises:
        InputError: where the source is none of these, cannot be read, or has no such weights; for a revision of what
            is on this machine.
    """
    wants_average = look_up("weights", weights, AVERAGED)
    path = local_copy(source, revision)
    if not path.is_dir():
        return tokenizer_in(read_plain(path), path, weights)
    require(wants_average, f"{path} {ONE_KIND}")
    return _read_folder(path)


def read_released(source: str | Path, revision: str | None = None) -> SavedTokenizer:
    """Reads a checkpoint that GSQ's authors released.

    Args:
        source: its path, that of its folder, or the name of its repository on the Hugging Face Hub.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: where the source is none of these, or cannot be read.
    """
    path = _resolve_source(source, revision)
    path = path / RELEASED_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{source} holds no {RELEASED_FILE}, as GSQ's authors released them")
    checkpoint = read_plain(path)
    if not is_released(checkpoint):
        raise InputError(
            f"{path} is no checkpoint that GSQ's authors released, which hold model_state_dict and config; "
            "from_pretrained reads those of gsq-lightning"
        )
    return convert(checkpoint, str(path))


def tokenizer_in(checkpoint: dict[str, Any], path: Path, weights: Weights = "ema") -> SavedTokenizer:
    """The tokenizer in the content of a training checkpoint.

    Args:
        checkpoint: what its file holds.
        path: of the file, for messages.
        weights: as of `read_tokenizer`.

    Raises:
        InputError: where it holds none, or no such weights.
    """
    wants_average = look_up("weights", weights, AVERAGED)
    if is_released(checkpoint):
        require(wants_average, f"{path} {ONE_KIND}")
        return convert(checkpoint, str(path))
    try:
        config, state = checkpoint["tokenizer_config"], checkpoint["state_dict"]
        has_average = checkpoint["training_state"]["ema_updates"] > 0
        prefix = "ema.module." if wants_average and has_average else "tokenizer."
        found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if not all(isinstance(value, Tensor) for value in found.values()):
            raise TypeError("its weights are not tensors")
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise InputError(f"{path} is not a readable checkpoint of gsq-lightning: {reason}") from error
    return SavedTokenizer(config, found, weights if has_average else None, _evaluated_size(checkpoint))


def _evaluated_size(checkpoint: dict[str, Any]) -> int | None:
    """Side of the images of validation, in pixels, of a checkpoint that says it."""
    settings = checkpoint.get("data_settings")
    sizes = [settings.get(name) for name in ("val_image_size", "image_size")] if isinstance(settings, dict) else []
    return next((size for size in sizes if is_size(size)), None)


def is_size(value: Any) -> bool:
    """Whether a value from a file is a number of pixels."""
    return type(value) is int and value > 0


def local_copy(source: str | Path, revision: str | None = None) -> Path:
    """The file of a checkpoint or the folder of an export, fetched from the Hub where it is not on this machine.

    A run, or all runs of a recipe, stand for their newest checkpoint.

    Raises:
        InputError: where it is on neither; for a revision of what is on this machine.
    """
    path = _resolve_source(source, revision)
    if path.is_dir() and not (path / CONFIG_FILE).exists():
        if (path / RELEASED_FILE).is_file():
            return path / RELEASED_FILE
        with suppress(InputError):
            return newest_checkpoint(path)
    return path


def _resolve_source(source: str | Path, revision: str | None) -> Path:
    path = Path(source).expanduser()
    is_here = path.is_file() or any((path / name).exists() for name in (CONFIG_FILE, RELEASED_FILE))
    demo = None if is_here else bundled(str(source))  # a folder of that name may be another thing
    here = demo or (path if path.exists() else None)
    require(
        here is None or revision is None,
        f"revision is {revision!r}, and {here} is on this machine; only a repository of the Hub has revisions",
    )
    return here or _download(str(source), revision)


def bundled(name: str) -> Path | None:
    """The folder of a tokenizer that comes with this package, or None for any other name."""
    demo = DEMOS / (DEFAULT_DEMO if name == "demo" else name)
    return demo if demo.parent == DEMOS and demo.is_dir() else None


def _read_folder(folder: Path) -> SavedTokenizer:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        size = config.pop(IMAGE_SIZE, None) if isinstance(config, dict) else None
        if size is not None and not is_size(size):
            raise ValueError(f"its {IMAGE_SIZE} is {size!r}, and must be a whole number above 0")
        weights = load_file(folder / WEIGHTS_FILE)
        weights = {name: x.float() if x.dtype == torch.half else x for name, x in weights.items()}
        return SavedTokenizer(config, weights, image_size=size)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no exported tokenizer: {Path(error.filename or WEIGHTS_FILE).name} is missing; "
            "save_pretrained writes such a folder"
        ) from error
    # ValueError: no JSON, or no UTF-8
    except (OSError, RecursionError, SafetensorError, ValueError) as error:
        raise InputError(f"the exported tokenizer in {folder} cannot be read: {error}") from error


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    files = [CONFIG_FILE, WEIGHTS_FILE, RELEASED_FILE]
    ours = f"this package comes with {', '.join(['demo', *sorted(folder.name for folder in DEMOS.iterdir())])}"
    try:
        validate_repo_id(repository)
        # asked before the Hub's own client is, which would retry for most of a minute
        offline = constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files, local_files_only=offline))
    except HFValidationError as error:
        raise InputError(f"there is no {repository}, and it is no name of a repository on the Hub; {ours}") from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"there is no file or folder {repository} here; {ours}. A repository of this name is not in "
            f"{constants.HF_HUB_CACHE}, and the Hugging Face Hub does not answer; if there is one, on a machine with "
            f"network: hf download {repository}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise InputError(
            f"there is no file or folder {repository} here; {ours}. The Hugging Face Hub does not give it: "
            f"{first_line(error)}"
        ) from error
