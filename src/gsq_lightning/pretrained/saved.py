"""A tokenizer as it is stored, and the reading of checkpoints without running what they contain."""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from gsq_lightning.errors import InputError, first_few, first_line, how_many, require

OF_DECODERS = ("decoder_blocks", "adaptive_norm", "upsampling", "output_kernel_size")  # options of decoders alone


class SavedTokenizer(NamedTuple):
    """A tokenizer as it is stored.

    Attributes:
        config: plain data, for `GSQTokenizer.from_config`.
        weights: the state dict.
        kind: "ema" or "raw", of a checkpoint that has both.
        image_size: side of the images that its training evaluated, in pixels, where that is known.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    kind: str | None = None
    image_size: int | None = None

    @property
    def hash(self) -> str:
        """SHA-256 in hexadecimal of what gives indices their meaning: encoder and quantizer, config and weights.

        It is the same for a checkpoint, what is exported of it, and after a training of the decoder alone.
        """
        config = {name: value for name, value in self.config.items() if name not in OF_DECODERS}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, value in sorted(self.weights.items()):
            if name.startswith("decoder."):
                continue
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


class OmegaConfObject:
    """Replaces an object of OmegaConf while a checkpoint is read: has its state and no behavior."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


def _plain_dict(*_: Any) -> dict[Any, Any]:
    return {}


# what pickled containers of OmegaConf 2 name, besides plain data: their classes, and types in their notes
STAND_INS: list[Any] = [
    (_plain_dict, "collections.defaultdict"),
    *((OmegaConfObject, f"omegaconf.base.{name}") for name in ("ContainerMetadata", "Metadata")),
    *((OmegaConfObject, f"omegaconf.{name.lower()}.{name}") for name in ("DictConfig", "ListConfig")),
    *((OmegaConfObject, f"omegaconf.nodes.{name}Node") for name in ("Any", "Boolean", "Float", "Integer", "String")),
    *((OmegaConfObject, f"typing.{name}") for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")),
    *((OmegaConfObject, f"builtins.{name}") for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),
]


def read_plain(path: Path, file: BinaryIO | None = None) -> dict[str, Any]:
    """Reads what `torch.save` wrote: plain data, tensors, and OmegaConf's containers, for `without_omegaconf`.

    Nothing that the file names is imported or run.

    Args:
        path: of the file. Where it is a zip file, as all of today's are, tensors stay on disk until they are used.
        file: the same, opened; tensors are then read into memory.

    Raises:
        InputError: where it cannot be read, is no dictionary, or has anything else; its names are then listed.
    """
    require(
        path.suffix not in (".json", ".safetensors"),
        f"{path} is a part of an exported tokenizer, if anything; name its folder, {path.parent}",
    )
    try:
        with safe_globals(STAND_INS):
            mmap = file is None and zipfile.is_zipfile(path)
            content = torch.load(file or path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # whatever the unpickler makes of a damaged file
        known = isinstance(error, MemoryError | OSError | RuntimeError)  # the unpickler advises to run the file's code
        reason = _strangers(path) or (first_line(error) if known else "it is none, is damaged, or names code")
        raise InputError(f"{path} is not a readable checkpoint of gsq-lightning: {reason}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(f"{path} is not a readable checkpoint of gsq-lightning: it holds no dictionary but {kind}")
    return content


def without_omegaconf(value: Any) -> Any:
    """The same data with OmegaConf's containers turned into plain ones. Raises InputError for its interpolations."""
    if isinstance(value, OmegaConfObject):
        return without_omegaconf(value.state["_content"] if "_content" in value.state else value.state.get("_val"))
    if isinstance(value, dict):
        return {without_omegaconf(name): without_omegaconf(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_omegaconf(inner) for inner in value]
    if isinstance(value, str) and "${" in value:
        raise InputError(f"the config refers to another value by {value!r}, which is not followed")
    return value


def as_plain(value: Any) -> Any:
    """Numbers and arrays of NumPy, tuples and the like as what JSON has. Raises InputError for anything else."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): as_plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence):
        return [as_plain(inner) for inner in value]
    raise InputError(f"{value!r} is no number, word or list of these, so that no config can hold it")


def check_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Raises InputError with the first tensors of `weights` that `module` lacks, misses or has in another shape."""
    if differences := weight_differences(module.state_dict(), weights):
        shown = first_few(differences, 3, "; ")
        raise InputError(
            f"the weights of {source} do not fit this model in {how_many(len(differences), 'tensor')}: {shown}"
        )


def weight_differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """In words, each tensor by which a file's weights differ from a model's own, in name or shape."""
    differences = [
        f"{name}: {tuple(given[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    differences += [f"{name}: missing in the file" for name in own if name not in given]
    return differences + [f"{name}: unknown to the model" for name in given if name not in own]


def _strangers(path: Path) -> str | None:
    """The class that a checkpoint names and that is refused, if that is the error."""
    try:
        with safe_globals(STAND_INS):
            names = sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a damaged file, or a format of before
        return None
    if not names:
        return None
    return (
        f"it holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''}; only plain data, tensors and containers of "
        "OmegaConf are read, as making anything else would run code"
    )
