"""Data sets as they are laid out in the wild: the right split and classes are taken, or one line says why not."""

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from gsq_lightning import InputError
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.data.sources import ArchiveSource, FolderSource
from gsq_lightning.data.sources.interface import ImageSource
from gsq_lightning.data.sources.locate import find_split, open_images, splits_of
from gsq_lightning.data.sources.splits import Split, are_pieces, split_of, splits_in


def picture(text: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), (len(text) % 256, sum(text.encode()) % 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


class Layout(NamedTuple):
    """A data set.

    Attributes:
        files: names, images by their suffix, or `name=text`.
        train, val: of each image of the split its class, "" for none; or what the line says that refuses.
    """

    files: list[str]
    train: dict[str, str] | str
    val: dict[str, str] | str


def several(folder: str, *classes: str, images: str = "") -> dict[str, str]:
    """Two images of each class."""
    return {os.path.join(folder, name, images, f"{name}_{item}.jpg"): name for name in classes for item in (1, 2)}


def flat(folder: str, *names: str) -> dict[str, str]:
    return {os.path.join(folder, name): "" for name in names or ("1.jpg", "2.jpg")}


def both(train: dict[str, str], val: dict[str, str], *others: str) -> Layout:
    return Layout([*train, *val, *others], train, val)


CATS_DOGS = ("cat", "dog")
IN_PIECES = {f"train.X{part}/{name}/{part}.jpg": name for part in (1, 2, 3) for name in CATS_DOGS}

LAYOUTS = {
    "ImageFolder": both(several("train", *CATS_DOGS), several("val", *CATS_DOGS)),
    "validation lacks a class": both(several("train", "cat", "dog", "eel"), several("val", "cat", "eel")),
    "validation of one class": both(several("train", *CATS_DOGS), several("val", "dog")),
    "names in capitals": both(several("TRAIN", *CATS_DOGS), several("Validation", *CATS_DOGS)),
    "training and valid": both(several("training", *CATS_DOGS), several("valid", *CATS_DOGS), "test/1.jpg"),
    "train and dev": both(flat("train"), flat("dev")),
    "COCO": both(flat("train2017"), flat("val2017"), "test2017/1.jpg", "annotations/instances_train2017.json"),
    "COCO within folders": both(flat("coco/images/train2017"), flat("coco/images/val2017"), "coco/labels/a.txt"),
    "COCO of two years": Layout(
        [f"{split}{year}/1.jpg" for split in ("train", "val") for year in (2014, 2017)],
        r"several parts of the split train: train2014, train2017; .* data\.train",
        r"several parts of the split val: val2014, val2017; .* data\.val",
    ),
    "Kaggle's folder around all": both(several("archive/train", *CATS_DOGS), several("archive/val", *CATS_DOGS)),
    "Kaggle's ImageNet": both(
        several("ILSVRC/Data/CLS-LOC/train", "n01", "n02"),
        flat("ILSVRC/Data/CLS-LOC/val"),
        *("ILSVRC/Data/CLS-LOC/test/1.jpg", "ILSVRC/Annotations/CLS-LOC/val/1.xml"),
        *("ILSVRC/ImageSets/CLS-LOC/train_cls.txt=n01/n01_1 1", "ILSVRC/ImageSets/CLS-LOC/val.txt=1 1"),
    ),
    "Kaggle's ImageNet-100 in pieces": both(IN_PIECES, several("val.X", *CATS_DOGS), "Labels.json={}"),
    "tiny-imagenet": both(
        several("tiny-imagenet-200/train", "n01", "n02", images="images"),
        {f"tiny-imagenet-200/val/images/val_{item}.jpg": name for item, name in enumerate(("n02", "n01", "n02"))},
        *("tiny-imagenet-200/test/images/1.jpg", "tiny-imagenet-200/wnids.txt=n01\nn02"),
        "tiny-imagenet-200/train/n01/n01_boxes.txt=n01_1.jpg\t0",
        "tiny-imagenet-200/val/val_annotations.txt=val_0.jpg\tn02\t0\nval_1.jpg\tn01\t0\nval_2.jpg\tn02\t0\n",
    ),
    "Imagenette": both(
        several("imagenette2-160/train", "n01", "n02"),
        several("imagenette2-160/val", "n01", "n02"),
        "imagenette2-160/noisy_imagenette.csv=path,label",
    ),
    "detection, images and labels in each split": both(
        flat("train/images"), flat("valid/images"), "train/labels/1.txt", "valid/labels/1.txt", "data.yaml"
    ),
    "detection, splits in images and in labels": both(
        flat("images/train"), flat("images/val"), "labels/train/1.txt", "labels/val/1.txt"
    ),
    "segmentation, masks are no images": both(
        flat("train/images"), flat("val/images"), "train/masks/1.png", "val/masks/1.png"
    ),
    "CamVid": both(flat("train"), flat("val"), "train_labels/1.png", "val_labels/1.png", "test/1.png"),
    "Cityscapes": both(
        several("leftImg8bit/train", "aachen", "bonn"),
        several("leftImg8bit/val", "bonn", "aachen"),
        *("gtFine/train/aachen/1.png", "gtFine/val/bonn/1.png"),
    ),
    "a folder in the folder": both(several("train/train", *CATS_DOGS), several("val/val", *CATS_DOGS)),
    "a folder around the classes": both(several("train/data", *CATS_DOGS), several("val/data", *CATS_DOGS)),
    "words around": both(flat("DIV2K_train_HR"), flat("DIV2K_valid_HR")),
    "words before": both(several("2021_train", *CATS_DOGS), several("2021_valid", *CATS_DOGS)),
    "Places": Layout(
        ["data_256/a/abbey/1.jpg", "val_256/1.jpg", "test_256/1.jpg"],
        r"holds test_256, val_256, and nothing named train; .*data\.train",
        flat("val_256", "1.jpg"),
    ),
    "Intel": Layout(
        [*several("seg_train/seg_train", *CATS_DOGS), *several("seg_test/seg_test", *CATS_DOGS), "seg_pred/1.jpg"],
        several("seg_train/seg_train", *CATS_DOGS),
        r"holds seg_(test|train), seg_(train|test), and nothing named val or validation; .*data\.val",
    ),
    "train and test": Layout(
        ["train/1.jpg", "test/1.jpg"], flat("train", "1.jpg"), r"nothing named val or validation; .*data\.val"
    ),
    "CycleGAN": Layout(
        [f"{split}{side}/1.jpg" for split in ("train", "test") for side in "AB"],
        r"several parts of the split train: trainA, trainB",
        r"holds t.*, and nothing named val or validation",
    ),
    "a class that is a train": Layout(
        list(several("", "bus", "car", "ship", "train station")),
        r"holds nothing named train",
        several("", "bus", "car", "ship", "train station"),
    ),
    "a class that is called train": Layout(
        list(several("", "bus", "car", "train")),
        r"holds train beside bus, car: a split, or one of several classes; .*data\.train",
        r"holds train beside bus, car: a split, or one of several classes; .*data\.train",
    ),
    "a class that is a train within the splits": both(
        several("train", "bus", "car", "train"), several("val", "bus", "car", "train")
    ),
    "classes with words of splits": Layout(
        list(several("", "bullet_train", "test_tube", "bus", "car", "ship")),
        r"holds nothing named train",
        several("", "bullet_train", "test_tube", "bus", "car", "ship"),
    ),
    "MVTec, splits in each class": Layout(
        [f"{name}/{split}/good/1.png" for name in ("bottle", "cable") for split in ("train", "test")],
        r"splits in several places: bottle/test, .*data\.train",
        r"splits in several places: bottle/test, .*data\.val",
    ),
    "Food-101": Layout(
        [*several("food-101/images", *CATS_DOGS), "food-101/meta/train.txt=cat/cat_1", "food-101/meta/test.txt=dog/1"],
        r"one pool of images, and its splits are in other files: .*meta/test.txt, .*meta/train.txt; .*data\.train",
        r"one pool of images, and its splits are in other files: .*meta/test.txt, .*meta/train.txt; .*data\.val",
    ),
    "CelebA": Layout(
        ["celeba/img_align_celeba/1.jpg", "celeba/list_eval_partition.txt=1.jpg 0"],
        r"its splits are in other files: celeba/list_eval_partition.txt",
        r"its splits are in other files: celeba/list_eval_partition.txt",
    ),
    "Stanford Dogs": Layout(
        [*several("Images", *CATS_DOGS), "lists/train_list.mat=", "lists/test_list.mat=", "Annotation/cat/cat_1="],
        r"one pool of images, and its splits are in other files: lists/test_list.mat, lists/train_list.mat",
        r"one pool of images, and its splits are in other files: lists/test_list.mat, lists/train_list.mat",
    ),
    "iNaturalist": Layout(
        ["train_val_images/Birds/1/1.jpg", "train2019.json={}", "val2019.json={}"],
        r"one pool of images, and its splits are in other files: train2019.json, val2019.json",
        r"one pool of images, and its splits are in other files: train2019.json, val2019.json",
    ),
    "ADE20K": both(
        flat("images/training"), flat("images/validation"), "annotations/training/1.png", "annotations/validation/1.png"
    ),
    "BDD100K": Layout(
        [f"images/{size}/{split}/1.jpg" for size in ("10k", "100k") for split in ("train", "val")],
        r"splits in several places: images/100k/train, .*data\.train",
        r"splits in several places: images/100k/train, .*data\.val",
    ),
    "assets beside the data": both(
        several("data/train", *CATS_DOGS), several("data/valid", *CATS_DOGS), "assets/logo.png", "README.md"
    ),
    "the same again, deeper": both(
        several("chest/train", *CATS_DOGS), several("chest/val", *CATS_DOGS), "chest/chest/train/cat/x.jpg"
    ),
    "dogs and cats, in sets": both(
        several("training_set/training_set", *CATS_DOGS), several("validation_set/validation_set", *CATS_DOGS)
    ),
    "Pascal VOC": Layout(
        [
            *("VOC2012/JPEGImages/1.jpg", "VOC2012/SegmentationClass/1.png", "VOC2012/Annotations/1.xml"),
            *("VOC2012/ImageSets/Main/train.txt=1", "VOC2012/ImageSets/Main/val.txt=1"),
        ],
        r"one pool of images",
        r"one pool of images, and its splits are in other files: VOC2012/ImageSets/Main/train.txt",
    ),
    "pool with masks": Layout(
        ["images/1.jpg", "images/2.jpg", "annotations/trimaps/1.png"], r"holds nothing named train", flat("images")
    ),
    "FFHQ": Layout(
        ["images1024x1024/00000/00001.png", "images1024x1024/01000/01234.png"],
        r"holds nothing named train",
        flat("images1024x1024", "00000/00001.png", "01000/01234.png"),
    ),
    "img2dataset's files": Layout(
        ["00000/000000001.jpg", "00000/000000001.json", "00001/000010001.jpg", "00000_stats.json"],
        r"holds nothing named train",
        flat("", "00000/000000001.jpg", "00001/000010001.jpg"),
    ),
    "digits of MNIST": Layout(
        [f"{name}/{name}{item}.png" for name in "012" for item in (1, 2)],
        r"holds nothing named train",
        {f"{name}/{name}{item}.png": name for name in "012" for item in (1, 2)},
    ),
    "GTSRB": Layout(
        ["Training/00000/00000_00001.ppm", "Training/00001/00000_00001.ppm", "Final_Test/Images/1.ppm"],
        {"Training/00000/00000_00001.ppm": "00000", "Training/00001/00000_00001.ppm": "00001"},
        r"nothing named val",
    ),
    "one flat folder": Layout(["photos/1.jpg", "photos/2.jpg"], r"holds nothing named train", flat("photos")),
    "what systems leave": both(
        several("train", *CATS_DOGS),
        several("val", *CATS_DOGS),
        *("train/@eaDir/cat_1.jpg/SYNOPHOTO_THUMB.jpg", "train/cat/Thumbs.db", "train/$RECYCLE.BIN/1.jpg"),
        *("val/lost+found/1.jpg", "val/System Volume Information/1.jpg", "@eaDir/1.jpg", "__MACOSX/val/._1.jpg"),
        *("val/.ipynb_checkpoints/1.jpg", "val/__pycache__/a.jpg", "val/#recycle/1.jpg"),
    ),
}


def write(files: list[str], place: Path, container: str) -> Path:
    """A data set as a folder, or packed."""
    contents = {}
    for file in files:
        name, _, text = file.partition("=")
        is_image = name.endswith((".jpg", ".png", ".ppm"))
        contents[name] = picture(name) if is_image else text.encode()
    if container == "zip":
        with zipfile.ZipFile(Path(f"{place}.zip"), "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return Path(f"{place}.zip")
    if container == "tar":
        with tarfile.open(Path(f"{place}.tar"), "w") as packed:
            for name, content in contents.items():
                entry = tarfile.TarInfo(f"./{name}")
                entry.size = len(content)
                packed.addfile(entry, io.BytesIO(content))
        return Path(f"{place}.tar")
    for name, content in contents.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def found_in(source: ImageSource, root: Path) -> dict[str, str]:
    """The images of a source by their path within the data set, with the names of their classes."""
    return {
        os.path.relpath(source.name(item), root): "" if label < 0 else (source.class_names or [])[label]
        for item, label in enumerate(source.labels.tolist())
    }


@pytest.mark.parametrize("container", ["folder", "zip", "tar", "zip in a folder"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_split_is_found_with_its_classes_or_a_line_says_what_is_there(
    tmp_path: Path, name: str, container: str
) -> None:
    layout = LAYOUTS[name]
    (tmp_path / "around").mkdir()
    packed = write(layout.files, tmp_path / "around" / "it", container.split()[0])
    root = packed.parent if container == "zip in a folder" else packed
    train_classes: list[str] | None = None
    for split, expected in (("train", layout.train), ("val", layout.val)):
        if isinstance(expected, str):
            with pytest.raises(InputError, match=expected):
                find_split(str(root), split, "auto")  # type: ignore[arg-type]
            continue
        source = find_split(str(root), split, "auto")  # type: ignore[arg-type]
        assert isinstance(source, ImageSource)
        if split == "train":
            train_classes = source.class_names
            assert "train" in splits_of(str(root), "auto")
        elif train_classes is not None:
            source.number_by(train_classes)
            assert source.class_names in (train_classes, None)
            assert not source.notes
        assert found_in(source, packed) == expected
        assert all(source.read(item) for item in range(len(source)))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(name, "train") for name in ("train", "TRAIN", "Training Set", "train_256", "trainA", "X_train", "trainval")],
        *[(name, "train") for name in ("imagenet1k-train-0001", "ILSVRC2012_img_train", "TrainImages", "train.X1")],
        *[(name, "val") for name in ("val", "Valid", "validation", "val2017", "val_256", "dev", "DIV2K_valid_HR")],
        *[(name, "test") for name in ("test", "Final_Test", "testing", "test-dev2017")[:3]],
        *[(name, None) for name in ("trainers", "valley", "contest", "retrain", "train_masks", "valannot", "images")],
        *[(name, None) for name in ("train_val", "evaluate.py", "strain", "attest", "devices", "interval")],
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_a_name_may_speak_of_two_splits() -> None:
    assert splits_in("train_test_split") == {"train", "test"}


@pytest.mark.parametrize(
    ("names", "pieces"),
    [
        (["train-00000-of-00002", "train-00001-of-00002"], True),
        (["train-00000-of-00002-3f2a9b", "train-00001-of-00002-77ab01"], True),
        (["imagenet1k-train-0000", "imagenet1k-train-0007"], True),
        (["train.X1", "train.X2", "train.X3"], True),
        (["train0", "train1"], True),
        (["train2014", "train2017"], False),
        (["train_256", "train_512"], False),
        (["train_large", "train_small"], False),
        (["train1", "train_1"], False),
    ],
)
def test_pieces_of_one_split(names: list[str], pieces: bool) -> None:
    assert are_pieces(names) == pieces


COCO = ["train2017/1.jpg", "val2017/1.jpg", "test2017/1.jpg"]


@pytest.mark.parametrize("container", ["folder", "zip", "tar"])
def test_a_place_that_is_named_for_a_split_and_holds_several_gives_that_one(tmp_path: Path, container: str) -> None:
    root = write(COCO, tmp_path / "coco", container)
    for split in ("train", "val"):
        source = open_images(str(root), "auto", split)  # type: ignore[arg-type]
        assert isinstance(source, ImageSource)
        assert found_in(source, root) == flat(f"{split}2017", "1.jpg")


@pytest.mark.parametrize("container", ["folder", "zip", "tar"])
def test_a_place_that_is_named_for_a_split_and_holds_one_is_all_taken(tmp_path: Path, container: str) -> None:
    root = write(["train/1.jpg", "more/2.jpg"], tmp_path / "images", container)
    source = open_images(str(root), "auto", "val")
    assert isinstance(source, ImageSource)
    assert len(source) == 2


def test_a_pool_that_lists_divide_is_taken_where_it_is_named(tmp_path: Path) -> None:
    root = write(LAYOUTS["Food-101"].files, tmp_path / "root", "folder")
    source = open_images(str(root / "food-101" / "images"), "auto", "val")
    assert isinstance(source, ImageSource)
    assert sorted(set(found_in(source, root).values())) == ["cat", "dog"]
    with pytest.raises(InputError, match="its splits are in other files"):
        splits_of(str(root), "auto")


@pytest.mark.parametrize(("wanted", "found"), [("train", "1.jpg"), ("val", "2.jpg")])
def test_archives_of_splits_that_hold_both(tmp_path: Path, wanted: Split, found: str) -> None:
    """So that fit does not train on the validation part."""
    write(["train/1.jpg", "val/2.jpg"], tmp_path / "train", "zip")
    write(["train/1.jpg", "val/2.jpg"], tmp_path / "val", "zip")
    source = find_split(str(tmp_path), wanted, "auto")
    assert isinstance(source, ImageSource)
    assert list(source.names) == [f"{wanted}/{found}"]


def test_a_tar_for_each_class(tmp_path: Path) -> None:
    for name in ("n01440764", "n01443537"):
        (tmp_path / "train").mkdir(exist_ok=True)
        write([f"{name}_1.jpg", f"{name}_2.jpg"], tmp_path / "train" / name, "tar")
    source = find_split(str(tmp_path), "train", "auto")
    assert isinstance(source, ImageSource)
    assert source.class_names == ["n01440764", "n01443537"]
    assert source.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("names", [("00000", "00001"), ("part-a1", "part-a2"), ("train-a", "train-b")])
def test_shards_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    paths = [write(["1.jpg", "2.jpg"], tmp_path / name, "tar") for name in names]
    source = ArchiveSource(paths)
    assert (source.class_names, source.labels.tolist()) == (None, [-1] * 4)


def test_folders_of_img2dataset(tmp_path: Path) -> None:
    """Tars of images, and Parquet files of what is known of them."""
    for shard in ("00000", "00001"):
        write([f"{shard}0001.jpg", f"{shard}0001.txt=a cat", f"{shard}0001.json={{}}"], tmp_path / shard, "tar")
        (tmp_path / f"{shard}.parquet").write_bytes(b"metadata")
        (tmp_path / f"{shard}_stats.json").write_text("{}")
    source = find_split(str(tmp_path), "val", "auto")
    assert isinstance(source, ArchiveSource)
    assert list(source.names) == ["000000001.jpg", "000010001.jpg"]
    assert source.labels.tolist() == [-1, -1]
    assert not source.notes


@pytest.mark.parametrize("container", ["folder", "zip", "tar"])
def test_files_that_are_left_out_are_counted_by_suffix(tmp_path: Path, container: str) -> None:
    files = ["a/1.jpg", "a/2.jfif=", "b/3.pgm=", "b/4.heic=", "b/5.HEIC=", "b/6.mp4=", "b/no=", "README=", "b/7.txt="]
    source = open_images(str(write(files, tmp_path / "it", container)), "auto", "val")
    assert isinstance(source, ImageSource)
    assert len(source) == 3
    assert source.class_names == ["a", "b"]
    (note,) = source.notes
    assert note.startswith("4 files are left out")
    assert note.endswith(": 2 .heic, 1 .mp4, 1 no suffix")


def test_a_source_without_images_says_what_is_there_instead(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no images below .*2 files are left out.*: 2 .heic\)"):
        FolderSource(write(["a/1.heic=", "a/2.heic="], tmp_path / "it", "folder"))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_all_of_several_places_are_read(tmp_path: Path, kind: str) -> None:
    parts = [
        write([f"{name}/{number}.jpg" for name in classes], tmp_path / f"train.X{number}", kind)
        for number, classes in enumerate([("cat", "dog"), ("dog", "eel"), ("cat", "dog", "eel")], 1)
    ]
    suffix = ".zip" if kind == "zip" else ""
    pattern = f"{tmp_path}/train.X{{1..3}}{suffix}"
    for location in (pattern, "::".join(map(str, parts))):
        source = open_images(location, "auto", "train")
        assert isinstance(source, ImageSource)
        assert source.class_names == ["cat", "dog", "eel"]
        assert source.labels.tolist() == [0, 1, 1, 2, 0, 1, 2]
        assert source.name(3) == str(parts[1] / "eel" / "2.jpg")
        assert all(source.read(item) for item in range(7))


def test_several_lists_and_folders_are_read_together_unless_their_classes_do_not_go_together(tmp_path: Path) -> None:
    folder = write(["cat/1.jpg", "dog/2.jpg"], tmp_path / "folder", "folder")
    more = write(["3.jpg"], tmp_path / "more", "folder")
    (tmp_path / "list.txt").write_text("more/3.jpg\t5\n")
    source = open_images(f"{folder}::{more}", "auto", "train")
    assert isinstance(source, ImageSource)
    assert source.labels.tolist() == [0, 1, -1]
    with pytest.raises(InputError, match=r"list.txt numbers its classes and .*folder names them"):
        open_images(f"{folder}::{tmp_path}/list.txt", "auto", "train")


def test_classes_that_training_does_not_have_get_no_label_and_a_note(tmp_path: Path) -> None:
    root = write([*several("train", "cat", "eel"), *several("val", "cat", "dog", "eel")], tmp_path / "it", "folder")
    train, val = (find_split(str(root), split, "auto") for split in ("train", "val"))  # type: ignore[arg-type]
    assert isinstance(train, ImageSource)
    assert isinstance(val, ImageSource)
    val.number_by(train.class_names or [])
    assert val.labels.tolist() == [0, 0, -1, -1, 1, 1]
    assert val.notes == ["2 of 6 images are of 1 classes that training does not have (dog): they have no label"]


def test_names_of_classes_are_equal_however_their_accents_are_written(tmp_path: Path) -> None:
    composed, apart = "K\u00e4tzchen", "Ka\u0308tzchen"
    source = FolderSource(write([f"{apart}/1.jpg", "dog/1.jpg"], tmp_path / "it", "folder"))
    source.number_by([composed, "dog"])
    assert sorted(source.labels.tolist()) == [0, 1]
    assert np.array_equal(source.labels, [0, 1] if source.names[0].startswith("Ka") else [1, 0])


LISTS = {
    "a.jpg\nb.jpg 1\nlost.jpg\n": r"list.txt: a line leads to no file, the first is line 3, 'lost.jpg': there is no .*"
    r"/lost.jpg. Names are relative to the folder of the list",
    "x/a.jpg\nx/b.jpg\n": r"2 of 2 lines lead to no file, the first is line 1",
    "a.jpg,3\nb.jpg,4\n": r"It has a comma: name and label are separated by a tab",
    "image label\na.jpg 1\nb.jpg 2\n": r"It looks like a heading",
    "sub\\a.jpg\n": r"separated by backslashes: use /",
    "http://x/a.jpg\n": r"It is a URL",
    "a.jpg 1.5\n": r"does not end as the name of an image: .* a label, a whole number",
    "a\nb\n": r"a line is a name with its suffix",
    "sub\n": r"leads to no file",
}


@pytest.mark.parametrize("text", LISTS)
def test_a_list_that_leads_nowhere_says_where_and_why_at_the_start(tmp_path: Path, text: str) -> None:
    write(["a.jpg", "b.jpg", "sub/a.jpg"], tmp_path, "folder")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=LISTS[text]):
        open_images(str(tmp_path / "list.txt"), "auto", "val")


def test_a_list_of_many_images_finds_the_one_that_is_missing(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(30)]
    write(names, tmp_path, "folder")
    (tmp_path / "list.txt").write_text("\r\n".join([*names, "./1.jpg -1", "30.jpg\t-1"]))
    with pytest.raises(InputError, match=r"a line leads to no file, the first is line 32, .*30.jpg"):
        open_images(str(tmp_path / "list.txt"), "auto", "val")
    (tmp_path / "30.jpg").write_bytes(picture("30"))
    source = open_images(str(tmp_path / "list.txt"), "auto", "val")
    assert isinstance(source, ImageSource)
    assert source.labels.tolist() == [-1] * 32


def labels_of(data: ImageNetDataModule) -> list[int]:
    return [label for batch in data.val_dataloader() for label in batch.label.tolist()]  # type: ignore[union-attr]


@pytest.mark.parametrize("stage", ["fit", "validate", "predict"])
def test_validation_has_the_numbers_of_trainings_classes(tmp_path: Path, stage: str) -> None:
    layout = LAYOUTS["validation lacks a class"]
    data = ImageNetDataModule(
        write(layout.files, tmp_path / "it", "folder"), 1, global_batch_size=2, val_batch_size=8, num_workers=0
    )
    data.setup(stage)
    loader = data.predict_dataloader() if stage == "predict" else data.val_dataloader()
    assert [label for batch in loader for label in batch.label.tolist()] == [0, 0, 2, 2]
    assert data.class_names == data.settings["trained_class_names"] == ["cat", "dog", "eel"]


def test_a_split_alone_is_numbered_by_the_classes_that_a_checkpoint_has_kept(tmp_path: Path) -> None:
    root = write(list(several("", "cat", "eel", "newt")), tmp_path / "it", "folder")
    data = ImageNetDataModule(root, 1, val_batch_size=8, num_workers=0, trained_class_names=["ape", "cat", "eel"])
    data.setup("validate")
    assert labels_of(data) == [1, 1, 2, 2, -1, -1]


def test_what_is_left_out_is_said_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = ["train/1.jpg", "train/2.heic=", "val/1.jpg", "val/masks.mp4="]
    data = ImageNetDataModule(write(files, tmp_path / "it", "folder"), 1, global_batch_size=1, num_workers=0)
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert "training: 1 file is left out, not named like an image: 1 .heic" in caplog.text
    assert "validation: 1 file is left out, not named like an image: 1 .mp4" in caplog.text


@pytest.mark.parametrize("container", ["folder", "zip"])
def test_training_takes_nothing_of_the_validation_part(tmp_path: Path, container: str) -> None:
    root = write(["top/train/1.jpg", "top/train/2.jpg", "top/val/3.jpg"], tmp_path / "it", container)
    data = ImageNetDataModule(root, 1, global_batch_size=2, num_workers=0)
    data.setup("fit")
    assert sorted(os.path.basename(path) for batch in data.train_dataloader() for path in batch.path) == [
        "1.jpg",
        "2.jpg",
    ]


def test_fit_says_what_is_there_where_it_finds_no_training_split(tmp_path: Path) -> None:
    root = write(["val2017/1.jpg", "test2017/1.jpg"], tmp_path / "it", "folder")
    with pytest.raises(InputError, match=r"holds test2017, val2017, and nothing named train; .*data\.train"):
        ImageNetDataModule(root, 1, global_batch_size=1, num_workers=0).setup("fit")
    root = write(LAYOUTS["Food-101"].files, tmp_path / "food", "folder")
    with pytest.raises(InputError, match=r"its splits are in other files"):
        ImageNetDataModule(root, 1, global_batch_size=1, num_workers=0).setup("fit")


@pytest.mark.parametrize("container", ["folder", "zip"])
def test_numbered_folders_that_are_taken_for_pieces_are_noted(tmp_path: Path, container: str) -> None:
    """They may be classes, whose images would have lost their labels without a word."""
    path = write(["00001/000010001.jpg", "00002/000020001.jpg"], tmp_path / "it", container)
    source = found(path, "val")
    assert source.labels.tolist() == [-1, -1]
    assert source.notes == ["folders are numbered as the images within them (00001, 00002): pieces, no classes"]


@pytest.mark.parametrize(("pattern", "read"), [("x{3..3}", ["x3"]), ("{x3,x4}", ["x3", "x4"]), ("x{a..a}", ["xa"])])
def test_a_pattern_may_stand_for_one_place(tmp_path: Path, pattern: str, read: list[str]) -> None:
    for name in read:
        write(["1.png"], tmp_path / name, "folder")
    source = open_images(str(tmp_path / pattern), "auto", "val")
    assert isinstance(source, ImageSource)
    assert [source.name(item) for item in range(len(source))] == [str(tmp_path / name / "1.png") for name in read]
    with pytest.raises(InputError, match="which is neither numbers"):
        open_images(str(tmp_path / "x{3}"), "auto", "val")


def found(root: Path, split: Split) -> ImageSource:
    source = find_split(str(root), split, "auto")
    assert isinstance(source, ImageSource)
    return source
