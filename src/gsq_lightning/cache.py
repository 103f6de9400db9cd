"""Where this library keeps what it can make again."""

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder for one kind of cached files: `GSQ_CACHE`, else gsq-lightning in `XDG_CACHE_HOME` or ~/.cache."""
    own = os.environ.get("GSQ_CACHE")
    if own:
        return Path(own).expanduser() / kind
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "gsq-lightning" / kind
