"""Chooses the source of images for a path, by `data.source` or by the content of the path."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

from gsq_lightning.data.sources.archive import ArchiveSource
from gsq_lightning.data.sources.folder import FolderSource
from gsq_lightning.data.sources.interface import ImageSource
from gsq_lightning.data.sources.names import is_image_name
from gsq_lightning.data.sources.parquet import ANY_COLUMNS, Columns, ParquetSource
from gsq_lightning.data.sources.several import SeveralSources
from gsq_lightning.data.sources.splits import Part, Split, choose_parts, levels_of, name_it, refuse_undivided
from gsq_lightning.data.sources.text_list import ListSource
from gsq_lightning.data.sources.tree import LIST_SUFFIXES, FolderTree, NameTree, PartKind, kind_of_file
from gsq_lightning.errors import InputError

SourceKind = Literal["auto", "folder", "list", "archive", "parquet", "webdataset"]

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class PlacedPart(NamedTuple):
    """A folder or file that is read.

    Attributes:
        kind: what it is.
        path: where it is.
        holds_splits: whether it may still hold several splits.
    """

    kind: PartKind
    path: Path
    holds_splits: bool


class Shards(list[str]):
    """Names of shards that are to be streamed."""


def find_split(root: str, split: Split, kind: SourceKind, columns: Columns = ANY_COLUMNS) -> ImageSource | Shards:
    """The images of one split of a data set.

    Args:
        root: a folder or an archive that holds, by name, a folder, text list, archives or Parquet files for each
            split, at any depth; the name of a data set on the Hugging Face Hub (`kind` "parquet"); or for "val" also
            images without splits.
        split: which.
        kind: what the source is, or "auto".
        columns: of Parquet files.

    Raises:
        InputError: where there is no such split, or it is not clear which part of the data set it is.
    """
    path = Path(root).expanduser()
    if is_on_hub(root, kind):
        return ParquetSource(root, "validation" if split == "val" else split, None, columns)
    if path.exists():
        return open_place([path], kind, split, True, columns)
    if not is_remote(root) and "{" not in root and "::" not in root:
        raise InputError(f"there is no file or folder {root}; set data.root to what holds the images of both splits")
    refuse_undivided(split, root)
    return open_images(root, kind, split, columns)


def splits_of(root: str, kind: SourceKind) -> set[str]:
    """The splits that a data set holds by their names: "train", "val", "test". None where it is no folder or archive.

    Raises:
        InputError: where there are several data sets, or lists that divide one pool of images.
    """
    path = Path(root).expanduser()
    if is_remote(root) or not path.exists():
        return set()
    if path.is_dir():
        tree = FolderTree(path)
        levels = levels_of(tree, "")
        if not levels and kind != "webdataset":
            within = shards_within(path)
            if within and kind_of(within[0]) == "archive":
                levels = levels_of(names_in(within), "")
        if not levels:
            choose_parts(tree, "val", root, True)  # which refuses what only lists divide
    elif kind_of_file(path.name) == "archive" and kind != "webdataset":
        levels = levels_of(names_in([path]), "")
    else:
        return set()
    return {split for level in levels for split in level.parts}


def names_in(archives: Sequence[Path]) -> NameTree:
    return NameTree(ArchiveSource(archives).names)


def is_on_hub(root: str, kind: SourceKind) -> bool:
    """Whether a root is the name of a data set on the Hugging Face Hub."""
    return kind == "parquet" and HUB_NAME.fullmatch(root) is not None and not Path(root).expanduser().exists()


def open_images(location: str, kind: SourceKind, split: Split, columns: Columns = ANY_COLUMNS) -> ImageSource | Shards:
    """The images at one place or several: folders, lists, archives or Parquet files.

    Args:
        location: a path; a pattern, shards-{000..123}.tar; or several of them with `::` between. With `kind`
            "webdataset" also URLs and `pipe:` commands.
        kind: what it is, or "auto".
        split: which, where one of them holds several.
        columns: of Parquet files.

    Raises:
        InputError: where something is not there, or is no source of images.
    """
    if is_on_hub(location, kind):
        return ParquetSource(location, "validation" if split == "val" else split, None, columns)
    if is_remote(location):
        if kind not in ("auto", "webdataset"):
            raise InputError(f"{location} is remote, and only webdataset shards can be; data.source is {kind}")
        return Shards(expand(location))
    exists = Path(location).expanduser().exists()
    return open_place(
        [Path(place).expanduser() for place in ([location] if exists else expand(location))],
        kind,
        split,
        False,
        columns,
    )


def is_remote(location: str) -> bool:
    return location.startswith("pipe:") or "://" in location


def open_place(
    paths: list[Path], kind: SourceKind, split: Split, is_root: bool, columns: Columns = ANY_COLUMNS
) -> ImageSource | Shards:
    """A source from folders and files.

    Args:
        paths: of them.
        kind: what they are, or "auto".
        split: which, where one of them holds several.
        is_root: they are a data set that holds splits; else the images of one.
        columns: of Parquet files.
    """
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise InputError(
            f"there is no file or folder {missing}; set data.root to what holds the images, or {name_it(split)}"
        )
    found: list[PlacedPart] = []
    for path in paths:
        found += parts_at(path, kind, split, is_root)
    sources: list[ImageSource] = []
    shards: Shards = Shards()
    for (part_kind, holds_splits), group in groupby(found, key=lambda part: (part.kind, part.holds_splits)):
        places = [part.path for part in group]
        if kind not in ("auto", part_kind) and not (kind == "webdataset" and part_kind in ("archive", "folder")):
            raise InputError(f"data.source is {kind}, but {places[0]} is a source of the kind {part_kind}")
        if kind == "webdataset" and part_kind == "archive":
            shards += map(str, places)
        elif part_kind == "archive":
            sources.append(ArchiveSource(places, split, holds_splits))
        elif part_kind == "parquet":
            sources.append(ParquetSource(str(places[0].parent), split, places, columns))
        else:
            sources += [FolderSource(path) if part_kind == "folder" else ListSource(path) for path in places]
    if shards:
        if sources:
            raise InputError(f"{shards[0]} is streamed and {sources[0].place} is not; {name_it(split)} in one way")
        return shards
    return sources[0] if len(sources) == 1 else SeveralSources(sources)


def parts_at(path: Path, kind: SourceKind, split: Split, is_root: bool) -> list[PlacedPart]:
    """The parts of a folder or file that are read."""
    if not path.is_dir():
        alone = kind_of(path)
        if is_root and alone in ("list", "parquet"):
            refuse_undivided(split, str(path))
        return [PlacedPart(alone, path, is_root)]
    first: PartKind = "folder" if kind in ("auto", "webdataset") else kind  # type: ignore[assignment]
    parts = choose_parts(FolderTree(path), split, str(path), is_root, first)
    undivided = parts == [Part("", "folder")]
    found: list[PlacedPart] = []
    for part in parts:
        place = path / part.path
        shards = shards_within(place) if part.kind == "folder" and kind != "folder" else []
        found += [PlacedPart(kind_of(shard), shard, undivided and is_root) for shard in shards] or [
            PlacedPart(part.kind, place, False)
        ]
    if is_root and undivided and found[0].kind != "archive":
        refuse_undivided(split, str(path))
    return found


def shards_within(folder: Path) -> list[Path]:
    """The archives or Parquet files of a folder, or of the single one in it, where there are no images beside them.

    Archives go first: beside them Parquet files may hold what is known of their images, as img2dataset leaves them.
    """
    entries = FolderTree(folder).entries("")
    if any(is_image_name(name) for name in entries.files):
        return []
    for kind in ("archive", "parquet"):
        shards = [folder / name for name in entries.files if kind_of_file(name) == kind]
        if shards and not any(FolderTree(folder).holds_images(name) for name in entries.folders):
            return shards
    return shards_within(folder / entries.folders[0]) if len(entries.folders) == 1 else []


def kind_of(path: Path) -> PartKind:
    """The kind of a folder or file, by its name."""
    if path.is_dir():
        return "folder"
    kind = kind_of_file(path.name)
    if kind is None:
        raise InputError(
            f"{path} is no source of images; it may be a folder, a text list ({' '.join(sorted(LIST_SUFFIXES))}), "
            "a .zip, an uncompressed .tar or a .parquet file"
        )
    return kind


def expand(pattern: str) -> list[str]:
    """`imagenet-{000000..001023}.tar`, `part-{a,b}`, or several such patterns with `::` between them → all names."""
    return [name for part in pattern.split("::") for name in expand_braces(part)]


def expand_braces(text: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    pieces = [words_of_piece(piece) for piece in match[1].split(",")]
    if pieces == [[match[1]]]:
        raise InputError(f"{text} has {match[0]}, which is neither numbers, {{0..9}}, nor words, {{a,b}}")
    around = text[: match.start()], text[match.end() :]
    return [name for piece in pieces for word in piece for name in expand_braces(word.join(around))]


def words_of_piece(piece: str) -> Sequence[str]:
    """`08..10` → 08, 09, 10; `a..c` → a, b, c; a word is itself."""
    if re.fullmatch(r"[a-zA-Z]\.\.[a-zA-Z]", piece):
        return [chr(code) for code in range(ord(piece[0]), ord(piece[-1]) + 1)]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?", piece)
    if numbers is None:
        return [piece]
    first, last, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1) or 1
    counted = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    width = len(numbers[1]) if numbers[1].startswith("0") else 0
    return [f"{number:0{width}}" for number in counted]
