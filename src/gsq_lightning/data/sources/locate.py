"""Which source a `root` is: told by a word, or by what lies there."""

import re
from pathlib import Path
from typing import Literal

from gsq_lightning.data.sources.archive import ARCHIVE_SUFFIXES, ArchiveSource
from gsq_lightning.data.sources.folder import FolderSource, ListSource, is_hidden, is_image_name
from gsq_lightning.data.sources.interface import ImageSource
from gsq_lightning.data.sources.parquet import ParquetSource
from gsq_lightning.errors import InputError

SourceKind = Literal["auto", "folder", "list", "archive", "parquet", "webdataset"]
Split = Literal["train", "val"]

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "validation", "valid")}
LIST_SUFFIXES = frozenset({".txt", ".lst", ".tsv"})
MAX_SHARDS = 1_000_000
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Shards(list[str]):
    """Names of shards that are to be streamed."""


def find_split(root: str, split: Split, kind: SourceKind) -> ImageSource | Shards:
    """The images of one split.

    Args:
        root: a folder that holds, by name, a folder, text list, archives or Parquet files for each split; the name of
            a data set on the Hugging Face Hub (`kind` "parquet"); or for "val" also what has no splits.
        split: which.
        kind: what the source is, or "auto".

    Raises:
        InputError: where there is no such split.
    """
    folder = Path(root).expanduser()
    if is_on_hub(root, kind):
        return ParquetSource(root, "validation" if split == "val" else split)
    if folder.is_dir():
        place = place_of_split(folder, split)
        if place is not None:
            return open_place(place, kind, split)
        if split == "val" and place_of_split(folder, "train") is None:
            return open_place([folder], kind, split)
        names = " or ".join(repr(name) for name in SPLIT_NAMES[split])
        raise InputError(
            f"{root} holds nothing named {names}: neither a folder, nor a .txt list, nor .zip, .tar or .parquet files; "
            f"data.root must hold a train and a val split, or name them with data.train and data.val"
        )
    if split == "val":
        return open_images(root, kind, split)
    if not folder.exists() and not is_remote(root) and "{" not in root:
        raise InputError(f"there is no folder {root}; set data.root to the folder that holds train and val")
    raise InputError(
        f"{root} says nothing of splits; name the training images with data.train, the others with data.val"
    )


def has_split(root: str, split: Split, kind: SourceKind) -> bool:
    """Whether a root holds a split by its name. One that is no folder has none, but for a data set on the Hub."""
    folder = Path(root).expanduser()
    return is_on_hub(root, kind) or (folder.is_dir() and place_of_split(folder, split) is not None)


def is_on_hub(root: str, kind: SourceKind) -> bool:
    """Whether a root is the name of a data set on the Hugging Face Hub."""
    return kind == "parquet" and HUB_NAME.fullmatch(root) is not None and not Path(root).expanduser().exists()


def open_images(location: str, kind: SourceKind, split: Split) -> ImageSource | Shards:
    """The images at one place: a folder, list, archive or Parquet file, or a pattern of shards."""
    if is_remote(location) or kind == "webdataset":
        if kind not in ("auto", "webdataset"):
            raise InputError(f"{location} is remote, and only webdataset shards can be; data.source is {kind}")
        path = Path(location).expanduser()
        if not path.is_dir():
            return Shards(expand_shards(location))
        shards = sorted(path.glob("[!.]*.tar"))
        return Shards(map(str, shards)) if shards else FolderSource(path)
    if "{" in location or "::" in location:
        return open_place([Path(shard).expanduser() for shard in expand_shards(location)], kind, split)
    path = Path(location).expanduser()
    if is_on_hub(location, kind):
        return ParquetSource(location, "validation" if split == "val" else split)
    return open_place([path], kind, split)


def is_remote(location: str) -> bool:
    return location.startswith("pipe:") or "://" in location


def place_of_split(folder: Path, split: Split) -> list[Path] | None:
    """What a folder holds for a split: a folder or list or archive of its name, else all shards named after it.

    A name that ends with the split's goes before those where more follows: beside ILSVRC2012_img_train.tar may lie
    ILSVRC2012_img_train_t3.tar, which holds some of its images again.
    """
    for name in SPLIT_NAMES[split]:
        for candidate in (name, *(name + suffix for suffix in sorted(LIST_SUFFIXES | ARCHIVE_SUFFIXES))):
            if (folder / candidate).exists():
                return [folder / candidate]
    for parent in (folder, folder / "data"):
        for name in SPLIT_NAMES[split]:
            named = re.compile(rf"(.*[-_.])?{name}([-_.].*)?\.(parquet|tar|zip)")
            shards = sorted(path for path in parent.glob("[!.]*") if named.fullmatch(path.name))
            whole = [path for path in shards if path.stem.endswith(name)]
            if shards:
                return whole or shards
    return None


def open_place(paths: list[Path], kind: SourceKind, split: Split) -> ImageSource | Shards:
    """A source from one folder or file, or from several files of one kind."""
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise InputError(f"there is no file or folder {missing}; set data.root to the folder that holds train and val")
    if kind in ("auto", "archive", "parquet", "webdataset") and len(paths) == 1 and paths[0].is_dir():
        paths = shards_within(paths[0]) or paths
    found = kind_of(paths)
    if kind == "webdataset" and found == "archive":
        return Shards(str(path) for path in paths)
    if kind not in ("auto", found):
        raise InputError(f"data.source is {kind}, but {paths[0]} is a source of the kind {found}")
    if found == "folder":
        return FolderSource(paths[0])
    if found == "list":
        return ListSource(paths[0])
    if found == "parquet":
        return ParquetSource(str(paths[0].parent), split, paths)
    return ArchiveSource(paths)


def shards_within(folder: Path) -> list[Path]:
    """The archives or Parquet files of a folder with no images and no folders beside them, but for hidden ones."""
    entries = sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name))
    if any(entry.is_dir() or is_image_name(entry.name) for entry in entries):
        return []
    for suffixes in (frozenset({".parquet"}), ARCHIVE_SUFFIXES):
        shards = [entry for entry in entries if entry.suffix.lower() in suffixes]
        if shards:
            return shards
    return []


def kind_of(paths: list[Path]) -> SourceKind:
    """What some files are, by their names."""
    if paths[0].is_dir():
        return "folder"
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes <= ARCHIVE_SUFFIXES:
        return "archive"
    if suffixes == {".parquet"}:
        return "parquet"
    if len(paths) == 1 and suffixes <= LIST_SUFFIXES:
        return "list"
    raise InputError(
        f"{paths[0]} is no source of images; it may be a folder, a text list ({' '.join(sorted(LIST_SUFFIXES))}), "
        "a .zip, an uncompressed .tar or a .parquet file"
    )


def expand_shards(pattern: str) -> list[str]:
    """`imagenet-{000000..001023}.tar`, or several such patterns with `::` between them → the names of all shards."""
    try:
        from webdataset.shardlists import expand_urls
    except ModuleNotFoundError as error:
        raise InputError("shards are read with webdataset: pip install 'gsq-lightning[webdataset]'") from error
    if number_of_shards(pattern) > MAX_SHARDS:
        raise InputError(f"{pattern} stands for more than {MAX_SHARDS} shards")
    return list(expand_urls(pattern))


def number_of_shards(pattern: str) -> int:
    """How many names a pattern stands for, at most."""
    number = 1
    for group in re.findall(r"\{([^{}]*)\}", pattern):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)(\.\.\d+)?", group)
        number *= abs(int(numbers[2]) - int(numbers[1])) + 1 if numbers else group.count(",") + 1
    return number
