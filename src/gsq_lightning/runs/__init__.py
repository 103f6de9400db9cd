"""How runs survive: their folders, checkpoints, resuming, signals, logs.

What needs lightning is imported when first asked for: reports, which know the layout of runs, do without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsq_lightning.runs.checkpoint import RunCheckpoint
    from gsq_lightning.runs.logger import RunLogger

_HOMES = {"RunCheckpoint": "gsq_lightning.runs.checkpoint", "RunLogger": "gsq_lightning.runs.logger"}

__all__ = ["RunCheckpoint", "RunLogger"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
