"""Folders of images: with class folders, flat, or nested."""

import os
from collections import Counter
from pathlib import Path

import numpy as np

from gsq_lightning.data.decoding import image_suffixes
from gsq_lightning.data.sources.classes import (
    ANNOTATED,
    annotation_folders,
    classes_of_annotations,
    classes_of_folders,
    read_annotations,
)
from gsq_lightning.data.sources.interface import ImageSource, hash_of_listing
from gsq_lightning.data.sources.listing import Listing, Witness, cached_listing
from gsq_lightning.data.sources.names import (
    is_hidden,
    is_image_name,
    left_out_in_words,
    suffix_left_out,
)
from gsq_lightning.errors import InputError, how_many
from gsq_lightning.names import PackedNames

NO_PLACES = np.empty((0, 5), dtype=np.int64)


class FolderSource(ImageSource):
    """All images below a folder, in the order of their names.

    What systems keep for themselves is none of them (`.name`, `__MACOSX`, `@eaDir`, `lost+found`, …), nor are masks and
    the like, beside a folder of images. The subfolders are classes, numbered in the order of their names, at the first
    level where there are several; images beside them have no label. A `val_annotations.txt` goes before folders.

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
        self.class_names = self._listing.class_names
        self.notes = self._listing.notes
        if not len(self):
            raise InputError(no_images(f"below {root}", self._listing))

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
        """Also changes when a file was rewritten in place: asks for the times and size of each."""
        return hash_of_listing(self._listing, Witness.of(self.name(item) for item in range(len(self))).stamps.tobytes())


def list_folder(root: Path) -> Listing:
    """Finds all images below a folder, given without links; follows those within, but enters no folder twice."""
    names: list[str] = []
    witnesses: list[str] = []
    left_out: Counter[str] = Counter()
    annotations: dict[str, str] = {}
    entered: set[tuple[int, int]] = set()
    again: list[str] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        place = os.path.join(root, folder)
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in entered:
            again.append(folder)
            continue
        entered.add((status.st_dev, status.st_ino))
        witnesses.append(place)
        with os.scandir(place) as entries:
            # the first in the order of names comes from the end of `pending`, on every machine
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                name = os.path.join(folder, entry.name)
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    pending.append(name)
                elif is_image_name(entry.name):
                    names.append(name)
                elif entry.name == ANNOTATED:
                    witnesses.append(entry.path)  # whose change changes the listing too
                    annotations |= read_annotations(Path(entry.path).read_text("utf-8", "replace"), folder)
                elif (suffix := suffix_left_out(entry.name)) is not None:
                    left_out[suffix] += 1
    listing = listing_of(sorted(names), annotations, left_out, Witness.of(sorted(witnesses)))
    if again:
        folders = how_many(len(again), "folder is", "folders are")
        listing.notes.append(f"{folders} left out, which links give other names that are read, such as {min(again)}")
    return listing


def listing_of(names: list[str], annotations: dict[str, str], left_out: Counter[str], witness: Witness) -> Listing:
    """The images of a folder with their classes, without those of annotations."""
    annotated = annotation_folders({os.path.dirname(name) for name in names})
    kept = [name for name in names if os.path.dirname(name) not in annotated]
    classes = classes_of_annotations(kept, annotations)
    if classes.names is None:
        folders = [os.path.dirname(name) for name in kept]
        classes = classes_of_folders(folders, (os.path.splitext(os.path.basename(name))[0] for name in kept))
    return Listing(
        PackedNames.pack(kept),
        classes.labels,
        witness,
        NO_PLACES,
        classes.names,
        dict(left_out),
        [*notes_on(left_out, len(names) - len(kept), annotated), *classes.notes],
    )


def notes_on(left_out: Counter[str], annotations: int, folders: set[str]) -> list[str]:
    """The notes on files that are not read.

    Args:
        left_out: how many of which suffix.
        annotations: how many images are masks and the like.
        folders: those that they lie in.
    """
    notes = [left_out_in_words(left_out)] if left_out else []
    if annotations:
        notes.append(f"{annotations} images in {min(folders)} are left out: annotations beside a folder of images")
    return notes


def no_images(where: str, listing: Listing) -> str:
    """The message for a source without images."""
    left_out = f" ({left_out_in_words(listing.left_out)})" if listing.left_out else ""
    suffixes = " ".join(sorted(image_suffixes()))
    return f"there are no images {where}{left_out}; names must end in one of: {suffixes}"
