"""Folders of images: with class folders, flat, nested, or named in a text list."""

import os
from pathlib import Path

import numpy as np

from gsq_lightning.data.batch import NO_LABEL
from gsq_lightning.data.decoding import image_suffixes
from gsq_lightning.data.sources.interface import ImageSource, fingerprint_of
from gsq_lightning.data.sources.listing import Listing, PackedNames, Witness, cached_listing
from gsq_lightning.errors import InputError

NO_PLACES = np.empty((0, 4), dtype=np.int64)


class FolderSource(ImageSource):
    """All images below a folder, in the order of their names; what is hidden (`.name`, `__MACOSX`) is none of them.

    Where it has subfolders, each is a class, numbered in the order of their names; images beside them have no label.

    Args:
        root: the folder.

    Raises:
        InputError: where there is no such folder, or no image below it.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(f"there is no folder {root}")
        self.place = self._folder = str(root)
        try:
            self._listing = cached_listing(f"folder {root.resolve()}", lambda: list_folder(root.resolve()))
        except OSError as error:
            raise InputError(f"the folder {root} cannot be listed: {error}") from error
        self.names, self.labels = self._listing.names, self._listing.labels
        if not len(self):
            raise InputError(f"there are no images below {root}; names must end in one of: {suffixes_in_words()}")

    def name(self, item: int) -> str:
        return os.path.join(self._folder, self.names[item])

    def read(self, item: int) -> bytes:
        try:
            with open(self.name(item), "rb") as file:
                return file.read()
        except FileNotFoundError as error:
            if not os.path.exists(self._folder):
                raise  # the disk is gone, not the image
            raise ValueError("the file is gone") from error

    def fingerprint(self) -> str:
        """Also tells whether a file was rewritten in place: asks for the times and size of each."""
        return fingerprint_of(self._listing, Witness.of(self.name(item) for item in range(len(self))).stamps.tobytes())


class ListSource(FolderSource):
    """The images that a text file names, in its order: one on each line, perhaps a tab or space and its label after it.

    Args:
        path: the text file, UTF-8; names are relative to its folder, or absolute. A name that contains spaces needs a
            tab before its label.

    Raises:
        InputError: where there is no such file, or it names nothing.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text("utf-8-sig").splitlines()
            entries = [name_and_label(line) for line in lines if line.strip()]
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as a list of images: {error}") from error
        if not entries:
            raise InputError(f"{path} names no images; it needs one name on each line")
        self.place, self._folder = str(path), str(path.parent)
        self._listing = Listing(
            PackedNames.pack(name for name, _ in entries),
            np.array([label for _, label in entries], dtype=np.int64),
            Witness.of([str(path.resolve())]),
            NO_PLACES,
        )
        self.names, self.labels = self._listing.names, self._listing.labels


def name_and_label(line: str) -> tuple[str, int]:
    """A line of a list → name and label: what follows the last space or tab counts as a label where it is a number."""
    separator = "\t" if "\t" in line else " "
    name, _, label = line.strip().rpartition(separator)
    return (name.strip(), label_of_text(label)) if name and label.strip().isdecimal() else (line.strip(), NO_LABEL)


def label_of_text(text: str | bytes) -> int:
    """A class in digits. Raises ValueError for what is none, or is beyond int64."""
    label = int(text)
    if abs(label) >= 2**63:
        raise ValueError(f"{label} is no class: it is beyond int64")
    return label


def list_folder(root: Path) -> Listing:
    """Finds all images below a folder, given without links; follows those within, but enters no folder twice."""
    names: list[str] = []
    folders: list[str] = []
    entered: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        folder = pending.pop()
        place = os.path.join(root, folder)
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        folders.append(place)
        with os.scandir(place) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    pending.append(os.path.join(folder, entry.name))
                elif is_image_name(entry.name):
                    names.append(os.path.join(folder, entry.name))
    names.sort()
    return Listing(PackedNames.pack(names), class_labels(names), Witness.of(sorted(folders)), NO_PLACES)


def class_labels(names: list[str]) -> np.ndarray:
    """(N,) int64: the number of the first folder in each name, in the order of the folders' names."""
    folders = [name.partition(os.sep)[0] if os.sep in name else None for name in names]
    number = {folder: label for label, folder in enumerate(sorted({folder for folder in folders if folder}))}
    return np.array([NO_LABEL if folder is None else number[folder] for folder in folders], dtype=np.int64)


def is_image_name(name: str) -> bool:
    """Whether a path, within a folder or an archive, is by its suffix that of an image, and nothing on it is hidden."""
    return os.path.splitext(name)[1].lower() in image_suffixes() and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a part of a path is what systems and programs keep for themselves: `.name`, or macOS's `__MACOSX`."""
    parts = name.split("/")
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in parts)


def suffixes_in_words() -> str:
    return " ".join(sorted(image_suffixes()))
