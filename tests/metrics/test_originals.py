"""What is computed of the originals is computed once, and again when anything changes that it depends on."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gsq_lightning import InputError
from gsq_lightning.data.dataset import SourceImages
from gsq_lightning.data.sources import FolderSource
from gsq_lightning.data.transforms import ResizeAndCrop
from gsq_lightning.metrics import OriginalImages, ReconstructionMetrics
from gsq_lightning.metrics.features import FeatureExtractor, Features, random_features
from gsq_lightning.metrics.frechet import FrechetDistance
from gsq_lightning.metrics.kernel import KernelDistance
from gsq_lightning.metrics.originals import KeptOriginals, OriginalsCache, originals_key
from tests.conftest import write_images

IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
ORIGINALS = OriginalImages("a", 6)


def validated(
    folder: Path | None, originals: OriginalImages | None = ORIGINALS, images: Tensor = IMAGES
) -> tuple[dict[str, float], list[str], int]:
    """Values of a validation, its notes, and how many images its network looked at."""
    looked = 0
    original_forward = FeatureExtractor.forward

    def counting(self: FeatureExtractor, *inputs: Tensor) -> Any:
        nonlocal looked
        looked += len(inputs[0])
        return original_forward(self, *inputs)

    metrics = ReconstructionMetrics(["rfd_random", "psnr"], statistics_folder=folder and str(folder))
    metrics.start(originals)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractor, "forward", counting)
        for image in images.split(4):
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


def test_other_images_are_other_values(tmp_path: Path) -> None:
    validated(tmp_path)
    assert validated(tmp_path, OriginalImages("b", 6))[2] == 12
    assert len(list(tmp_path.iterdir())) == 2


def test_a_changed_transform_is_never_taken_for_what_was_kept(tmp_path: Path) -> None:
    """The data set calls itself the same, but its pixels are others: what a class of the user's may do."""
    validated(tmp_path)
    changed = IMAGES.flip(-1)
    expected, _, _ = validated(None, images=changed)
    values, _, looked = validated(tmp_path, images=changed)
    assert (values, looked) == (expected, 12)
    # and what was kept is now of these
    values, _, looked = validated(tmp_path, images=changed)
    assert (values, looked) == (expected, 6)


def test_originals_that_change_later_leave_the_metric_out_once(tmp_path: Path) -> None:
    """The first batch is as it was, and was not looked at: its part of the distance is missing."""
    validated(tmp_path)
    changed = torch.cat([IMAGES[:4], IMAGES[4:].flip(-1)])
    values, notes, _ = validated(tmp_path, images=changed)
    assert set(values) == {"images", "psnr"}
    assert notes[0].startswith("rfd_random is left out: the original images are not those of which values were kept")
    values, _, looked = validated(tmp_path, images=changed)
    assert (values, looked) == (validated(None, images=changed)[0], 12)


def test_an_image_twice_in_place_of_another_is_noticed(tmp_path: Path) -> None:
    """Each image is known, but they are not the same set."""
    validated(tmp_path)
    values, notes, _ = validated(tmp_path, images=torch.cat([IMAGES[:5], IMAGES[:1]]))
    assert "rfd_random" not in values
    assert "not those of which values were kept" in notes[0]


def test_all_that_values_depend_on_is_in_their_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gsq_lightning.metrics.inception import inception_features, load_inception

    distance = FrechetDistance("rfid", "inception", 2048)
    random = inception_features("random", "antialias")
    network = load_inception("random")
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-3
    torch.save(network.state_dict(), tmp_path / "other.pth")
    keys = [
        originals_key("a", random, distance),
        originals_key("b", random, distance),
        originals_key("a", inception_features("random", "tensorflow"), distance),
        originals_key("a", inception_features(str(tmp_path / "other.pth"), "antialias"), distance),
        originals_key("a", random, KernelDistance("rkid", "inception", 2048)),
    ]
    for library in ("torch", "pillow", "torch-fidelity"):
        with monkeypatch.context() as patch:
            patch.setattr("gsq_lightning.metrics.originals.version", lambda name, changed=library: str(name == changed))
            keys.append(originals_key("a", random, distance))
    assert len(set(keys)) == len(keys)
    assert originals_key("a", random, distance) == keys[0]


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
def test_damaged_values_are_computed_again(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    first, _, _ = validated(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    damage(path, how)
    again, _, looked = validated(tmp_path)
    assert (again, looked) == (first, 12)
    assert f"{path} cannot be read" in caplog.text
    assert path.read_bytes() == whole


def test_reconstructions_of_a_part_are_compared_with_the_whole_and_that_is_said(tmp_path: Path) -> None:
    """As where a file that could be read the last time cannot be read now."""
    validated(tmp_path)
    values, notes, looked = validated(tmp_path, images=IMAGES[:5])
    assert values["rfd_random"] > 0
    assert looked == 5
    assert notes[0].startswith("5 of 6 images were validated; the others could not be read")
    assert notes[1] == "rfd_random is against kept values of all 6 originals, 5 of which were read"
    assert len(list(tmp_path.iterdir())) == 1


def test_values_of_a_part_are_neither_kept_nor_taken(tmp_path: Path) -> None:
    validated(tmp_path, images=IMAGES[:5])
    assert list(tmp_path.iterdir()) == []
    validated(tmp_path, OriginalImages("a", 5), images=IMAGES[:5])
    assert validated(tmp_path)[2] == 12


def test_a_sampler_that_repeats_images_leaves_nothing(tmp_path: Path) -> None:
    validated(tmp_path, OriginalImages("a", 5))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_costs_no_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    values, _, _ = validated(tmp_path / "file")
    assert values["rfd_random"] > 0
    assert "cannot be cached" in caplog.text


def test_features_that_are_kept_give_the_same_kernel_distance(tmp_path: Path) -> None:
    features, hashes = torch.randn(2, 9, 5), torch.arange(9).flip(0)
    first, second = (KernelDistance("rkd", "random", 5) for _ in range(2))
    first.update(Features(features[0]), hashes, real=True)
    first.update(Features(features[1]), hashes, real=False)
    originals = first.compute().originals
    assert originals is not None
    cache = OriginalsCache(tmp_path)
    cache.save("key", originals)
    kept = cache.load("key")
    assert isinstance(kept, KeptOriginals)
    second.take(kept)
    assert not second.wants_originals(hashes[2:5])
    second.update(None, hashes, real=True)
    second.update(Features(features[1]), hashes, real=False)
    assert second.values() == first.values()
    assert second.compute().originals is None
    second.reset()
    assert second.wants_originals(hashes)


def test_a_metric_gets_no_features_of_originals_because_another_wants_them(tmp_path: Path) -> None:
    """Kept values of one of two distances serve, though the other has none."""
    validated(tmp_path)
    metrics = ReconstructionMetrics(
        "rfd_random", statistics_folder=str(tmp_path), own=[KernelDistance("k", "random", 64)]
    )
    metrics.start(ORIGINALS)
    metrics.update(IMAGES, 0.8 * IMAGES)
    assert metrics.reused == ["rfd_random"]
    frechet, kernel = (metrics.metrics[name] for name in ("rfd_random", "k"))
    assert (frechet.fake_images, frechet.real_images, frechet.unseen) == (6, 0, 6)
    assert (sum(map(len, kernel.real)), kernel.unseen) == (6, 0)
    assert metrics.compute()["rfd_random"] == pytest.approx(validated(None)[0]["rfd_random"])


def test_a_metric_that_lacks_what_it_needs_says_so() -> None:
    metric = FrechetDistance("rfd", "random", 64)
    metric.update(random_features()(torch.zeros(3, 3, 8, 8, dtype=torch.uint8)), torch.arange(3), real=False)
    values, notes = metric.values()
    assert values == {}
    assert "needs at least 2 images" in notes[0]
    codebook = ReconstructionMetrics("codebook")
    codebook.load(4)
    with pytest.raises(InputError, match="needs indices"):
        codebook.update(IMAGES, IMAGES)


def test_a_folder_of_images_is_identified_by_names_times_sizes_and_transform(tmp_path: Path) -> None:
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
