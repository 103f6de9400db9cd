"""How checkpoint files are written and read: whole or not at all, and without running what they hold."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from gsq_lightning.errors import causes
from gsq_lightning.files import PART, file_identity, whole_file

logger = logging.getLogger(__name__)


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the file that is to be replaced, waits until the disk has it, then renames: whatever happens, the
    file is the old one or the new one. A disk that is full or gone does not end a run: the old file stays, `failure`
    says why, and the next attempt may do better.

    Attributes:
        failure: why the last checkpoint could not be written, or None.
        read_file: identity of the file that was read last; () where it changed while it was read.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self.read_file: tuple[int, ...] | None = None

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
        """Reads tensors and plain data; objects that a pickle would make are refused."""
        before = file_identity(Path(path))
        checkpoint = super().load_checkpoint(path, map_location or _as_stored, weights_only=True)
        self.read_file = before if before == file_identity(Path(path)) else ()
        return checkpoint


def _as_stored(storage: Any, location: str) -> Any:
    """Keeps tensors in the machine's memory; Lightning moves them."""
    return storage


def remove_parts(folder: Path) -> None:
    """Removes what processes that died while writing have left."""
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
