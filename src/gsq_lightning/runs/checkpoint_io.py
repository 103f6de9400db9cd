"""Checkpoint files: atomic writes, and reading of plain data only."""

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from gsq_lightning.errors import InputError, causes
from gsq_lightning.files import PART, whole_file
from gsq_lightning.pretrained.saved import read_plain

logger = logging.getLogger(__name__)


class LoadedCheckpoint(NamedTuple):
    """What a file held when it was read.

    Attributes:
        content: tensors and plain data.
        sha256: of the bytes that `content` was read from, in hexadecimal.
    """

    content: dict[str, Any]
    sha256: str


def load_checkpoint_file(path: Path) -> LoadedCheckpoint:
    """Reads tensors and plain data; objects that a pickle would make are refused.

    Hash and content are of the same bytes, even if another checkpoint takes the file's place meanwhile: an open file
    stays what it is, as nobody writes into one that has its name already.

    Raises:
        InputError: where the file cannot be read as a checkpoint.
    """
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            content = read_plain(path, file)
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return LoadedCheckpoint(content, sha256)


class WholeCheckpointIO(TorchCheckpointIO):
    """Atomic writes of checkpoints: whatever happens, the file is the old one or the new one. A disk that is full or
    gone does not end a run: the old file stays, `failure` says why, and the next checkpoint tries again.

    Attributes:
        failure: why the last checkpoint could not be written, or None.
        loaded_sha256: of the bytes of the checkpoint that was loaded last, or None.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self.loaded_sha256: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        try:
            with whole_file(path, durable=True) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
            if not isinstance(error, OSError) and not _is_short_write(error):
                raise
            self.failure = f"{path} could not be written: {_reason(error, path)}"
            logger.warning("%s; training goes on, and the checkpoint before stays", self.failure)
        else:
            self.failure = None

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads tensors, into the machine's memory, and plain data. Lightning moves them to devices."""
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        content, self.loaded_sha256 = load_checkpoint_file(Path(path))
        return content


def remove_parts(folder: Path) -> None:
    """Removes temporary files of processes that were killed while they wrote."""
    for part in folder.glob(f".*.ckpt.*{PART}"):
        part.unlink(missing_ok=True)


def _is_short_write(error: RuntimeError) -> bool:
    """Whether torch's zip writer failed because the file did: it says so in words."""
    text = str(error)
    return "PytorchStreamWriter" in text or "unexpected pos" in text or isinstance(error.__context__, OSError)


def _reason(error: BaseException, path: Path) -> str:
    cause = next((one for one in causes(error) if isinstance(one, OSError)), None)
    if cause is not None:
        return cause.strerror or str(cause)
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return str(error)
    return f"{str(error).splitlines()[0]} ({free / 2**20:.0f} MiB are free)"
