"""The same images from folders, lists, archives, Parquet files and shards; listings that are cached."""

import io
import itertools
import os
import shutil
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gsq_lightning import InputError
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.data.batch import Sample
from gsq_lightning.data.dataset import SourceImages
from gsq_lightning.data.loader import Loading
from gsq_lightning.data.sampler import DataPosition, SampleKey
from gsq_lightning.data.sources import ArchiveSource, FolderSource, ListSource, ParquetSource, listing, names, parquet
from gsq_lightning.data.sources import archive as archive_module
from gsq_lightning.data.sources.interface import ImageSource
from gsq_lightning.data.sources.locate import find_split, open_images
from gsq_lightning.data.sources.parquet import Columns
from gsq_lightning.data.stream import StreamedShards
from gsq_lightning.data.transforms import ResizeAndCrop
from gsq_lightning.names import PackedNames
from tests.conftest import write_images
from tests.data.test_data import run_through

CLASSES = ("cats", "dogs", "eine Kätzchen 猫")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of four images each."""
    for number, name in enumerate(CLASSES):
        write_images(tmp_path / "folder" / name, 4, seed=number)
    return tmp_path / "folder"


def images_in(folder: Path) -> list[tuple[str, bytes, int]]:
    """Name, content and class of each image."""
    return [
        (f"{name}/{path.name}", path.read_bytes(), label)
        for label, name in enumerate(CLASSES)
        for path in sorted((folder / name).iterdir())
    ]


def add_to_tar(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def write_tar(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content, _ in reversed(images_in(folder)):
            add_to_tar(archive, name, content)
    return path


def write_tar_of_tars(folder: Path, path: Path) -> Path:
    """As ImageNet's training archive: a tar for each class."""
    with tarfile.open(path, "w") as outer:
        for name in CLASSES:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for image in sorted((folder / name).iterdir()):
                    add_to_tar(inner, image.name, image.read_bytes())
            add_to_tar(outer, f"{name}.tar", buffer.getvalue())
    return path


def write_zip(folder: Path, path: Path, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("notes.txt", "no image")
        for name, content, _ in images_in(folder):
            archive.writestr(name, content)
    return path


def write_shards(folder: Path, place: Path, shards: int = 4) -> list[Path]:
    """WebDataset shards: in each, image and label of every sample one after the other."""
    place.mkdir(exist_ok=True)
    paths = [place / f"set-train-{number:06d}.tar" for number in range(shards)]
    images = images_in(folder)
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as archive:
            for index, (_, content, label) in list(enumerate(images))[number * len(images) // shards :][
                : len(images) // shards
            ]:
                add_to_tar(archive, f"{index:04d}.png", content)
                add_to_tar(archive, f"{index:04d}.cls", str(label).encode())
    return paths


def write_list(folder: Path, path: Path) -> Path:
    path.write_text("".join(f"{folder.name}/{name}\t{label}\n" for name, _, label in images_in(folder)))
    return path


def write_parquet(folder: Path, place: Path, split: str = "train") -> list[Path]:
    """Two files as the Hub ships ImageNet-1k: a struct of bytes and path, a class label."""
    datasets = pytest.importorskip("datasets")
    place.mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    images = images_in(folder)
    paths = []
    for number in range(2):
        rows = images[number * 6 :][:6]
        columns = {
            "image": [{"bytes": content, "path": name} for name, content, _ in rows],
            "label": [label for _, _, label in rows],
        }
        paths.append(place / f"{split}-{number:05d}-of-00002.parquet")
        datasets.Dataset.from_dict(columns, features=features).to_parquet(paths[-1])
    return paths


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSQ_CACHE", str(tmp_path / "cache"))
    try:
        import datasets
    except ModuleNotFoundError:
        return
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    datasets.disable_progress_bars()


SOURCES: dict[str, Callable[[Path, Path], Any]] = {
    "list": lambda folder, place: ListSource(write_list(folder, folder.parent / "list.txt")),
    "tar": lambda folder, place: ArchiveSource([write_tar(folder, place / "all.tar")]),
    "tar of tars": lambda folder, place: ArchiveSource([write_tar_of_tars(folder, place / "all.tar")]),
    "zip": lambda folder, place: ArchiveSource([write_zip(folder, place / "all.zip")]),
    "deflated zip": lambda folder, place: ArchiveSource([write_zip(folder, place / "all.zip", zipfile.ZIP_DEFLATED)]),
    "shards": lambda folder, place: ArchiveSource(write_shards(folder, place)),
    "parquet": lambda folder, place: ParquetSource("here", "train", write_parquet(folder, place)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_all_sources_hold_the_same_images_and_labels(folder: Path, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "other"
    place.mkdir()
    source = SOURCES[kind](folder, place)
    expected = FolderSource(folder)
    assert len(source) == len(expected) == 12
    assert source.labels.tolist() == expected.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [bytes(source.read(item)) for item in range(12)] == [expected.read(item) for item in range(12)]
    assert [name for name, _, _ in images_in(folder)] == list(expected.names)
    transform = ResizeAndCrop(8, 9)
    for item in (0, 11):
        one, other = (SourceImages(images, transform)[SampleKey(0, item)] for images in (source, expected))
        assert torch.equal(one.pixels, other.pixels)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [*SOURCES, "folder"])
def test_a_source_can_be_sent_to_a_process_that_shares_no_memory(folder: Path, tmp_path: Path, kind: str) -> None:
    import pickle

    (tmp_path / "other").mkdir()
    source = FolderSource(folder) if kind == "folder" else SOURCES[kind](folder, tmp_path / "other")
    source.read(3)
    copy = pickle.loads(pickle.dumps(source))
    assert bytes(copy.read(7)) == bytes(source.read(7))
    assert copy.fingerprint() == source.fingerprint()


def test_images_do_not_share_the_decoders_memory(tmp_path: Path) -> None:
    """8×8 JPEG files need no resizing: what comes out must still be there after the next is decoded."""
    from PIL import Image

    for value in (0, 255):
        Image.new("RGB", (8, 8), (value, value, value)).save(tmp_path / f"{value}.jpg")
    images = SourceImages(FolderSource(tmp_path), ResizeAndCrop(8, 8))
    black, white = images[SampleKey(0, 0)], images[SampleKey(0, 1)]
    assert (int(black.pixels.max()), int(white.pixels.min())) == (0, 255)  # type: ignore[union-attr]


ROOTS: dict[str, Callable[[Path, Path], Any]] = {
    "lists": lambda folder, root: [
        (root / f"{split}.txt").write_text("\n".join(f"../folder/{name}" for name, _, _ in images_in(folder)))
        for split in ("train", "val")
    ],
    "tars": lambda folder, root: [write_tar(folder, root / f"{split}.tar") for split in ("train", "val")],
    "zips": lambda folder, root: [write_zip(folder, root / f"{split}.zip") for split in ("train", "val")],
    "ImageNet's own archives": lambda folder, root: [
        write_tar_of_tars(folder, root / f"ILSVRC2012_img_{split}.tar") for split in ("train", "val")
    ],
    "parquet": lambda folder, root: [write_parquet(folder, root / "data", split) for split in ("train", "validation")],
    "shards": lambda folder, root: [
        path.rename(root / path.name.replace("train", split))
        for split in ("train", "validation")
        for path in write_shards(folder, root / "part")
    ],
}


@pytest.mark.parametrize("kind", ROOTS)
def test_both_splits_are_found_by_their_names(folder: Path, tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    ROOTS[kind](folder, root)
    data = ImageNetDataModule(str(root), 8, global_batch_size=4, val_batch_size=12, num_workers=0)
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 3
    (batch,) = data.val_dataloader()
    assert batch.image.shape == (12, 3, 8, 8)
    expected = [-1] * 12 if kind == "lists" else [0] * 4 + [1] * 4 + [2] * 4
    assert batch.label.tolist() == expected


@pytest.mark.parametrize("stop", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_over_parquet_sees_what_the_whole_run_would_have(
    folder: Path, tmp_path: Path, stop: int, num_workers: int
) -> None:
    write_parquet(folder, tmp_path / "root")
    write_parquet(folder, tmp_path / "root", "validation")

    def data() -> ImageNetDataModule:
        return ImageNetDataModule(str(tmp_path / "root"), 8, global_batch_size=4, num_workers=num_workers)

    whole = run_through(data(), 5, tmp_path / "whole")
    assert sorted(itertools.chain(*whole[:3])) == sorted(path.rpartition("/")[2] for path, _, _ in images_in(folder))
    resumed = run_through(data(), 5, tmp_path / "resumed", ckpt_path=tmp_path / "whole" / f"step={stop}.ckpt")
    assert resumed == whole[stop:]


def test_patterns_of_shards_name_the_images_of_a_split(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    write_shards(folder, tmp_path / "shards")
    pattern = str(tmp_path / "shards" / "set-train-{000000..000003}.tar")
    data = ImageNetDataModule(train=pattern, val=pattern, image_size=8, global_batch_size=4, num_workers=0)
    data.setup("fit")
    assert sum(len(batch.image) for batch in data.val_dataloader()) == 12
    with pytest.raises(InputError, match=r"there is no file or folder .*000004.tar"):
        open_images(pattern.replace("3}", "4}"), "auto", "val")


def test_streamed_shards_are_counted_once(folder: Path, tmp_path: Path) -> None:
    """So that checkpoints are written while one of them is away."""
    paths = write_shards(folder, tmp_path / "shards")
    pattern = str(tmp_path / "shards" / "set-train-{000000..000003}.tar")
    data = ImageNetDataModule(train=pattern, val=pattern, source="webdataset", global_batch_size=2, num_workers=0)
    data.setup("fit")
    data.train_dataloader()
    paths[0].unlink()
    assert data.state_dict()["training_images"] == 12


@pytest.mark.parametrize("prefix", ["", "./", "/", "val/", "imagenet/val/"])
def test_classes_are_the_folders_within_what_was_packed(folder: Path, tmp_path: Path, prefix: str) -> None:
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        for name, content, _ in images_in(folder):
            add_to_tar(archive, prefix + name, content)
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as zipped:
        for name, content, _ in images_in(folder):
            zipped.writestr(prefix + name, content)
    for path in (tmp_path / "val.tar", tmp_path / "val.zip"):
        assert ArchiveSource([path]).labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_an_image_beside_the_class_folders_has_no_class(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        for name, content, _ in [*images_in(folder), ("z.png", images_in(folder)[0][1], -1)]:
            add_to_tar(archive, f"val/{name}", content)
    assert ArchiveSource([tmp_path / "val.tar"]).labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [-1]


def test_a_shard_is_read_however_deep_it_lies_within_tars(folder: Path, tmp_path: Path) -> None:
    shards = write_shards(folder, tmp_path / "shards")
    for outer, inner in (("middle.tar", shards), ("outer.tar", [tmp_path / "middle.tar"])):
        with tarfile.open(tmp_path / outer, "w") as archive:
            for path in inner:
                add_to_tar(archive, path.name, path.read_bytes())
    source = ArchiveSource([tmp_path / "outer.tar"])
    assert source.names[0] == "middle/set-train-000000/0000.png"
    assert [(source.read(item), source.labels[item]) for item in range(len(source))] == [
        (content, label) for _, content, label in images_in(folder)
    ]


def test_links_within_a_tar_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    first, *_ = sorted((folder / "cats").iterdir())
    os.link(first, folder / "dogs" / "same.png")
    (folder / "dogs" / "too.png").symlink_to(f"../cats/{first.name}")
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        for name in CLASSES:
            archive.add(folder / name, name)
    source = ArchiveSource([tmp_path / "val.tar"])
    assert len(source) == 12
    assert source.notes == ["2 links within tars are left out"]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "folder of tars"])
def test_what_systems_hide_among_images_is_none_of_them(folder: Path, tmp_path: Path, kind: str) -> None:
    expected = images_in(folder)
    hidden = (".ipynb_checkpoints/a.png", "__MACOSX/cats/._image_000.png", "cats/._image_000.png", "._n01.tar")
    for name in hidden:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no image")
    place = tmp_path / "packed"
    (place / ".cache" / "huggingface").mkdir(parents=True)
    (place / "._val.tar").write_bytes(b"no archive")
    if kind == "zip":
        with zipfile.ZipFile(place / "val.zip", "w") as packed:
            for path in sorted(folder.rglob("*")):
                packed.write(path, path.relative_to(folder))
    elif kind != "folder":
        with tarfile.open(place / "val.tar", "w") as archive:
            archive.add(folder, ".")
    where = {"folder": folder, "zip": place / "val.zip", "tar": place / "val.tar", "folder of tars": place}[kind]
    source = open_images(str(where), "auto", "val")
    assert isinstance(source, ImageSource)
    found = [(os.path.normpath(source.names[i]), source.read(i), int(source.labels[i])) for i in range(len(source))]
    assert found == expected


def test_the_archive_of_another_task_is_not_added_to_the_training_images(folder: Path, tmp_path: Path) -> None:
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_train_t3.tar"):
        write_tar_of_tars(folder, tmp_path / name)
    source = find_split(str(tmp_path), "train", "archive")
    assert isinstance(source, ImageSource)
    assert len(source) == 12
    assert source.place.endswith("ILSVRC2012_img_train.tar")


SHARDS: dict[str, tuple[list[str], dict[str, int]]] = {
    "image, then label": (["0.png", "0.cls=3", "1.png", "1.cls=4"], {"0.png": 3, "1.png": 4}),
    "label, then image": (["0.cls=3", "0.png", "1.cls=4", "1.png"], {"0.png": 3, "1.png": 4}),
    "another suffix beside": (["0.PNG", "0.seg.png", "0.cls=3"], {"0.PNG": 3}),
    "mask before the image": (["1.mask.png", "1.png", "1.json={}", "1.cls=cat"], {"1.png": -1}),
    "masks without labels": (
        ["0.png", "0.mask.png", "0.txt=a cat", "1.png", "1.txt=a dog"],
        {"0.png": -1, "1.png": -1},
    ),
    "dots in names": ([f"photo.v1.{item}.png" for item in range(6)], {f"photo.v1.{item}.png": -1 for item in range(6)}),
    "dots in names, apart": (["a.2020.png", "b.png", "a.2021.png"], {"a.2020.png": -1, "b.png": -1, "a.2021.png": -1}),
    "dots in names with a label": (["2.v2.png", "2.cls=4"], {"2.v2.png": 4}),
    "two formats of one image": (["more/3.png", f"more/3.cls={'9' * 20}", "more/3.bmp"], {"more/3.png": -1}),
    "the same key in two folders": (["a/0.png", "a/0.cls=1", "b/0.png", "b/0.cls=2"], {"a/0.png": 1, "b/0.png": 2}),
    "paths from here": (["./0.png", "./0.cls=1"], {"0.png": 1}),
    "a label below zero": (["0.png", "0.cls=-1"], {"0.png": -1}),
    "hidden files": (["__MACOSX/4.png", "__MACOSX/4.cls=4", "0.png", "0.cls=1"], {"0.png": 1}),
    "no image in a sample": (["0.cls=1", "1.png", "1.cls=2"], {"1.png": 2}),
}


def write_shard(path: Path, files: list[str], image: bytes) -> Path:
    """A tar of files in order; `name=text` is a text, all others the image."""
    with tarfile.open(path, "w") as archive:
        for file in files:
            name, is_text, text = file.partition("=")
            add_to_tar(archive, name, text.encode() if is_text else image)
    return path


@pytest.mark.parametrize("kind", SHARDS)
def test_a_shard_holds_the_same_samples_read_in_any_order_and_streamed(folder: Path, tmp_path: Path, kind: str) -> None:
    files, expected = SHARDS[kind]
    shard = write_shard(tmp_path / "train-000.tar", files, (folder / "cats" / "image_000.png").read_bytes())
    source = ArchiveSource([shard])
    at_random = {source.name(item): int(source.labels[item]) for item in range(len(source))}
    assert at_random == {f"{shard}/{name}": label for name, label in expected.items()}
    samples = list(streamed([shard]))
    assert {sample.path: sample.label for sample in samples} == at_random  # type: ignore[union-attr]
    assert len(samples) == len(source)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_streamed_label_without_a_name_is_refused(folder: Path, tmp_path: Path, split: str) -> None:
    """As where images are read in any order."""
    write_shards(folder, tmp_path / "shards")
    place = {split: str(tmp_path / "shards" / "set-train-{000000..000003}.tar")}
    options: dict[str, Any] = {"image_size": 8, "num_workers": 0, "source": "webdataset", **place}
    data = ImageNetDataModule(class_names=["cats", "dogs"], **options)
    images = data.make_train_dataset() if split == "train" else data.make_val_dataset()
    assert isinstance(images, StreamedShards)
    with pytest.raises(
        InputError, match=r"set-train-00000[23].tar/0\d+.png has the label 2, and data\.class_names names"
    ):
        list(images)
    whole = ImageNetDataModule(class_names=CLASSES, **options)
    images = whole.make_train_dataset() if split == "train" else whole.make_val_dataset()
    assert isinstance(images, StreamedShards)
    assert {sample.label for sample in images if isinstance(sample, Sample)} == {0, 1, 2}


def test_a_sample_that_is_cut_by_two_shards_has_no_label_either_way(folder: Path, tmp_path: Path) -> None:
    image = (folder / "cats" / "image_000.png").read_bytes()
    shards = [
        write_shard(tmp_path / name, files, image)
        for name, files in (("0.tar", ["0.png", "0.cls=1", "1.png"]), ("1.tar", ["1.cls=2", "2.png", "2.cls=3"]))
    ]
    source = ArchiveSource(shards)
    assert source.labels.tolist() == [1, -1, 3]
    assert [sample.label for sample in streamed(shards)] == [1, -1, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize("files", [["0.png", "1.png", "0.cls=3", "1.cls=4"], ["0.cls=3", "1.png", "0.png"]])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_shard_that_keeps_samples_apart_is_not_streamed(
    folder: Path, tmp_path: Path, files: list[str], on_error: Any
) -> None:
    shard = write_shard(tmp_path / "0.tar", files, (folder / "cats" / "image_000.png").read_bytes())
    assert max(ArchiveSource([shard]).labels) >= 3
    with pytest.raises(InputError, match=r"keeps the files of the sample 0 apart, .*sort it by name, or .* any order"):
        list(streamed([shard], on_error=on_error))


def test_a_tar_of_tars_is_not_streamed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds tars, which cannot be read as a stream; use data.source archive"):
        list(streamed([write_tar_of_tars(folder, tmp_path / "all.tar")]))


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_shard_that_is_not_there_is_no_broken_shard(tmp_path: Path, on_error: Any) -> None:
    with pytest.raises(InputError, match=r"the shard .*gone.tar was not read: No such file"):
        list(streamed([tmp_path / "gone.tar"], on_error=on_error))


def test_more_archives_than_files_may_be_open(folder: Path, tmp_path: Path) -> None:
    """As `ulimit -n 1024` over 1,024 shards, a smaller world of it."""
    import resource

    image = (folder / "cats" / "image_000.png").read_bytes()
    shards = [write_shard(tmp_path / f"{number:05d}.tar", ["0.png"], image) for number in range(200)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + archive_module.MOST_OPEN + 10, limits[1]))
    try:
        images = SourceImages(ArchiveSource(shards), ResizeAndCrop(8, 8), on_error="skip")
        samples = [images[SampleKey(0, item)] for item in [*range(200), *range(200)]]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert all(hasattr(sample, "pixels") for sample in samples)


@pytest.mark.parametrize("declared", ["all", "less", "more"])
def test_a_zip_member_that_expands_beyond_all_bounds_is_refused(tmp_path: Path, declared: str) -> None:
    size = {"all": 2**28 + 1, "less": 2**20, "more": 2**21}[declared]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = packer.compress(bytes(2**20 if declared == "more" else 2**22)) + packer.flush()
    name = b"bomb.png"
    fields = (len(content), size, len(name), 0)
    path = tmp_path / "all.zip"
    path.write_bytes(
        struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, *fields)
        + name
        + content
        + struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, *fields[:3], 0, 0, 0, 0, 0, 0)
        + name
        + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, 46 + len(name), 30 + len(name) + len(content), 0)
    )
    message = "unpacks to 256 MB, and an image may" if declared == "all" else f"does not unpack to the {size} bytes"
    with pytest.raises(ValueError, match=message):
        ArchiveSource([path]).read(0)


def test_names_of_old_windows_programs_have_folders(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
        for name, content, _ in images_in(folder):
            archive.writestr(name.replace("/", "\\"), content)
    assert ArchiveSource([tmp_path / "val.zip"]).class_names == list(CLASSES)


@pytest.mark.parametrize(("wanted", "expected"), [(None, None), ("edited", 1), ("text", None)])
def test_of_two_columns_of_images_one_must_be_named(
    folder: Path, tmp_path: Path, wanted: str | None, expected: int | None
) -> None:
    datasets = pytest.importorskip("datasets")
    contents = [content for _, content, _ in images_in(folder)[:2]]
    features = datasets.Features(
        {"image": datasets.Image(), "edited": datasets.Image(), "text": datasets.Value("string")}
    )
    row = {"image": [{"bytes": contents[0]}], "edited": [{"bytes": contents[1]}], "text": ["a"]}
    datasets.Dataset.from_dict(row, features=features).to_parquet(tmp_path / "val.parquet")
    if expected is None:
        message = "no column of images named text" if wanted else "several columns of images: image, edited; say which"
        with pytest.raises(InputError, match=message):
            open_images(str(tmp_path / "val.parquet"), "auto", "val", Columns(wanted))
        return
    source = open_images(str(tmp_path / "val.parquet"), "auto", "val", Columns(wanted))
    assert source.read(0) == contents[expected]  # type: ignore[union-attr]


def test_other_columns_of_the_same_files_are_other_images(tmp_path: Path, folder: Path) -> None:
    """Tokens of both would share a folder, with the labels of one column here and of the other there."""
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "edited": datasets.Image()} | {
        name: datasets.Value("int64") for name in ("label", "coarse")
    }
    content = images_in(folder)[0][1]
    row: dict[str, list[Any]] = {"image": [{"bytes": content}], "edited": [{"bytes": content}]}
    row |= {"label": [1], "coarse": [0]}
    path = tmp_path / "val.parquet"
    datasets.Dataset.from_dict(row, features=datasets.Features(features)).to_parquet(path)

    def fingerprint(image: str, label: str | None) -> str:
        return ParquetSource("here", "val", [path], Columns(image, label)).fingerprint()

    found = [fingerprint("image", "label"), fingerprint("edited", "label"), fingerprint("image", "coarse")]
    assert len(set(found)) == 3
    assert fingerprint("image", None) == found[0]  # the column that is taken by default


def test_parquet_names_its_classes(folder: Path, tmp_path: Path) -> None:
    source = ParquetSource("here", "train", write_parquet(folder, tmp_path / "root"))
    assert source.class_names == list(CLASSES)


def test_labels_of_a_column_of_another_name_are_taken_where_it_is_named(folder: Path, tmp_path: Path) -> None:
    """As CIFAR-100's."""
    datasets = pytest.importorskip("datasets")
    names = {"coarse_label": ["fish", "fruit"], "fine_label": ["ray", "shark"]}
    features = {"img": datasets.Image()} | {column: datasets.ClassLabel(names=two) for column, two in names.items()}
    content = images_in(folder)[0][1]
    row = {"img": [{"bytes": content}], "coarse_label": [0], "fine_label": [1]}
    datasets.Dataset.from_dict(row, features=datasets.Features(features)).to_parquet(tmp_path / "val.parquet")
    for column, label, classes in (("coarse_label", 0, names["coarse_label"]), ("fine_label", 1, names["fine_label"])):
        data = ImageNetDataModule(val=tmp_path / "val.parquet", image_size=8, num_workers=0, label_column=column)
        data.setup("validate")
        (batch,) = data.val_dataloader()
        assert (batch.label.tolist(), data.class_names) == ([label], classes)
    source = open_images(str(tmp_path / "val.parquet"), "auto", "val")
    assert source.labels.tolist() == [-1]  # type: ignore[union-attr]
    line = "no column is named label; data.label_column says which has the labels, of img, coarse_label, fine_label"
    assert source.notes == [line]  # type: ignore[union-attr]
    with pytest.raises(InputError, match="has no column fine of labels; its columns are img, coarse_label, fine_label"):
        open_images(str(tmp_path / "val.parquet"), "auto", "val", Columns(label="fine"))


def test_a_list_may_begin_with_a_byte_order_mark(folder: Path, tmp_path: Path) -> None:
    path = write_list(folder, tmp_path / "val.txt")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(ListSource(path).read(0)) > 0
    path.write_text(f"a.png\t{'9' * 30}\n")
    with pytest.raises(InputError, match="is no class: it is beyond int64"):
        ListSource(path)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lists_of_splits_are_told_from_other_texts_of_such_names(folder: Path, mark: str) -> None:
    """A caption that is longer than any name of a file, and a link that leads nowhere."""
    root = folder.parent
    (root / "train_captions.txt").write_text("a cat on a mat " * 40 + "\n")
    (root / "train_links.txt").symlink_to("nowhere")
    for split, name in (("train", CLASSES[0]), ("val", CLASSES[1])):
        lines = "".join(f"folder/{name}/{path.name} 5\n" for path in sorted((folder / name).iterdir()))
        (root / f"my_{split}_list.txt").write_text(mark + lines, "utf-8")
    source = find_split(str(root), "val", "auto")
    assert isinstance(source, ListSource)
    assert list(source.names) == [f"folder/{CLASSES[1]}/image_{number:03d}.png" for number in range(4)]
    assert source.labels.tolist() == [5] * 4


@pytest.mark.parametrize("labels", [[3, None, 1], ["a", "b", "c"], [[1], [2], [3]]])
def test_parquet_without_numbers_of_classes_has_no_labels(folder: Path, tmp_path: Path, labels: list[Any]) -> None:
    pytest.importorskip("datasets")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    contents = [content for _, content, _ in images_in(folder)[:3]]
    files.write_table(pyarrow.table({"jpg": contents, "label": labels}), tmp_path / "val.parquet")
    source = ParquetSource(str(tmp_path), "val", [tmp_path / "val.parquet"])
    assert source.labels.tolist() == ([3, -1, 1] if labels[0] == 3 else [-1, -1, -1])


def test_streaming_takes_a_folder_of_images_for_the_other_split(folder: Path, tmp_path: Path) -> None:
    assert isinstance(open_images(str(folder), "webdataset", "val"), FolderSource)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there are no images below"):
        open_images(str(tmp_path / "empty"), "webdataset", "train")


def test_a_number_of_images_is_refused_where_they_are_counted(folder: Path) -> None:
    """Who expects a subset would train on all."""
    data = ImageNetDataModule(train=folder, image_size=8, global_batch_size=4, train_images=6)
    with pytest.raises(InputError, match=r"train_images is 6, and .* holds 12 images, all of which are trained on"):
        data.setup("fit")


@pytest.mark.parametrize("name", ["root", "train", "val"])
def test_an_empty_place_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"data.{name} is empty"):
        ImageNetDataModule(**{name: " "})  # type: ignore[arg-type]


def streamed(paths: list[Path], **arguments: Any) -> StreamedShards:
    pytest.importorskip("webdataset")
    return StreamedShards([str(path) for path in paths], ResizeAndCrop(8, 8), **arguments)


def share_of_epoch(images: StreamedShards, rank: int, world: int, batch_size: int, position: DataPosition) -> list[str]:
    """The names that a device gets in an epoch of training."""
    loader = images.train_loader(position, batch_size * world, Loading(rank, world, batch_size))
    return [name for batch in loader for name in keys_of_batch(batch)]


def keys_of(samples: Any) -> list[str]:
    return [sample.path.rpartition("/")[2] for sample in samples]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_streamed_validation_reads_each_shard_on_one_device(folder: Path, tmp_path: Path, world: int) -> None:
    paths = write_shards(folder, tmp_path / "shards")
    loaders = [streamed(paths).val_loader(Loading(rank, world)) for rank in range(world)]
    shares = [[name for batch in loader for name in keys_of_batch(batch)] for loader in loaders]
    assert sorted(itertools.chain(*shares)) == [f"{index:04d}.png" for index in range(12)]


def test_streamed_shards_are_dealt_to_workers(folder: Path, tmp_path: Path) -> None:
    write_shards(folder, tmp_path / "shards")
    pattern = str(tmp_path / "shards" / "set-train-{000000..000003}.tar")
    data = ImageNetDataModule(
        train=pattern, val=pattern, source="webdataset", image_size=8, global_batch_size=3, num_workers=2
    )
    data.setup("fit")
    for _ in range(2):  # the workers persist
        assert sorted(label for batch in data.val_dataloader() for label in batch.label.tolist()) == sorted(
            [0, 1, 2] * 4
        )
    loader = data.train_dataloader()
    epochs = []
    for _ in range(2):
        epochs.append([keys_of_batch(batch) for batch in loader])
        data._position.advance(12, 12)  # type: ignore[union-attr]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == [f"{index:04d}.png" for index in range(12)]
    assert epochs[0] != epochs[1]


def keys_of_batch(batch: Any) -> list[str]:
    return [path.rpartition("/")[2] for path in batch.path]


def test_streamed_training_shards_are_disjoint_and_shuffled_again(folder: Path, tmp_path: Path) -> None:
    paths = write_shards(folder, tmp_path / "shards")

    def epoch(number: int, consumed: int = 0) -> list[list[str]]:
        images = (streamed(paths, shuffle_buffer=4) for _ in range(2))
        return [
            share_of_epoch(image, rank, 2, 2, DataPosition(1, number, consumed)) for rank, image in enumerate(images)
        ]

    first, second = epoch(0), epoch(1)
    for shares in (first, second):
        assert sorted(itertools.chain(*shares)) == [f"{index:04d}.png" for index in range(12)]
    assert first != second
    assert epoch(0) == first
    assert [len(share) for share in epoch(1, consumed=4)] == [4, 4]


def test_too_few_shards_for_all_workers_are_refused(folder: Path, tmp_path: Path) -> None:
    paths = write_shards(folder, tmp_path / "shards", shards=2)
    with pytest.raises(InputError, match=r"2 shards do not go round 3 device\(s\)"):
        share_of_epoch(streamed(paths), 2, 3, 1, DataPosition())


def test_a_broken_shard_is_named_or_passed_over(folder: Path, tmp_path: Path) -> None:
    paths = write_shards(folder, tmp_path / "shards")
    paths[1].write_bytes(paths[1].read_bytes()[:700])
    with pytest.raises(InputError, match=r"the shard .*000001.tar cannot be read"):
        list(streamed(paths))
    found = list(streamed(paths, on_error="skip"))
    assert [Path(image.path).name for image in found if hasattr(image, "reason")] == ["set-train-000001.tar"]
    assert sum(hasattr(image, "pixels") for image in found) == 9


def test_devices_that_stream_broken_images_still_have_equal_batches(folder: Path, tmp_path: Path) -> None:
    """One that had more of them than another would leave the other waiting at the end of its epoch."""
    for name in ("cats", "dogs"):
        next((folder / name).iterdir()).write_bytes(b"no image")
    paths = write_shards(folder, tmp_path / "shards")
    named = set()
    for rank in range(2):
        images = streamed(paths, on_error="skip", train_images=12)
        batches = list(images.train_loader(DataPosition(seed=1), 4, Loading(rank, 2, 2)))
        assert [len(batch.image) for batch in batches] == [2, 2, 2]
        named |= {image.path for batch in batches for image in batch.unreadable}
    assert len(named) == 2


def test_remote_shards_need_a_number_and_are_opened_by_webdataset(folder: Path, tmp_path: Path) -> None:
    paths = write_shards(folder, tmp_path / "shards")
    commands = "::".join(f"pipe:cat {path}" for path in paths)
    arguments: dict[str, Any] = {"train": commands, "val": commands, "image_size": 8, "num_workers": 0}
    data = ImageNetDataModule(**arguments, global_batch_size=4)
    with pytest.raises(InputError, match=r"set data.train_images, 1281167 for ImageNet"):
        data.setup("fit")
    data = ImageNetDataModule(**arguments, global_batch_size=4, train_images=12)
    data.setup("fit")
    assert sorted(key for batch in data.train_dataloader() for key in keys_of_batch(batch)) == [
        f"{index:04d}.png" for index in range(12)
    ]


def test_a_run_over_streamed_shards_resumes_with_what_is_left_of_the_epoch(folder: Path, tmp_path: Path) -> None:
    write_shards(folder, tmp_path / "shards")
    pattern = str(tmp_path / "shards" / "set-train-{000000..000003}.tar")

    def data() -> ImageNetDataModule:
        return ImageNetDataModule(
            train=pattern, val=pattern, source="webdataset", image_size=8, global_batch_size=4, num_workers=0
        )

    whole = run_through(data(), 6, tmp_path / "whole")
    resumed = run_through(data(), 6, tmp_path / "resumed", ckpt_path=tmp_path / "whole" / "step=2.ckpt")
    assert len(resumed) == 4
    assert resumed[1:] == whole[3:]  # from the next epoch on they are the same again


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda place: ArchiveSource([_gzipped(place / "all.tar")]),
            "cannot be read as a zip or an uncompressed tar.*store",
        ),
        (lambda place: ArchiveSource([_text(place / "all.zip")]), "all.zip cannot be read as a zip"),
        (lambda place: ArchiveSource([_empty_tar(place / "all.tar")]), "there are no images in"),
        (lambda place: ListSource(_text(place / "list.txt", "\n")), "names no images"),
        (lambda place: ListSource(place / "nothing.txt"), "cannot be read as a list"),
        (lambda place: find_split(str(_text(place / "a.docx")), "val", "auto"), "is no source of images"),
        (lambda place: find_split(str(place), "val", "parquet"), "but .* is a source of the kind folder"),
        (lambda place: find_split(str(_text(place / "list.txt")), "train", "auto"), "name the training images with"),
        (lambda place: open_images("https://x/{0..1}.tar", "parquet", "val"), "is remote"),
        (lambda place: ParquetSource("x", "train", [_text(place / "train.parquet")]), "datasets cannot load the split"),
        (lambda place: ImageNetDataModule().setup("validate"), "data.root is missing"),
    ],
)
def test_what_is_no_source_is_named(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(tmp_path)


def _text(path: Path, text: str = "no image") -> Path:
    path.write_text(text)
    return path


def _gzipped(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        add_to_tar(archive, "a.png", b"content")
    return path


def _empty_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        add_to_tar(archive, "notes.txt", b"content")
    return path


def test_a_data_set_on_the_hub_without_network_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr(parquet, "reachable", lambda url: False)
    with pytest.raises(InputError, match=r"split 'validation' of no-one/nothing: .*; or set data.root to a folder"):
        find_split("no-one/nothing", "val", "parquet")


def test_parquet_without_images_is_refused_with_its_columns(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a"], "size": [1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(InputError, match="no column of images; its columns are text, size"):
        ParquetSource("here", "train", [tmp_path / "train.parquet"])


def test_lists_take_labels_after_a_tab_or_a_space(tmp_path: Path) -> None:
    far = tmp_path / "far" / "f.png"
    far.parent.mkdir()
    for name in ("a b.png", "c.png", "d e.png", "far/f.png"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text(f"a b.png\nc.png 7\nd e.png\t3\n\n{far}\n")
    source = ListSource(tmp_path / "list.txt")
    assert list(source.names) == ["a b.png", "c.png", "d e.png", str(far)]
    assert source.labels.tolist() == [-1, 7, 3, -1]
    assert source.name(3) == str(far)


def test_packed_names_are_a_sequence_of_strings() -> None:
    names = ["", "a", "Kätzchen 猫", os.fsdecode(b"not \xff utf-8"), ""]
    packed = PackedNames.pack(names)
    assert list(packed) == names
    assert packed[-2] == names[-2]
    assert packed[1:3] == names[1:3]
    with pytest.raises(IndexError):
        packed[5]


def test_links_that_lead_in_circles_are_followed_once(folder: Path) -> None:
    (folder / "cats" / "again").symlink_to(folder)
    assert len(FolderSource(folder)) == 12


@pytest.mark.parametrize("backwards", [False, True])
def test_a_folder_with_two_names_has_the_same_one_on_every_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    """File systems list names in orders of their own; ranks on two machines must number images alike."""
    (folder / "aliens").symlink_to("cats")
    scandir = os.scandir

    @contextmanager
    def in_order(place: str) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(place) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=backwards)

    monkeypatch.setattr(os, "scandir", in_order)
    source = FolderSource(folder)
    assert [name.partition("/")[0] for name in source.names[:4]] == ["aliens"] * 4
    assert len(source) == 12
    assert source.notes == ["1 folder is left out, which links give other names that are read, such as cats"]


def test_streamed_images_may_have_names_that_are_no_utf_8(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        add_to_tar(archive, os.fsdecode(b"K\xe4tzchen.png"), images_in(folder)[0][1])
    (batch,) = streamed([tmp_path / "0.tar"], on_error="skip").val_loader(Loading())
    assert (len(batch.image), batch.unreadable) == (1, [])


# --------------------------------------------------------------------------------------------------- listings


@pytest.fixture
def settled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as if it had been written long ago, and listings cached from few images on."""
    monkeypatch.setattr(listing, "CACHED_FROM", 5)
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (time.time() - 1000,) * 2)
    return folder


def test_a_listing_is_made_once_and_again_when_the_tree_changes(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: scans.append(place) or scan(place))
    whole = FolderSource(settled)
    assert len(scans) == 4
    cached = FolderSource(settled)
    assert len(scans) == 4
    assert list(cached.names) == list(whole.names)
    assert cached.labels.tolist() == whole.labels.tolist()

    write_images(settled / "dogs" / "more", 1)
    assert len(FolderSource(settled)) == 13
    (settled / "cats" / "image_000.png").unlink()
    assert len(FolderSource(settled)) == 12


def test_a_tree_that_changed_just_now_is_not_trusted_to_the_cache(settled: Path, tmp_path: Path) -> None:
    write_images(settled / "dogs", 5)
    assert len(FolderSource(settled)) == 13
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["empty", "cut off", "other", "a bit"])
def test_a_damaged_listing_is_made_again_with_a_word(
    settled: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = list(FolderSource(settled).names)
    (path,) = (tmp_path / "cache" / "listings").iterdir()
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    path.write_bytes({"empty": b"", "cut off": whole[:-100], "other": b"no listing", "a bit": bytes(flipped)}[damage])
    assert list(FolderSource(settled).names) == names
    assert "cannot be read" in caplog.text
    assert path.read_bytes() == whole


def test_a_cache_of_somebody_else_does_not_keep_images_from_being_listed(
    settled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert len(FolderSource(settled)) == 12
    assert "Permission denied" in caplog.text


def test_a_link_to_another_version_of_the_data_is_listed_again(settled: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(settled, other)
    current = tmp_path / "current"
    current.symlink_to(settled)
    assert len(FolderSource(current)) == 12
    current.unlink()
    current.symlink_to(other)
    (settled / "cats" / "image_000.png").unlink()
    assert len(FolderSource(current)) == 12
    assert len(FolderSource(settled)) == 11


def test_where_nothing_can_be_cached_the_images_are_listed_all_the_same(
    settled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GSQ_CACHE", str(tmp_path / "file"))
    assert len(FolderSource(settled)) == 12
    assert "cannot be cached" in caplog.text


def test_the_listing_of_an_archive_is_cached_and_renewed(settled: Path, tmp_path: Path) -> None:
    path = write_tar(settled, tmp_path / "all.tar")
    os.utime(path, (1.0e9, 1.0e9))
    before = ArchiveSource([path])
    assert len(list((tmp_path / "cache" / "listings").iterdir())) == 2  # of all, and of the part that is read
    assert ArchiveSource([path]).fingerprint() == before.fingerprint()
    (settled / "cats" / "image_000.png").unlink()
    write_tar(settled, path)
    assert len(ArchiveSource([path])) == 11


def test_a_format_that_can_be_read_now_is_listed_again(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an update of Pillow, or without a plug-in that was there."""
    every = names.image_suffixes()
    (settled / "dogs" / "image.webp").write_bytes((settled / "dogs" / "image_000.png").read_bytes())
    for number in range(5):
        (settled / "dogs" / f"{number}.bmp").write_bytes(b"")
    for path in (settled, settled / "dogs"):
        os.utime(path, (1.0e9, 1.0e9))
    with monkeypatch.context() as before:
        for module in (names, listing):
            before.setattr(module, "image_suffixes", lambda: every - {".png"})
        assert len(FolderSource(settled)) == 6
    assert len(FolderSource(settled)) == 18


def test_fingerprints_tell_other_images_apart(folder: Path) -> None:
    def fingerprint(size: int = 8) -> str | None:
        return SourceImages(FolderSource(folder), ResizeAndCrop(size, size)).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    assert fingerprint(9) != before
    image = folder / "cats" / "image_000.png"
    before, status = fingerprint(), image.stat()
    image.write_bytes(image.read_bytes()[:-1] + b"!")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert image.stat().st_mtime_ns == status.st_mtime_ns
    assert fingerprint() != before


def test_streamed_shards_whose_labels_were_mended_are_others(tmp_path: Path) -> None:
    """They keep their size: tars are padded."""
    path = write_shard(tmp_path / "0.tar", ["1.png", "1.cls=1"], b"")
    images = StreamedShards([str(path)], ResizeAndCrop(8, 8))
    before, state = images.fingerprint, path.stat()
    write_shard(path, ["1.png", "1.cls=2"], b"")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    assert path.stat().st_size == state.st_size
    assert StreamedShards([str(path)], ResizeAndCrop(8, 8)).fingerprint != before


# --------------------------------------------------------------------------------------------- bad weather


def test_a_class_folder_that_vanishes_in_the_middle_does_not_end_a_run(folder: Path) -> None:
    images = SourceImages(FolderSource(folder), ResizeAndCrop(8, 8), on_error="skip", substitute=True)
    for path in (folder / "cats").iterdir():
        path.unlink()
    (folder / "cats").rmdir()
    samples = [images[SampleKey(0, item)] for item in range(12)]
    assert all(sample.label in (1, 2) for sample in samples[:4])  # type: ignore[union-attr]
    assert {image.path.rpartition("/")[0] for sample in samples for image in sample.unreadable} == {  # type: ignore[union-attr]
        str(folder / "cats")
    }


def test_a_truncated_archive_is_named_or_skipped(folder: Path, tmp_path: Path) -> None:
    path = write_zip(folder, tmp_path / "all.zip", zipfile.ZIP_DEFLATED)
    source = ArchiveSource([path])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"all.zip/eine .* cannot be read as an image"):
        SourceImages(source, ResizeAndCrop(8, 8))[SampleKey(0, 11)]
    skipped = SourceImages(source, ResizeAndCrop(8, 8), on_error="skip")[SampleKey(0, 11)]
    assert "truncated" in skipped.reason  # type: ignore[union-attr]
