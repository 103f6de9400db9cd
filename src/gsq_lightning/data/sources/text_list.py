"""Images listed in a text file."""

import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gsq_lightning.data.batch import NO_LABEL
from gsq_lightning.data.sources.folder import NO_PLACES, FolderSource
from gsq_lightning.data.sources.listing import Listing, Witness
from gsq_lightning.data.sources.names import is_image_name
from gsq_lightning.errors import InputError
from gsq_lightning.names import PackedNames

SCANNED_FROM = 20  # names in one folder from which on the folder is listed, rather than each file asked for


class Line(NamedTuple):
    """Of a list.

    Attributes:
        number: counted from 1.
        text: the whole line.
        name: of the image.
        label: number of its class, or NO_LABEL.
    """

    number: int
    text: str
    name: str
    label: int


class ListSource(FolderSource):
    """The images that a text file names, in its order: one on each line, perhaps a tab or space and its label after it.

    Args:
        path: the text file, UTF-8; names are relative to its folder, or absolute. A name that contains spaces needs a
            tab before its label, a whole number; -1 is no label.

    Raises:
        InputError: where there is no such file, it names nothing, or a line leads nowhere.
    """

    def __init__(self, path: Path) -> None:
        try:
            text = path.read_text("utf-8-sig")
            lines = [line_of(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
            missing = missing_lines(lines, path.parent)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as a list of images: {error}") from error
        if not lines:
            raise InputError(f"{path} names no images; it needs one name on each line")
        if missing:
            raise InputError(lost_lines(missing, len(lines), path))
        self.place, self._folder = str(path), str(path.parent)
        self._listing = Listing(
            PackedNames.pack(line.name for line in lines),
            np.array([line.label for line in lines], dtype=np.int64),
            Witness.of([str(path.resolve())]),
            NO_PLACES,
        )
        self.names, self.labels = self._listing.names, self._listing.labels


def line_of(number: int, text: str) -> Line:
    """The text after the last tab, or the last space if there is no tab, is the label if it is a whole number."""
    line = text.strip()
    name, _, label = line.rpartition("\t" if "\t" in line else " ")
    if not name or not label.strip().removeprefix("-").isdecimal():
        return Line(number, line, line, NO_LABEL)
    return Line(number, line, name.strip(), label_of_text(label))


def label_of_text(text: str | bytes) -> int:
    """A class in digits; all that are negative are NO_LABEL. Raises ValueError for what is none, or beyond int64."""
    label = int(text)
    if abs(label) >= 2**63:
        raise ValueError(f"{label} is no class: it is beyond int64")
    return max(label, NO_LABEL)


def missing_lines(lines: list[Line], folder: Path) -> list[Line]:
    """The lines that name no file."""
    by_folder: defaultdict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_folder[os.path.dirname(os.path.join(folder, line.name))].append(line)
    missing = []
    for place, named in by_folder.items():
        if len(named) < SCANNED_FROM:
            missing += [line for line in named if not os.path.isfile(os.path.join(folder, line.name))]
            continue
        try:
            with os.scandir(place) as entries:
                files = {entry.name for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            files = set()
        missing += [line for line in named if os.path.basename(line.name) not in files]
    return sorted(missing)


def lost_lines(missing: list[Line], count: int, path: Path) -> str:
    """The message for lines without a file: how many, the first, and its likely mistake."""
    first = missing[0]
    target = os.path.abspath(os.path.join(path.parent, first.name))
    several = f"{len(missing)} of {count} lines lead" if len(missing) > 1 else "a line leads"
    return (
        f"{path}: {several} to no file, the first is line {first.number}, {first.text!r}: there is no {target}. "
        f"{what_may_be_wrong(first, len(missing) == 1 < count)}"
    )


def what_may_be_wrong(line: Line, is_alone: bool) -> str:
    if "\\" in line.text:
        return "Its folders are separated by backslashes: use /"
    if "," in line.text and "\t" not in line.text:
        return "It has a comma: name and label are separated by a tab, and there is nothing else on a line"
    if "://" in line.text:
        return "It is a URL, and a list names files"
    if line.number == 1 and is_alone and not is_image_name(line.name):
        return "It looks like a heading: a list has none, remove it"
    if not is_image_name(line.name):
        return (
            "It does not end as the name of an image: a line is a name with its suffix, perhaps a tab or space and a "
            "label, a whole number, after it; a name that contains spaces needs a tab"
        )
    return "Names are relative to the folder of the list, or absolute"
