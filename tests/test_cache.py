"""Where things are kept that can be made again."""

from pathlib import Path

import pytest

from gsq_lightning.files import cache_folder, read_cached, write_cached, write_whole


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
