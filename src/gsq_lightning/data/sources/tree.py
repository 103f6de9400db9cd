"""Folders and files of a data set, in a file system or an archive."""

import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from gsq_lightning.data.sources.names import is_hidden, is_image_name
from gsq_lightning.errors import InputError

PartKind = Literal["folder", "list", "archive", "parquet"]

ARCHIVE_SUFFIXES = frozenset({".tar", ".zip"})
LIST_SUFFIXES = frozenset({".txt", ".lst", ".tsv"})
KIND_OF_SUFFIX: dict[str, PartKind] = {
    **dict.fromkeys(LIST_SUFFIXES, "list"),
    **dict.fromkeys(ARCHIVE_SUFFIXES, "archive"),
    ".parquet": "parquet",
}


class Entries(NamedTuple):
    """Names in a folder, sorted, without hidden ones."""

    folders: list[str]
    files: list[str]


class Tree(ABC):
    """Folders and files of a data set, in a file system or an archive."""

    @abstractmethod
    def entries(self, folder: str) -> Entries: ...

    @abstractmethod
    def holds_images(self, folder: str) -> bool:
        """Whether there is an image below it, or an archive or Parquet file of such."""

    def is_list(self, path: str) -> bool:
        """Whether a text file names images."""
        return False


class FolderTree(Tree):
    """The tree below a folder, which is listed on demand.

    Raises:
        InputError: from all methods, where a folder cannot be listed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def entries(self, folder: str) -> Entries:
        folders: list[str] = []
        files: list[str] = []
        for name, is_folder in self._scan(folder):
            (folders if is_folder else files).append(name)
        return Entries(sorted(folders), sorted(files))

    def holds_images(self, folder: str) -> bool:
        below: list[str] = []
        for name, is_folder in self._scan(folder):
            if is_folder:
                below.append(os.path.join(folder, name))
            elif is_image_name(name) or kind_of_file(name) in ("archive", "parquet"):
                return True
        return any(self.holds_images(child) for child in below if not self._leads_up(child))

    def _scan(self, folder: str) -> Iterator[tuple[str, bool]]:
        """The names in a folder, and which are folders."""
        try:
            with os.scandir(self.root / folder) as entries:
                yield from ((entry.name, entry.is_dir()) for entry in entries if not is_hidden(entry.name))
        except OSError as error:
            raise InputError(f"the folder {self.root / folder} cannot be listed: {error}") from error

    def is_list(self, path: str) -> bool:
        try:
            with open(self.root / path, encoding="utf-8-sig", errors="replace") as file:
                first = file.readline().strip()
        except OSError:  # a link that leads nowhere, or what this user may not read
            return False
        names = (first, first.rpartition("\t")[0], first.rpartition(" ")[0])
        folder = os.path.dirname(self.root / path)
        return any(name and os.path.isfile(os.path.join(folder, name)) for name in names)

    def _leads_up(self, folder: str) -> bool:
        """Whether a folder is a link to one that it lies in."""
        path = self.root / folder
        return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


class NameTree(Tree):
    """The tree that the names in an archive make.

    Args:
        images: of all images, with folders.
        texts: of text files that may divide them into splits.
    """

    def __init__(self, images: Iterable[str], texts: Iterable[str] = ()) -> None:
        self._folders: defaultdict[str, set[str]] = defaultdict(set)
        self._texts: defaultdict[str, list[str]] = defaultdict(list)
        self._with_images = {os.path.dirname(name) for name in images}
        for text in texts:
            folder, name = os.path.split(text)
            self._texts[folder].append(name)
        for folder in [*self._with_images, *self._texts]:
            while folder:
                parent, name = os.path.split(folder)
                self._folders[parent].add(name)
                folder = parent
        for folder in list(self._with_images):
            while folder:
                folder = os.path.dirname(folder)
                self._with_images.add(folder)

    def entries(self, folder: str) -> Entries:
        return Entries(sorted(self._folders[folder]), sorted(self._texts[folder]))

    def holds_images(self, folder: str) -> bool:
        return folder in self._with_images


def kind_of_file(name: str) -> PartKind | None:
    """What a file may be besides an image, by its suffix."""
    return KIND_OF_SUFFIX.get(os.path.splitext(name)[1].lower())
