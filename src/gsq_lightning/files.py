"""Files: atomic writes, locks, the disk cache, and disks that fill up or go away."""

import errno
import hashlib
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gsq_lightning.errors import causes

try:
    import fcntl
except ModuleNotFoundError:  # Windows without WSL, for which nothing is promised: no locks
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"  # of an exported tokenizer, and of networks on the Hugging Face Hub
PART = ".part"  # suffix of files that are being written
DIGEST = hashlib.sha256().digest_size  # bytes before the content of a cached file
HELD = (errno.EAGAIN, errno.EACCES)  # a lock that another process holds; other errors: no locks on this file system
DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENOENT,  # a folder that was removed
    errno.EEXIST,  # a file where a folder is to be
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


@contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[IO[bytes]]:
    """A file to write to, which at the end takes the place of `path`: no reader finds half of it. Raises OSError.

    Args:
        path: its folder is made where it is missing.
        durable: wait until the disk has it. Else it may be damaged after a power cut: readers check, or it can be made
            again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}")
    try:
        with part.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    if durable:
        _sync_folder(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file through `whole_file`."""
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it, no other process is within it for the same folder, where the file system can keep it out."""
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def hold_lock(path: Path) -> IO[str] | None:
    """Locks a file until the returned file is closed or this process ends, in whatever way.

    The `filelock` package does not serve here: its locks of files are exclusive, so that two processes that only ask
    (`is_locked`) at the same time would each take the other for one that writes; its shared ones are SQLite databases,
    which network file systems do not lock.

    Returns:
        the open file, or None where the file system has no locks.

    Raises:
        BlockingIOError: where another process holds it.
    """
    file = path.open("a")
    if fcntl is None:
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in HELD:
            raise BlockingIOError(error.errno, "another process holds it", str(path)) from error
        return None
    return file


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of a file. Not to be called by the holder."""
    if fcntl is None:
        return False
    try:
        file = path.open()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in HELD
    return False


def _sync_folder(folder: Path) -> None:
    """Waits until the disk knows the new name."""
    if fcntl is None:  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def disk_error(error: BaseException | None) -> OSError | None:
    """The disk's error among an error and its causes, or None."""
    return next((one for one in causes(error) if isinstance(one, OSError) and one.errno in DISK_ERRORS), None)


@contextmanager
def left_out_on_disk_errors(what: str) -> Iterator[None]:
    """Within it, trouble with the disk is logged as an error instead of raised: `what` is not worth a training."""
    try:
        yield
    except Exception as error:
        found = disk_error(error)
        if found is None:
            raise
        logger.error("%s could not be written: %s", what, found.strerror or found)


def cache_folder(kind: str) -> Path:
    """The folder for one kind of cached files: `GSQ_CACHE`, else gsq-lightning in `XDG_CACHE_HOME` or ~/.cache."""
    own = os.environ.get("GSQ_CACHE")
    if own:
        return Path(own).expanduser() / kind
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "gsq-lightning" / kind


def write_cached(path: Path, content: bytes, what: str) -> None:
    """Writes a file of the cache, with a checksum. If the disk fails, a warning says so.

    Args:
        path: within a `cache_folder`; its name changes with all that the content depends on, its format too.
        content: to be kept.
        what: it is, for the warning.
    """
    try:
        write_whole(path, hashlib.sha256(content).digest() + content)
    except OSError as error:
        logger.warning("the %s cannot be cached: %s", what, error)


def read_cached(path: Path, what: str) -> bytes | None:
    """The content that `write_cached` wrote; None if there is none or, with a warning, if it is damaged."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            raise ValueError("its checksum is wrong")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        logger.warning("the cached %s %s cannot be read (%s) and is made again", what, path, error)
        return None
    return content[DIGEST:]
