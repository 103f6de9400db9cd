"""Finds the run that a command should go on with."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from gsq_lightning.errors import InputError, first_line

logger = logging.getLogger(__name__)

VERSION = re.compile(r"version_(\d+)")
CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
FINISHED = ".finished"  # beside it, with the number of steps

# what may change between two starts of the same run: where and how it computes, not what
FREE_OPTIONS = {
    "model": {"accumulate_batches", "compile_networks", "channels_last", "max_skipped_steps"},
    "data": {"num_workers", "val_batch_size", "on_error", "shuffle_buffer"},
}


@dataclass(frozen=True)
class ResumedRun:
    """A run to go on with.

    Attributes:
        folder: of its logs.
        version: its number among the runs of its recipe.
        checkpoint: what to go on from.
        step: generator steps made so far.
    """

    folder: Path
    version: int
    checkpoint: Path
    step: int


@dataclass(frozen=True)
class Decision:
    """Whether to go on with a run, and why, in words."""

    run: ResumedRun | None
    reason: str


def decide(
    runs: Path, config: dict[str, Any], max_steps: int, max_epochs: int | None, is_running: Callable[[Path], bool]
) -> Decision:
    """Looks at the newest run of a recipe.

    All processes of a job come to the same decision, as nothing here changes before they have met.

    Args:
        runs: folder of the recipe's runs, with version_0, version_1, ….
        config: of the command that is being run.
        max_steps: generator steps at which a run is finished, or -1.
        max_epochs: epochs at which it is finished, or None or -1.
        is_running: whether a living process writes to a folder of checkpoints.
    """
    for version in versions(runs):
        folder = runs / f"version_{version}"
        if is_running(folder / CHECKPOINTS):
            return Decision(None, f"{folder} is still running")
        found = newest_checkpoint(folder / CHECKPOINTS)
        if found is None:
            continue  # it died before its first checkpoint
        checkpoint, state = found
        step = int(state["global_step"])
        if is_finished(state, max_steps, max_epochs) and is_marked_finished(folder, step):
            return Decision(None, f"{folder} is finished")
        change = first_change(read_config(folder / CONFIG), config)
        if change is not None:
            return Decision(None, f"{folder} was another: {change} differs")
        return Decision(ResumedRun(folder, version, checkpoint, step), f"going on with {folder} from step {step}")
    return Decision(None, f"there is no run to go on with in {runs}")


def versions(runs: Path) -> list[int]:
    """Numbers of the runs in a folder, the newest first."""
    if not runs.is_dir():
        return []
    matches = (VERSION.fullmatch(path.name) for path in runs.iterdir())
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint with the most steps that can be read, and its content. Says so where one cannot."""
    found: list[tuple[int, float, Path, dict[str, Any]]] = []
    for path in folder.glob("*.ckpt") if folder.is_dir() else ():
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            found.append((int(state["global_step"]), path.stat().st_mtime, path, state))
        except Exception as error:  # whatever the unpickler makes of a damaged file
            logger.warning("the checkpoint %s cannot be read and is passed over: %s", path, first_line(error))
    if not found:
        return None
    _, _, path, state = max(found, key=lambda entry: entry[:2])
    return path, state


def newest_of_all_runs(runs: Path) -> Path:
    """The newest checkpoint of the newest run that has one. Raises InputError where there is none."""
    for version in versions(runs):
        found = newest_checkpoint(runs / f"version_{version}" / CHECKPOINTS)
        if found is not None:
            return found[0]
    raise InputError(f"there is no checkpoint below {runs}; give the path of one with --ckpt_path")


def is_finished(state: dict[str, Any], max_steps: int, max_epochs: int | None) -> bool:
    """Whether a checkpoint stands at the end of its training."""
    if 0 < max_steps <= int(state["global_step"]):
        return True
    epochs = state["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    return max_epochs is not None and 0 < max_epochs <= epochs


def mark_finished(folder: Path, step: int) -> None:
    """Notes that a run has come to its end, its last validation and report included. Raises OSError."""
    (folder / FINISHED).write_text(f"{step}\n")


def is_marked_finished(folder: Path, step: int) -> bool:
    """Whether nothing of a run that stands at its last step is missing."""
    try:
        return (folder / FINISHED).read_text() == f"{step}\n"
    except (OSError, UnicodeDecodeError):
        return False


def read_config(path: Path) -> dict[str, Any] | None:
    """The config of a run, or None where it left none."""
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return config if isinstance(config, dict) else None


def first_change(before: dict[str, Any] | None, now: dict[str, Any]) -> str | None:
    """The first option in which two configs describe different trainings, or None."""
    if before is None:
        return CONFIG
    if before.get("seed_everything") != now.get("seed_everything"):
        return "seed_everything"
    for section, free in FREE_OPTIONS.items():
        change = _change(_without(before.get(section), free), _without(now.get(section), free), section)
        if change is not None:
            return change
    return None


def _without(section: Any, free: set[str]) -> Any:
    """A section without its free options, which the data section has among its init_args."""
    if not isinstance(section, dict):
        return section
    return {
        name: _without(value, free) if name == "init_args" else value
        for name, value in section.items()
        if name not in free
    }


def _change(before: Any, now: Any, place: str) -> str | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            change = _change(before.get(name), now.get(name), f"{place}.{name}")
            if change is not None:
                return change
        return None
    return None if before == now else place.replace(".init_args", "")
