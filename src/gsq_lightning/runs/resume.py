"""Finds the run that a command should resume."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gsq_lightning.errors import InputError, require
from gsq_lightning.files import is_locked
from gsq_lightning.pretrained.saved import read_plain
from gsq_lightning.run_folders import RunFolder, run_folders

logger = logging.getLogger(__name__)

RESUMABLE = {"pytorch-lightning_version", "state_dict", "global_step", "loops", "optimizer_states", "lr_schedulers"}

# options that may change when a run is resumed: they do not change the result
FREE_OPTIONS = {
    "model": {"accumulate_batches", "compile_networks", "channels_last", "max_skipped_steps"},
    "data": {"num_workers", "val_batch_size", "on_error", "shuffle_buffer"},
}


class Resumable(NamedTuple):
    """A checkpoint that a training can go on from.

    Attributes:
        path: of the file.
        state: its content, tensors on disk until they are used.
    """

    path: Path
    state: dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """Whether to resume a run.

    Attributes:
        run: the one to resume, or None for a new one.
        checkpoint: what to resume it from.
        reason: in words.
    """

    run: RunFolder | None
    checkpoint: Path | None
    reason: str


def decide(candidates: list[RunFolder], config: dict[str, Any], max_steps: int, max_epochs: int | None) -> Decision:
    """Decides by the newest run of the same config that has a checkpoint.

    All ranks decide the same: nothing is written before their first synchronization.

    Args:
        candidates: runs of a recipe, the newest first.
        config: of the command that is being run.
        max_steps: generator steps at which a run is finished, or -1.
        max_epochs: epochs at which it is finished, or None or -1.
    """
    others: list[str] = []
    for run in candidates:
        before = read_config(run)
        change = first_change(before, config)
        if change is not None:
            others.append(f"{run.path} is another training: {change} differs")
            continue
        if is_locked(run.lock):
            return Decision(None, None, f"{run.path} is still running")
        found = newest_readable(run)
        if found is None:
            continue  # it ended before its first checkpoint
        step = int(found.state["global_step"])
        if is_at_end(found.state, max_steps, max_epochs) and is_marked_finished(run, step):
            return Decision(None, None, f"{run.path} is finished")
        changed = ", ".join(_changes(before, config))
        note = f", with other {changed} than in its config.yaml" if changed else ""
        return Decision(run, found.path, f"resuming {run.path} from step {step}{note}")
    return Decision(None, None, next(iter(others), "there is no run to resume"))


def newest_readable(run: RunFolder) -> Resumable | None:
    """The checkpoint with the most steps that can be read and resumed.

    Logs a warning for one that cannot be read. Other callbacks may leave some with weights alone.
    """
    found: list[Resumable] = []
    for path in run.checkpoints.glob("*.ckpt"):
        try:
            state = read_plain(path)
        except InputError as error:
            logger.warning("%s; it is passed over", error)
            continue
        if is_resumable(state):
            found.append(Resumable(path, state))
    return max(found, key=lambda one: (int(one.state["global_step"]), one.path.stat().st_mtime), default=None)


def is_resumable(state: dict[str, Any]) -> bool:
    """Whether it is all of a training, not weights alone."""
    return state.keys() >= RESUMABLE


def check_resumable(checkpoint: Path) -> None:
    """Raises InputError where a file is no checkpoint of a training, or of its weights alone."""
    require(
        is_resumable(read_plain(checkpoint)),
        f"{checkpoint} has no training state to resume (weights alone?); --init_from starts a new one from weights",
    )


def newest_resumable(folder: Path) -> Path:
    """The checkpoint that a training goes on from, of a run or of the newest run of a recipe that has one.

    Raises:
        InputError: where there is none.
    """
    for run in (RunFolder(folder), *run_folders(folder)):
        found = newest_readable(run)
        if found is not None:
            return found.path
    raise InputError(f"there is no checkpoint below {folder} that a training could go on from")


def is_at_end(state: dict[str, Any], max_steps: int, max_epochs: int | None) -> bool:
    """Whether a checkpoint is of the last step of its training."""
    if 0 < max_steps <= int(state["global_step"]):
        return True
    epochs = state["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    return max_epochs is not None and 0 < max_epochs <= epochs


def mark_finished(run: RunFolder, step: int) -> None:
    """Marks a run as finished, after its last validation and report. Raises OSError."""
    run.finished.write_text(f"{step}\n")


def is_marked_finished(run: RunFolder, step: int) -> bool:
    """Whether a run was marked as finished at this step."""
    try:
        return run.finished.read_text() == f"{step}\n"
    except (OSError, UnicodeDecodeError):
        return False


def read_config(run: RunFolder) -> dict[str, Any] | None:
    """The config of a run, or None where it left none."""
    try:
        config = yaml.safe_load(run.config.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return config if isinstance(config, dict) else None


def first_change(before: dict[str, Any] | None, now: dict[str, Any]) -> str | None:
    """The first option in which two configs describe different trainings, or None."""
    if before is None:
        return "config.yaml"
    for name in ("seed_everything", "init_from", "init"):
        if before.get(name) != now.get(name):
            return name
    earlier, later = (
        {section: _without(config.get(section), free) for section, free in FREE_OPTIONS.items()}
        for config in (before, now)
    )
    return next(_changes(earlier, later), None)


def _without(section: Any, free: set[str]) -> Any:
    """A section without its free options, which the data section has among its init_args."""
    if not isinstance(section, dict):
        return section
    return {
        name: _without(value, free) if name == "init_args" else value
        for name, value in section.items()
        if name not in free
    }


def _changes(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """The options in which two configs differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            yield from _changes(before.get(name), now.get(name), f"{place}.{name}" if place else name)
    elif before != now:
        yield place.replace(".init_args", "")
