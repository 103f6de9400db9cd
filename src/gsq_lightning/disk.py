"""Writing to disks that fill up, break or go away."""

import errno
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

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


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that no reader finds half of it. Raises OSError.

    After a power cut it may be damaged: readers check, or it can be made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def disk_error(error: BaseException | None) -> OSError | None:
    """What a disk did not do, within an error and those that led to it; None where the disk is not to blame."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return error
        error = error.__cause__ or error.__context__
    return None


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
