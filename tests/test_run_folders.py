"""Where runs live."""

import os
from pathlib import Path

import pytest

from gsq_lightning import InputError
from gsq_lightning.run_folders import RunFolder, expanded, newest_checkpoint, next_run, run_folders, run_of


def test_runs_are_counted_and_the_newest_comes_first(tmp_path: Path) -> None:
    assert next_run(tmp_path / "missing").path.name == "version_0"
    for name in ("version_2", "version_10", "version_x", "other"):
        (tmp_path / name).mkdir()
    assert [run.path.name for run in run_folders(tmp_path)] == ["version_10", "version_2"]
    assert next_run(tmp_path).path.name == "version_11"


def test_places_are_expanded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    assert expanded("~/runs") == Path("/home/me/runs")
    assert expanded("$SCRATCH/runs") == Path("/scratch/runs")


def test_a_folder_stands_for_its_newest_checkpoint(tmp_path: Path) -> None:
    """Of a run that one which was written last; of a recipe that of the newest run which left one."""
    for version, names in ((0, ("last.ckpt",)), (1, ("step=5.ckpt", "last.ckpt")), (2, ())):
        folder = RunFolder(tmp_path / f"version_{version}").checkpoints
        folder.mkdir(parents=True)
        for second, name in enumerate(names):
            (folder / name).touch()
            os.utime(folder / name, (second, second))
    assert newest_checkpoint(tmp_path) == tmp_path / "version_1" / "checkpoints" / "last.ckpt"
    os.utime(tmp_path / "version_1" / "checkpoints" / "step=5.ckpt", (9, 9))
    assert newest_checkpoint(tmp_path / "version_1").name == "step=5.ckpt"
    with pytest.raises(InputError, match="there is no checkpoint below"):
        newest_checkpoint(tmp_path / "version_2")


def test_a_checkpoint_knows_its_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "f8" / "version_3")
    assert run_of(run.checkpoints / "last.ckpt") == run
    assert run_of(tmp_path / "somewhere" / "last.ckpt") is None
