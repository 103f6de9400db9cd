"""Where things are kept that can be made again."""

from pathlib import Path

import pytest

from gsq_lightning.files import cache_folder, write_whole


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
