"""Pretrained networks that are used but neither trained nor saved: where their weights come from, how they are held.

A network's `weights` option is one word or a path everywhere:
- "pretrained": the published weights, downloaded once into the usual cache;
- a path: the same file, brought by hand to a machine without network;
- "random": fixed random weights, for tests alone; the log says so.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from gsq_lightning.errors import InputError, first_line
from gsq_lightning.pretrained.hub import NETWORK_TIMEOUT, reachable

logger = logging.getLogger(__name__)

HUB_FILE = "model.safetensors"


@contextmanager
def fixed_random_weights(purpose: str, seed: int = 0) -> Iterator[None]:
    """Within it, weights are drawn from a fixed seed; the surrounding random stream is left as it was."""
    logger.warning("%s has random weights: its values mean nothing beyond tests", purpose)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def read_weights(weights: str, url: str, purpose: str, option: str) -> dict[str, Tensor]:
    """The state dict of a network that is published at a URL.

    Args:
        weights: "pretrained" for the file at `url`, kept in torch's hub cache, or the path of such a file.
        url: where the file is published.
        purpose: what needs it, for messages.
        option: the option that takes a path, for messages.

    Raises:
        InputError: where the file is neither here nor to be had, or cannot be read.
    """
    path = _cached(url, purpose, option) if weights == "pretrained" else _given(weights, _name(url), purpose, option)
    return _read(path, purpose)


def read_hub_weights(weights: str, repository: str, purpose: str, option: str) -> dict[str, Tensor]:
    """The state dict of a network that is published on the Hugging Face Hub as model.safetensors.

    Args:
        weights: "pretrained" for the repository's file, kept in the Hub's own cache, or the path of such a file.
        repository: "owner/name".
        purpose, option: for messages, as in `read_weights`.

    Raises:
        InputError: where the file is neither here nor to be had, or cannot be read.
    """
    if weights == "pretrained":
        return _read(_cached_from_hub(repository, purpose, option), purpose)
    return _read(_given(weights, f"{HUB_FILE} of {repository}", purpose, option), purpose)


def cache_folder() -> Path:
    """Where downloaded weights lie: torch's hub cache, `$TORCH_HOME/hub/checkpoints`."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _given(weights: str, file: str, purpose: str, option: str) -> Path:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise InputError(f'{purpose}: {option} is {weights!r}; it takes "pretrained" or the path of {file}')
    return path


@contextmanager
def recorded_files() -> Iterator[list[tuple[str, Path]]]:
    """Within it, notes what each file of weights was read for, and where it lies."""
    files: list[tuple[str, Path]] = []
    _records.append(files)
    try:
        yield files
    finally:
        _records.remove(files)


_records: list[list[tuple[str, Path]]] = []


def _read(path: Path, purpose: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    for files in _records:
        files.append((purpose, path))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the reader makes of a damaged file
        raise InputError(f"{purpose}: {path} cannot be read as weights: {error}; remove it or fetch it anew") from error


def _cached(url: str, purpose: str, option: str) -> Path:
    path = cache_folder() / _name(url)
    if not path.is_file():
        if not reachable(url):
            raise InputError(
                f"{purpose} needs {_name(url)}, which is not in {path.parent}, and {_host(url)} does not answer within "
                f"{NETWORK_TIMEOUT} s. On a machine with network: curl -L --create-dirs -o {path} {url}; or set "
                f"{option} to the path of that file."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            torch.hub.download_url_to_file(url, str(part))
        except OSError as error:
            raise InputError(f"{purpose}: {url} could not be fetched: {error}") from error
        part.replace(path)
    return path


def _cached_from_hub(repository: str, purpose: str, option: str) -> Path:
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    # asked before the Hub's own client is, which would retry for most of a minute
    if constants.HF_HUB_OFFLINE or not reachable(hf_hub_url(repository, HUB_FILE)):
        raise InputError(
            f"{purpose} needs {HUB_FILE} of {repository}, which is not in {constants.HF_HUB_CACHE}, and the Hub does "
            f"not answer within {NETWORK_TIMEOUT} s. On a machine with network: hf download {repository} {HUB_FILE}; "
            f"or set {option} to the path of that file."
        )
    try:
        return Path(hf_hub_download(repository, HUB_FILE))
    except Exception as error:  # OSError, or what the Hub's HTTP client of the day raises
        raise InputError(f"{purpose}: {HUB_FILE} of {repository} could not be fetched: {first_line(error)}") from error


def _name(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def _host(url: str) -> str:
    return url.split("/")[2]
