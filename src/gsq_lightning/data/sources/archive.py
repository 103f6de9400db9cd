"""Images in zip and tar files, read in any order without unpacking."""

import os
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gsq_lightning.data.batch import NO_LABEL
from gsq_lightning.data.sources.classes import annotation_folders, classes_of_folders
from gsq_lightning.data.sources.folder import no_images
from gsq_lightning.data.sources.interface import ImageSource, hash_of_listing
from gsq_lightning.data.sources.listing import Listing, cached_listing
from gsq_lightning.data.sources.members import ZIP_LOCAL_HEADER, list_archives
from gsq_lightning.data.sources.splits import Split, are_pieces, choose_parts, refuse_undivided, splits_in
from gsq_lightning.data.sources.tree import NameTree
from gsq_lightning.errors import InputError
from gsq_lightning.names import PackedNames

MOST_OPEN = 64  # archives that a source keeps open; systems often allow 1,024 files in all
LARGEST_UNPACKED = 2**28  # bytes; more than the pixels of the largest image that Pillow opens without a warning
WORDNET_ID = re.compile(r"n\d{8}")


class ArchiveSource(ImageSource):
    """Images in one or more zip and tar files, in the order of the files and of the names within.

    A tar may be a WebDataset shard, where `NAME.cls` holds the label of `NAME.jpg`; `NAME.mask.png` or the like beside
    them is no image. Or it may hold tars of its own, each a class, as ImageNet's ILSVRC2012_img_train.tar; or each of
    the tars is a class, n01440764.tar. Else folders are classes as in `FolderSource`. Links within a tar are left out.

    Args:
        paths: the archives. A tar must not be compressed: images are read from its middle.
        split: where the archives hold several splits, only this one is taken.
        is_root: the archives hold splits, so that a single one, of another name, is refused.

    Raises:
        InputError: where a file is no such archive, none holds an image, or the split is not there.
    """

    def __init__(self, paths: Sequence[Path], split: Split | None = None, is_root: bool = False) -> None:
        self._paths = [str(path) for path in paths]
        self.place = self._paths[0] if len(paths) == 1 else str(paths[0].parent)
        identity = "archives " + "\n".join(str(path.resolve()) for path in paths)
        part = f"{split} {is_root} of {identity}"
        self._listing = cached_listing(
            part, lambda: part_of(cached_listing(identity, lambda: list_archives(self._paths)), paths, split, is_root)
        )
        self.names, self.labels = self._listing.names, self._listing.labels
        self.class_names = self._listing.class_names
        self.notes = self._listing.notes
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        if not len(self):
            raise InputError(no_images(f"in {self.place}", self._listing))

    def name(self, item: int) -> str:
        return f"{self._paths[self._listing.places[item, 0]]}/{self.names[item]}"

    def short_name(self, item: int) -> str:
        """With the archive's name, as several may hold images of the same name."""
        archive = self._paths[self._listing.places[item, 0]]
        return f"{os.path.basename(archive)}/{self.names[item]}"

    def read(self, item: int) -> bytes:
        archive, offset, size, method, unpacked = self._listing.places[item].tolist()
        descriptor = self._open(archive)
        if self._paths[archive].lower().endswith(".zip"):
            header = os.pread(descriptor, ZIP_LOCAL_HEADER.size, offset)
            if len(header) < ZIP_LOCAL_HEADER.size:
                raise ValueError("the archive is truncated")
            signature, name_size, extra_size = ZIP_LOCAL_HEADER.unpack(header)
            if signature != b"PK\x03\x04":
                raise ValueError("the zip changed since it was listed")
            offset += ZIP_LOCAL_HEADER.size + name_size + extra_size
        if offset + size > os.fstat(descriptor).st_size:
            raise ValueError("the archive is truncated")
        content = os.pread(descriptor, size, offset)
        return inflated(content, unpacked) if method == zipfile.ZIP_DEFLATED else content

    def fingerprint(self) -> str:
        return hash_of_listing(self._listing)

    def _open(self, archive: int) -> int:
        """A descriptor of an archive; as `pread` moves no position, processes may share it."""
        if archive in self._descriptors:
            self._descriptors.move_to_end(archive)
            return self._descriptors[archive]
        if len(self._descriptors) >= MOST_OPEN:
            os.close(self._descriptors.popitem(last=False)[1])
        self._descriptors[archive] = os.open(self._paths[archive], os.O_RDONLY)
        return self._descriptors[archive]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)


def inflated(content: bytes, size: int) -> bytes:
    """What a zip has deflated. Raises ValueError where that is damaged, huge, or of another size than declared."""
    if size > LARGEST_UNPACKED:
        raise ValueError(f"it unpacks to {size >> 20} MB, and an image may have {LARGEST_UNPACKED >> 20}")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        image = inflater.decompress(content, size + 1)
    except zlib.error as error:
        raise ValueError(f"damaged within the zip: {error}") from error
    if len(image) != size:
        raise ValueError(f"it does not unpack to the {size} bytes that the zip declares")
    return image


def part_of(everything: Listing, paths: Sequence[Path], split: Split | None, is_root: bool) -> Listing:
    """The images of a split with their classes, without those of annotations."""
    names = list(everything.names)
    chosen = np.ones(len(names), dtype=bool)
    within: tuple[str, ...] = ()
    if split is not None and names:
        place = str(paths[0]) if len(paths) == 1 else str(paths[0].parent)
        parts = choose_parts(NameTree(names, everything.texts), split, place, is_root)
        if parts[0].path:
            within = tuple(f"{part.path}/" for part in parts)
            chosen = np.array([name.startswith(within) for name in names])
        elif is_root:
            refuse_undivided(split, place)
    folders = folders_within(everything, names, chosen, paths, within)
    annotated = annotation_folders(set(folders))
    kept = np.array([folder not in annotated for folder in folders], dtype=bool)
    notes = list(everything.notes)
    if annotated:
        notes.append(f"{int((~kept).sum())} images in {min(annotated)} are left out: annotations beside images")
    items = np.flatnonzero(chosen)[kept]
    labels, class_names = everything.labels[items], everything.class_names
    if not (labels != NO_LABEL).any():
        stems = (os.path.splitext(os.path.basename(names[item]))[0] for item in items)
        class_names, labels, of_classes = classes_of_folders(
            [folder for folder, is_kept in zip(folders, kept, strict=True) if is_kept], stems
        )
        notes += of_classes
    return Listing(
        PackedNames.pack(names[item] for item in items),
        labels,
        everything.witness,
        everything.places[items],
        class_names,
        everything.left_out,
        notes,
    )


def folders_within(
    everything: Listing, names: list[str], chosen: np.ndarray, paths: Sequence[Path], within: tuple[str, ...]
) -> list[str]:
    """The folder of each chosen image; where each archive is a class and has no folders, the name of its archive.

    Args:
        everything: the listing.
        names: of all images.
        chosen: (N,) bool, which of them.
        paths: of the archives.
        within: the parts that they lie in, each with its "/" at the end; seen from there, as these are no classes.
    """
    folders = [os.path.dirname(names[item]) for item in np.flatnonzero(chosen)]
    if len(within) > 1:
        around = {folder: next(part for part in within if f"{folder}/".startswith(part)) for folder in set(folders)}
        folders = [folder[len(around[folder]) :] for folder in folders]
    stems = [path.stem for path in paths]
    if any(folders) or not are_classes(stems):
        return folders
    return [stems[archive] for archive in everything.places[chosen, 0]]


def are_classes(stems: list[str]) -> bool:
    """Whether the names of archives are those of classes, not of shards or splits: `n01440764`, or `cat` and `dog`."""
    if len(stems) < 2 or any(splits_in(stem) for stem in stems):
        return False
    if all(WORDNET_ID.fullmatch(stem) for stem in stems):
        return True
    return not are_pieces(stems) and len({re.sub(r"\d", "", stem) for stem in stems}) == len(stems)
