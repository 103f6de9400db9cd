"""Weights of frozen pretrained networks: where they are published, where they are cached, how they are read.

A network's `weights` option is one word or a path everywhere:
- "pretrained": the published file, downloaded once into the usual cache;
- a path: the same file, brought by hand to a machine without network;
- "random": fixed random weights, for tests alone; the log says so.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gsq_lightning.errors import InputError, WeightsMissing, first_line
from gsq_lightning.files import WEIGHTS_FILE
from gsq_lightning.pretrained.hub import reachable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedWeights:
    """A published file of weights.

    Args:
        network: stable key of the network, such as "vgg16".
        url: of the file.
        repository: "owner/name" where it is `WEIGHTS_FILE` on the Hugging Face Hub, whose own cache keeps it; else
            torch's hub cache keeps it.
    """

    network: str
    url: str
    repository: str | None = None

    @classmethod
    def on_the_hub(cls, network: str, repository: str) -> "PublishedWeights":
        return cls(network, f"https://huggingface.co/{repository}/resolve/main/{WEIGHTS_FILE}", repository)

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def description(self) -> str:
        """Name of the file, and of its repository where it has one."""
        return f"{self.file} of {self.repository}" if self.repository else self.file


@contextmanager
def fixed_random_weights(network: str) -> Iterator[None]:
    """Within it, weights are drawn from a fixed seed; the global random state is unchanged afterwards."""
    logger.warning("%s has random weights: its values mean nothing beyond tests", network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def read_weights(weights: str, published: PublishedWeights) -> dict[str, Tensor]:
    """Reads a file of weights, safetensors or torch's own format, after a download where it is not cached.

    Code in the file is never run.

    Args:
        weights: "pretrained" for the published file, or the path of such a file.
        published: which file that is.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        WeightsMissing: where the published file is not cached and cannot be downloaded.
        InputError: where `weights` leads nowhere, or the file cannot be read.
    """
    from safetensors.torch import load_file

    if weights != "pretrained":
        path = Path(weights).expanduser()
        if not path.is_file():
            raise InputError(
                f'there is no file {weights!r}: weights of {published.network} are "pretrained" or the path of '
                f"{published.description}"
            )
    elif published.repository is None:
        path = _from_torch_cache(published)
    else:
        path = _from_hub_cache(published, published.repository)
    for files in _records:
        files.append((published.network, path))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:  # whatever the reader makes of a damaged file
        raise InputError(
            f"weights of {published.network}: {path} cannot be read: {first_line(error)}; remove it, or fetch it again"
        ) from error


def load_state(network: nn.Module, state: dict[str, Tensor], name: str) -> nn.Module:
    """Gives a network its weights. Raises InputError where they are those of another.

    Args:
        network: any.
        state: tensors by name.
        name: of the network, for the message.
    """
    try:
        nn.Module.load_state_dict(network, state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"these are not the weights of {name}: {reason[:300]}") from error
    return network


@contextmanager
def recorded_files() -> Iterator[list[tuple[str, Path]]]:
    """Within it, notes the network and path of each file of weights that is read."""
    files: list[tuple[str, Path]] = []
    _records.append(files)
    try:
        yield files
    finally:
        _records.remove(files)


_records: list[list[tuple[str, Path]]] = []


def _from_torch_cache(published: PublishedWeights) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"  # where torch keeps its own downloads
    path = folder / published.file
    if path.is_file():
        return path
    command = f"curl -L --create-dirs -o {path} {published.url}"
    missing = partial(WeightsMissing, published.network, published.file, published.url, folder, command)
    if not reachable(published.url):
        raise missing()
    # torchvision and torch-fidelity put the start of the SHA-256 into the name
    prefix = re.search(r"-([a-f0-9]{8})\.", published.file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(published.url, str(path), prefix.group(1) if prefix else None)
    except (OSError, RuntimeError) as error:
        raise missing(first_line(error)) from error
    return path


def _from_hub_cache(published: PublishedWeights, repository: str) -> Path:
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, WEIGHTS_FILE)
    if isinstance(cached, str):
        return Path(cached)
    url = hf_hub_url(repository, WEIGHTS_FILE)  # of a mirror, where $HF_ENDPOINT names one
    command = f"hf download {repository} {WEIGHTS_FILE}"
    cache = Path(constants.HF_HUB_CACHE)
    missing = partial(WeightsMissing, published.network, published.description, url, cache, command)
    # asked before the Hub's own client is, which would retry for most of a minute
    if constants.HF_HUB_OFFLINE or not reachable(url):
        raise missing()
    try:
        return Path(hf_hub_download(repository, WEIGHTS_FILE))
    except Exception as error:  # OSError, or what the Hub's HTTP client of the day raises
        raise missing(first_line(error)) from error
