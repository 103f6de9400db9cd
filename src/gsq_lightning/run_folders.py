"""The layout of a run's folder, and the names in it that several files share.

What one file alone writes has its name there: init_from.json in cli/fit.py, pictures in callbacks/pictures.py, reports
in `reports`.

RUNS/                   trainer.logger.save_dir/name, such as runs/f8: all runs of a recipe
  version_0/            one run, also when it is resumed; logs and pictures lie here
    config.yaml         what it was started with
    init_from.json      which weights it was started from, where it was, and which tensors were taken
    nonfinite/          batch=N.json: where the gradients of a skipped step were not finite
    checkpoints/        last.ckpt, step=N.ckpt; .running, locked as long as a process writes there
      validate/last/    what `gsq validate` found for last.ckpt; last-raw of its raw weights
    csv/                rows of Lightning's CSVLogger, where that is used; csv_2 after it is resumed
    metrics.json        what its last validation found
    .finished           the number of steps it ended at, its last validation and report included
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from gsq_lightning.errors import InputError

VERSION = re.compile(r"version_(\d+)")
CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
LOCK = ".running"  # beside the checkpoints


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def lock(self) -> Path:
        return self.checkpoints / LOCK

    @property
    def nonfinite(self) -> Path:
        return self.path / "nonfinite"

    @property
    def finished(self) -> Path:
        return self.path / ".finished"


def expanded(place: str) -> Path:
    """A path as somebody typed it, with ~ and $VARIABLES spelled out. Every place of a run goes through this once."""
    return Path(os.path.expandvars(place)).expanduser()


def run_folders(runs: Path) -> list[RunFolder]:
    """The runs of a recipe, the newest first."""
    if not runs.is_dir():
        return []
    numbers = (VERSION.fullmatch(path.name) for path in runs.iterdir())
    return [RunFolder(runs / f"version_{number}") for number in sorted((int(n[1]) for n in numbers if n), reverse=True)]


def next_run(runs: Path) -> RunFolder:
    """The folder of the next run, which is not created here.

    All ranks get the same one: nothing is written before their first synchronization.
    """
    newest = next(iter(run_folders(runs)), None)
    number = 0 if newest is None else int(newest.path.name.removeprefix("version_")) + 1
    return RunFolder(runs / f"version_{number}")


def run_of(checkpoint: Path) -> RunFolder | None:
    """The run that a checkpoint lies in, or None where it lies elsewhere."""
    folder = Path(os.path.abspath(checkpoint)).parent
    return RunFolder(folder.parent) if folder.name == CHECKPOINTS else None


def checkpoint_files(run: RunFolder) -> list[Path]:
    """The checkpoints of a run, the one that was written last first."""
    found = [path for path in run.checkpoints.glob("*.ckpt") if path.is_file()]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name == LAST_CHECKPOINT), reverse=True)


def newest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run, or of the newest run of a recipe that has one.

    Args:
        folder: of a run, or of all runs of a recipe.

    Raises:
        InputError: where there is none.
    """
    for run in (RunFolder(folder), *run_folders(folder)):
        found = checkpoint_files(run)
        if found:
            return found[0]
    raise InputError(f"there is no checkpoint below {folder}")


def csv_folder(run: RunFolder) -> str:
    """Name of a folder for Lightning's CSVLogger, which deletes the rows that it finds: a new one for each start."""
    names = ["csv", *(f"csv_{number}" for number in range(2, 1000))]
    return next(name for name in names if not (run.path / name).exists())
