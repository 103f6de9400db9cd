"""Class labels of images, by their folders or by an annotation file."""

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gsq_lightning.data.batch import NO_LABEL
from gsq_lightning.data.sources.names import annotations_among
from gsq_lightning.errors import first_few

SHOWN = 3  # folders in a note
ANNOTATED = "val_annotations.txt"  # of tiny-imagenet: file, tab, class, tab, box


class Classes(NamedTuple):
    """Of some images.

    Attributes:
        names: of the classes, in the order of their numbers; None where nothing names classes.
        labels: (N,) int64, NO_LABEL where an image has none.
        notes: what should be said of them.
    """

    names: list[str] | None
    labels: np.ndarray
    notes: Sequence[str] = ()


def classes_of_folders(folders: Sequence[str], stems: Iterable[str]) -> Classes:
    """Classes of images by their folders, at the first level at which these differ.

    Folders around all images are none, and neither is a single one, nor the chunks that large sets are cut into.

    Args:
        folders: of each image, by its path within the data set.
        stems: names of the images, without folder and suffix.
    """
    parts = {folder: parts_of(folder) for folder in set(folders)}
    depth = common_depth(parts.values())
    class_of = {folder: part[depth] for folder, part in parts.items() if len(part) > depth}
    names = sorted(set(class_of.values()))
    none = Classes(None, np.full(len(folders), NO_LABEL, dtype=np.int64))
    if len(names) < 2:
        return none
    if are_chunks(names, (class_of.get(folder, "") for folder in folders), stems):
        shown = first_few(names, SHOWN)
        return none._replace(notes=[f"folders are numbered as the images within them ({shown}): pieces, no classes"])
    number = {name: label for label, name in enumerate(names)}
    label_of = {folder: number[class_of[folder]] if folder in class_of else NO_LABEL for folder in parts}
    return Classes(names, np.array([label_of[folder] for folder in folders], dtype=np.int64))


def parts_of(folder: str) -> tuple[str, ...]:
    return tuple(part for part in folder.split(os.sep) if part not in ("", "."))


def common_depth(paths: Iterable[tuple[str, ...]]) -> int:
    """Number of leading folders that all paths share."""
    paths = list(paths)
    depths = range(min(map(len, paths), default=0))
    return next((depth for depth in depths if len({path[depth] for path in paths}) > 1), len(depths))


def are_chunks(names: list[str], chunk_of: Iterable[str], stems: Iterable[str]) -> bool:
    """Whether numbered folders only cut a long row of numbered images, as FFHQ's and img2dataset's do.

    Each is named by the number of its first image, 01000/01234.png, or by the beginning of all, 00001/000010234.jpg.
    """
    if not all(name.isdecimal() for name in names):
        return False
    starts = sorted(map(int, names))
    size = min(np.diff(starts))
    return all(
        stem.isdecimal() and (int(stem) // size * size == int(chunk) if size > 1 else is_chunk_of_shard(chunk, stem))
        for chunk, stem in zip(chunk_of, stems, strict=True)
    )


def is_chunk_of_shard(chunk: str, stem: str) -> bool:
    return len(chunk) >= 5 and len(stem) > len(chunk) and stem.startswith(chunk)


def read_annotations(text: str, folder: str) -> dict[str, str]:
    """The class of each image that a `val_annotations.txt` names, by its path.

    Args:
        text: of the file.
        folder: that it lies in, beside the images or their folder `images`.
    """
    fields = [line.split("\t") for line in text.splitlines()]
    pairs = [(field[0], field[1]) for field in fields if len(field) > 1]
    return {os.path.join(folder, place, name): label for name, label in pairs for place in ("images", "")}


def classes_of_annotations(names: Sequence[str], annotations: Mapping[str, str]) -> Classes:
    """Classes of images that annotations name; none where they name none of these."""
    words = [annotations.get(name) for name in names]
    found = sorted({word for word in words if word is not None})
    number = {word: label for label, word in enumerate(found)}
    labels = [NO_LABEL if word is None else number[word] for word in words]
    return Classes(found or None, np.array(labels, dtype=np.int64))


def annotation_folders(folders: Iterable[str]) -> set[str]:
    """Folders of masks and other annotations, beside a folder whose name says images.

    Looked for where folders first differ, as classes are.
    """
    parts = {folder: parts_of(folder) for folder in folders}
    depth = common_depth(parts.values())
    found = annotations_among({part[depth] for part in parts.values() if len(part) > depth})
    return {folder for folder, part in parts.items() if len(part) > depth and part[depth] in found}


def unnamed_label(place: str, label: int, classes: int) -> str:
    """The message for a label that is a number, where too few classes have names."""
    numbers = f"{place} has the label {label}, and data.class_names names {classes} classes"
    return f"{numbers}, the first of which is 0; name all"


def renumbering(own: Sequence[str], class_names: Sequence[str]) -> np.ndarray:
    """The label among `class_names` of each of a source's own classes, (len(own) + 1,) int64 and NO_LABEL last.

    So an array of own labels, NO_LABEL where there is none, indexes it. A class that is not among them has NO_LABEL.
    """
    number = {same_name(name): label for label, name in enumerate(class_names)}
    return np.array([number.get(same_name(name), NO_LABEL) for name in own] + [NO_LABEL], dtype=np.int64)


def same_name(name: str) -> str:
    """Equal for a name whose letters and accents are one and one where they are apart, as file systems differ."""
    return unicodedata.normalize("NFC", name)
