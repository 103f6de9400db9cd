"""The statistics of the originals are computed once, and again when anything changes that they depend on."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gsq_lightning.data.dataset import SourceImages
from gsq_lightning.data.sources import FolderSource
from gsq_lightning.data.transforms import ResizeAndCrop
from gsq_lightning.metrics import OriginalImages, ReconstructionMetrics
from gsq_lightning.metrics.features import FeatureExtractor
from gsq_lightning.metrics.statistics_cache import StatisticsCache
from tests.conftest import write_images

IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
ORIGINALS = OriginalImages("a", 6)


def validated(
    folder: Path | None, originals: OriginalImages | None = ORIGINALS, count: int = 6
) -> tuple[dict[str, float], list[str], int]:
    """Values of a validation, its notes, and how many images its network looked at."""
    looked = 0
    original_forward = FeatureExtractor.forward

    def counting(self: FeatureExtractor, *inputs: Tensor) -> Any:
        nonlocal looked
        looked += len(inputs[0])
        return original_forward(self, *inputs)

    metrics = ReconstructionMetrics(["rfd_random"], statistics_folder=folder and str(folder))
    metrics.load()
    metrics.start(originals)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractor, "forward", counting)
        for image in IMAGES[:count].split(4):
            metrics.update(image, 0.8 * image)
    return metrics.compute(), metrics.notes, looked


def test_the_second_validation_does_not_look_at_originals_and_gives_the_same(tmp_path: Path) -> None:
    first, _, looked = validated(tmp_path)
    assert looked == 12
    second, _, looked = validated(tmp_path)
    assert looked == 6
    assert second == first


def test_without_originals_or_folder_nothing_is_kept(tmp_path: Path) -> None:
    validated(tmp_path, originals=None)
    assert list(tmp_path.iterdir()) == []
    validated(None)
    assert validated(None)[2] == 12


def test_other_images_are_other_statistics(tmp_path: Path) -> None:
    validated(tmp_path)
    assert validated(tmp_path, OriginalImages("b", 6))[2] == 12
    assert len(list(tmp_path.iterdir())) == 2


def test_other_weights_and_preparations_are_other_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gsq_lightning.metrics.inception import inception_features, load_inception
    from gsq_lightning.metrics.statistics_cache import statistics_key

    random = inception_features("random", "antialias")
    network = load_inception("random")
    torch.save(network.state_dict(), tmp_path / "same.pth")
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-3
    torch.save(network.state_dict(), tmp_path / "other.pth")
    extractors = [
        random,
        inception_features("random", "tensorflow"),
        inception_features(str(tmp_path / "other.pth"), "antialias"),
    ]
    keys = {statistics_key("a", extractor) for extractor in extractors}
    assert len(keys) == 3
    monkeypatch.setattr("gsq_lightning.metrics.statistics_cache.version", lambda name: "0.0")
    assert statistics_key("a", random) not in keys


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    else:
        content[-20] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["cut", "empty", "one bit"])
def test_damaged_statistics_are_computed_anew(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    first, _, _ = validated(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    damage(path, how)
    again, _, looked = validated(tmp_path)
    assert (again, looked) == (first, 12)
    assert f"the cached file of statistics {path} cannot be read" in caplog.text
    assert path.read_bytes() == whole


def test_reconstructions_of_a_part_are_compared_with_the_whole_and_that_is_said(tmp_path: Path) -> None:
    """As where a file that could be read the last time cannot be read now."""
    validated(tmp_path)
    values, notes, looked = validated(tmp_path, count=5)
    assert values["rfd_random"] > 0
    assert looked == 5
    assert notes[0].startswith("5 of 6 images were validated; the others could not be read")
    assert notes[1] == "rfd_random compares 5 reconstructions with the kept statistics of all 6 originals"
    assert len(list(tmp_path.iterdir())) == 1


def test_statistics_of_a_part_are_neither_kept_nor_taken(tmp_path: Path) -> None:
    validated(tmp_path, count=5)
    assert list(tmp_path.iterdir()) == []
    validated(tmp_path, OriginalImages("a", 5), count=5)
    assert validated(tmp_path)[2] == 12


def test_a_sampler_that_repeats_images_leaves_no_statistics(tmp_path: Path) -> None:
    validated(tmp_path, OriginalImages("a", 5))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_costs_no_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    values, _, _ = validated(tmp_path / "file")
    assert values["rfd_random"] > 0
    assert "cannot be cached" in caplog.text


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    validated(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".statistics"]
    (path,) = tmp_path.iterdir()
    statistics = StatisticsCache(tmp_path).load(path.stem)
    assert statistics is not None
    assert int(statistics.images) == 6


def test_a_folder_of_images_is_told_by_names_times_sizes_and_transform(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 3)

    def fingerprint(size: int = 16, short_side: int = 16) -> str | None:
        return SourceImages(FolderSource(tmp_path / "images"), ResizeAndCrop(size, short_side)).fingerprint

    seen = [fingerprint(), fingerprint(size=8), fingerprint(short_side=18)]
    assert fingerprint() == seen[0]
    os.utime(paths[1], (1, 1))
    seen.append(fingerprint())
    paths[1].rename(paths[1].with_name("other.png"))
    seen.append(fingerprint())
    paths[0].unlink()
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen)
    assert None not in seen
    nameless = SourceImages(
        FolderSource(tmp_path / "images"), lambda image, generator: torch.zeros(3, 1, 1, dtype=torch.uint8)
    )
    assert nameless.fingerprint is None
