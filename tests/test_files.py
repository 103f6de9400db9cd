"""Atomic writes, the cache, and disks that fill up, met by what is written beside checkpoints."""

import errno
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gsq_lightning.cli.fit import leave_out_disk_errors
from gsq_lightning.files import cache_folder, left_out_on_disk_errors, read_cached, write_cached, write_whole
from gsq_lightning.runs import logger as run_logger
from gsq_lightning.runs.logger import RunLogger


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Within it, the kernel refuses to let a file grow beyond that many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def logged(folder: Path) -> list[int]:
    """Steps at which a value was logged, over all files of a folder."""
    steps = []
    for file in folder.glob("events.out.*"):
        events = EventAccumulator(str(file)).Reload()
        if "value" in events.Tags()["scalars"]:
            steps += [event.step for event in events.Scalars("value")]
    return sorted(steps)


def test_logs_are_left_out_while_the_disk_is_full_and_continue_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threading, "excepthook", leave_out_disk_errors)
    monkeypatch.setattr(run_logger, "RETRY", 0.0)
    logger = RunLogger(str(tmp_path), name=None, version="")
    logger.log_metrics({"value": 1.0}, 0)
    logger.save()
    with files_up_to(1024):
        for step in range(1, 100):
            logger.log_metrics({"value": 1.0}, step)
            logger.save()
    for step in range(100, 110):
        logger.log_metrics({"value": 1.0}, step)
    logger.finalize("success")
    steps = logged(tmp_path)
    assert steps[0] == 0
    assert steps[-10:] == list(range(100, 110))
    assert caplog.text.count(f"logs in {tmp_path}/ could not be written: File too large; training goes on") == 1


def test_a_failed_write_is_not_tried_again_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = RunLogger(str(tmp_path))
    tried = []

    def write() -> None:
        tried.append(1)
        raise ValueError("no such value") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger.attempt(write)
    logger.attempt(write)
    assert len(tried) == 1
    assert "No space left on device; training goes on" in caplog.text


def test_other_errors_of_a_logger_are_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not supported"):
        RunLogger(str(tmp_path)).log_metrics({"value": "text"}, 0)  # type: ignore[dict-item]


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "report"
    write_whole(path, b"old")
    with files_up_to(1024), left_out_on_disk_errors("the report"):
        write_whole(path, bytes(4096))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert "the report could not be written: File too large" in caplog.text


def test_errors_that_no_disk_made_are_raised() -> None:
    with pytest.raises(ValueError, match="of another kind"), left_out_on_disk_errors("the report"):
        raise ValueError("of another kind")


def test_the_folder_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSQ_CACHE", "/somewhere")
    assert cache_folder("statistics") == Path("/somewhere/statistics")
    monkeypatch.delenv("GSQ_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder("statistics") == Path("/caches/gsq-lightning/statistics")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder("listings") == Path("/home/somebody/.cache/gsq-lightning/listings")


def test_a_file_that_cannot_be_renamed_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_whole(tmp_path / "taken", b"content")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


@pytest.mark.parametrize("damage", [b"", b"short", b"0" * 32 + b"content"])
def test_what_was_cached_comes_back_or_is_named_as_damaged(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kind" / "one.file"
    assert read_cached(path, "thing") is None
    assert not caplog.text
    write_cached(path, b"content", "thing")
    assert read_cached(path, "thing") == b"content"
    path.write_bytes(damage)
    assert read_cached(path, "thing") is None
    assert f"the cached thing {path} cannot be read (its checksum is wrong)" in caplog.text


def test_a_cache_that_cannot_be_used_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taken").write_bytes(b"")
    write_cached(tmp_path / "taken" / "file", b"content", "thing")
    assert "cannot be cached" in caplog.text
    assert read_cached(tmp_path / "taken" / "file", "thing") is None
    assert read_cached(tmp_path, "thing") is None
    assert f"{tmp_path} cannot be read" in caplog.text
