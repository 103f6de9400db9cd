"""Images in zip and tar files, read in any order without unpacking: by a list of where each one lies."""

import logging
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from gsq_lightning.data.batch import NO_LABEL
from gsq_lightning.data.decoding import image_suffixes
from gsq_lightning.data.sources.folder import (
    class_labels,
    is_hidden,
    is_image_name,
    label_of_text,
    suffixes_in_words,
)
from gsq_lightning.data.sources.interface import ImageSource, fingerprint_of
from gsq_lightning.data.sources.listing import Listing, PackedNames, Witness, cached_listing
from gsq_lightning.errors import InputError

logger = logging.getLogger(__name__)

MOST_LINKS = 20  # that lead to each other

ARCHIVE_SUFFIXES = frozenset({".tar", ".zip"})
ZIP_LOCAL_HEADER = struct.Struct("<4s22xHH")  # PKWARE APPNOTE 4.3.7: signature, …, lengths of name and extra field


class Member(NamedTuple):
    """An image within an archive.

    Attributes:
        name: its path there.
        label: number of its class where the archive says so, else NO_LABEL.
        offset: of its bytes in the archive (zip: of its local header).
        size: of its bytes as stored.
        method: how a zip compressed it: zipfile.ZIP_STORED or ZIP_DEFLATED.
    """

    name: str
    label: int
    offset: int
    size: int
    method: int = zipfile.ZIP_STORED


class ArchiveSource(ImageSource):
    """Images in one or more zip and tar files, in the order of the files and of the names within.

    A tar may be a WebDataset shard, where `NAME.cls` holds the label of `NAME.jpg`; of what else lies beside that,
    `NAME.mask.png` or the like is no image. Or it may hold tars of its own, each a class, as ImageNet's
    ILSVRC2012_img_train.tar. Else the first folder of a name is its class, but for folders that lie around all images.

    Args:
        paths: the archives. A tar must not be compressed: images are read from its middle.

    Raises:
        InputError: where a file is no such archive, or none holds an image.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths = [str(path) for path in paths]
        self.place = self._paths[0] if len(paths) == 1 else str(paths[0].parent)
        identity = "archives " + "\n".join(str(path.resolve()) for path in paths)
        self._listing = cached_listing(identity, lambda: list_archives(self._paths))
        self.names, self.labels = self._listing.names, self._listing.labels
        self._descriptors: dict[int, int] = {}
        if not len(self):
            raise InputError(f"there are no images in {self.place}; names must end in one of: {suffixes_in_words()}")

    def name(self, item: int) -> str:
        return f"{self._paths[self._listing.places[item, 0]]}/{self.names[item]}"

    def read(self, item: int) -> bytes:
        archive, offset, size, method = self._listing.places[item].tolist()
        descriptor = self._open(archive)
        if self._paths[archive].lower().endswith(".zip"):
            header = os.pread(descriptor, ZIP_LOCAL_HEADER.size, offset)
            if len(header) < ZIP_LOCAL_HEADER.size:
                raise ValueError("the archive is truncated")
            signature, name_size, extra_size = ZIP_LOCAL_HEADER.unpack(header)
            if signature != b"PK\x03\x04":
                raise ValueError("the zip changed since it was listed")
            offset += ZIP_LOCAL_HEADER.size + name_size + extra_size
        content = os.pread(descriptor, size, offset)
        if len(content) < size:
            raise ValueError("the archive is truncated")
        if method == zipfile.ZIP_DEFLATED:
            try:
                return zlib.decompress(content, wbits=-zlib.MAX_WBITS)
            except zlib.error as error:
                raise ValueError(f"damaged within the zip: {error}") from error
        return content

    def fingerprint(self) -> str:
        return fingerprint_of(self._listing)

    def _open(self, archive: int) -> int:
        """A descriptor of an archive; as `pread` moves no position, processes may share it."""
        if archive not in self._descriptors:
            self._descriptors[archive] = os.open(self._paths[archive], os.O_RDONLY)
        return self._descriptors[archive]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": {}}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)


def list_archives(paths: list[str]) -> Listing:
    """Finds the images of all archives. Raises InputError for what is none."""
    witness = Witness.of(os.path.abspath(path) for path in paths)
    members: list[tuple[int, Member]] = []
    for number, path in enumerate(paths):
        try:
            found = zip_members(path) if path.lower().endswith(".zip") else list(tar_members(path))
        except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError) as error:
            hint = "; unpack it, or store it uncompressed" if is_compressed_tar(path) else ""
            raise InputError(f"{path} cannot be read as a zip or an uncompressed tar: {error}{hint}") from error
        members += [(number, member) for member in sorted(found)]
    names = [member.name for _, member in members]
    labels = np.array([member.label for _, member in members], dtype=np.int64)
    if not (labels != NO_LABEL).any():
        labels = class_labels(without_common_folder(names))
    places = [(number, member.offset, member.size, member.method) for number, member in members]
    return Listing(PackedNames.pack(names), labels, witness, np.array(places, dtype=np.int64).reshape(-1, 4))


def zip_members(path: str) -> list[Member]:
    with zipfile.ZipFile(path) as archive:
        members = [entry for entry in archive.infolist() if not entry.is_dir() and is_image_name(entry.filename)]
    for entry in members:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise ValueError(f"{entry.filename} is encrypted, or compressed by another method than deflate")
    return [
        Member(entry.filename, NO_LABEL, entry.header_offset, entry.compress_size, entry.compress_type)
        for entry in members
    ]


def tar_members(path: str) -> Iterator[Member]:
    """The images of a tar, those of tars within it too, with the labels of a WebDataset shard."""
    with tarfile.open(path, "r:") as archive:
        images: dict[str, tuple[int, int]] = {}
        labels: dict[str, int] = {}
        beside: set[str] = set()  # keys of samples that are more than images
        links: dict[str, str] = {}
        for entry in archive:
            # a tar keeps all entries it has passed: half a gigabyte for ImageNet
            archive.members = []  # type: ignore[attr-defined]
            if is_hidden(entry.name):
                continue
            if not entry.isreg():
                links |= link_of(entry)
            elif entry.name.endswith(".tar"):
                inner = archive.extractfile(entry)
                assert inner is not None
                yield from inner_members(inner, entry)
            elif is_image_name(entry.name):
                images[entry.name] = (entry.offset_data, entry.size)
            elif entry.name.endswith(".cls"):
                label = archive.extractfile(entry)
                assert label is not None
                labels[sample_key(entry.name)] = label_of_sample(label.read(20))
            else:
                beside.add(sample_key(entry.name))
        images = with_links(images, links)
        if labels or beside:
            images = one_of_each_sample(images, beside, bool(labels), path)
        for name, (offset, size) in images.items():
            yield Member(name, labels.get(sample_key(name), NO_LABEL), offset, size)


def one_of_each_sample(
    images: dict[str, tuple[int, int]], beside: set[str], is_shard: bool, path: str
) -> dict[str, tuple[int, int]]:
    """Of the files of a shard the image of each sample: masks and the like, `NAME.mask.png`, are none.

    Args:
        images: places by name.
        beside: keys of samples with other files. Where there are no labels, an image with dots in its name is the mask
            of another only if its key is among them, and the other is there.
        is_shard: there are labels.
        path: of the shard.
    """
    chosen: dict[str, str] = {}
    for name in images:
        if image_suffix([os.path.basename(name).partition(".")[2]]) is not None:
            chosen.setdefault(sample_key(name), name)
    kept = {
        name: place
        for name, place in images.items()
        if chosen.get(key := sample_key(name)) == name or (not is_shard and not (key in beside and key in chosen))
    }
    if len(kept) < len(images):
        logger.warning(
            "%s: %d files are not the image of their sample and are left out, the first is %s",
            *(path, len(images) - len(kept), next(name for name in images if name not in kept)),
        )
    return kept


def inner_members(inner: IO[bytes], outer: tarfile.TarInfo) -> Iterator[Member]:
    """The images of a tar that lies within another, whose name is their class."""
    images: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    with tarfile.open(fileobj=inner, mode="r:") as archive:
        for entry in archive:
            archive.members = []  # type: ignore[attr-defined]
            if not entry.isreg():
                links |= link_of(entry)
            elif is_image_name(entry.name):
                images[entry.name] = (outer.offset_data + entry.offset_data, entry.size)
    for name, (offset, size) in with_links(images, links).items():
        yield Member(os.path.join(outer.name.removesuffix(".tar"), name), NO_LABEL, offset, size)


def link_of(entry: tarfile.TarInfo) -> dict[str, str]:
    """The name of an image that is a link within a tar, and of what it leads to; of anything else nothing."""
    if not is_image_name(entry.name) or not (entry.islnk() or entry.issym()):
        return {}
    # a hard link names its target as the tar does, a symbolic one as seen from its own folder
    return {entry.name: entry.linkname if entry.islnk() else os.path.join(os.path.dirname(entry.name), entry.linkname)}


def with_links(images: dict[str, tuple[int, int]], links: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Places of images by name, those of links to them too; says how many links lead to none."""
    if not links:
        return images
    by_path = {os.path.normpath(name): place for name, place in images.items()}
    targets = {os.path.normpath(name): os.path.normpath(target) for name, target in links.items()}
    found = {}
    for name, target in links.items():
        path = os.path.normpath(target)
        for _ in range(MOST_LINKS):
            path = targets.get(path, path)
        found[name] = by_path.get(path)
    lost = [name for name, place in found.items() if place is None]
    if lost:
        logger.warning("%d links lead to no image of their tar and are left out, the first is %s", len(lost), lost[0])
    return images | {name: place for name, place in found.items() if place is not None}


def without_common_folder(names: list[str]) -> list[str]:
    """Names without the folder that all of them lie in, where there are folders in it: archives often hold one."""
    parts = [os.path.normpath(name).lstrip(os.sep).split(os.sep) for name in names]
    while (
        parts
        and len({part[0] for part in parts}) == 1
        and (min(map(len, parts)) > 2 or len({part[1] for part in parts if len(part) > 2}) > 1)
    ):
        parts = [part[1:] for part in parts]
    return [os.sep.join(part) for part in parts]


def sample_key(name: str) -> str:
    """What the files of one WebDataset sample have in common: the name up to the first dot after its folders."""
    folder, name = os.path.split(name)
    return os.path.join(folder, name.partition(".")[0])


def image_suffix(suffixes: Iterable[str]) -> str | None:
    """Which of the files of a WebDataset sample is its image, by what follows the key; None where there is none."""
    return next((suffix for suffix in suffixes if f".{suffix.lower()}" in image_suffixes()), None)


def label_of_sample(text: str | bytes) -> int:
    """What the `cls` file of a sample says; NO_LABEL, with a word, where that is no number."""
    try:
        return label_of_text(text)
    except ValueError:
        warn_once("some labels in shards (.cls) are no numbers; their images go without")
        return NO_LABEL


@cache
def warn_once(text: str) -> None:
    logger.warning(text)


def is_compressed_tar(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return re.match(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", file.read(6)) is not None
    except OSError:
        return False
