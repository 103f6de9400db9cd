"""Where this library keeps what it can make again, and how files come to stand there whole or not at all."""

import os
import tempfile
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder for one kind of cached files: `GSQ_CACHE`, else gsq-lightning in `XDG_CACHE_HOME` or ~/.cache."""
    own = os.environ.get("GSQ_CACHE")
    if own:
        return Path(own).expanduser() / kind
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "gsq-lightning" / kind


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that no reader finds half of it. Raises OSError.

    After a power cut it may be damaged: readers check, and what is here can be made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
