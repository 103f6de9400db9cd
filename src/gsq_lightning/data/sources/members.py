"""Listing of zip and tar files: position and class label of each image."""

import os
import re
import struct
import tarfile
import zipfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from gsq_lightning.data.batch import NO_LABEL
from gsq_lightning.data.sources.classes import ANNOTATED, classes_of_annotations, read_annotations
from gsq_lightning.data.sources.listing import Listing, Witness
from gsq_lightning.data.sources.names import clean_name, is_hidden, is_image_name, left_out_in_words, suffix_left_out
from gsq_lightning.data.sources.shards import LARGEST_LABEL, images_of_sample, label_of_sample, sample_key
from gsq_lightning.data.sources.splits import is_dividing_text
from gsq_lightning.errors import InputError, how_many
from gsq_lightning.names import PackedNames

ZIP_LOCAL_HEADER = struct.Struct("<4s22xHH")  # PKWARE APPNOTE 4.3.7: signature, …, lengths of name and extra field
LARGEST_ANNOTATIONS = 2**26  # bytes of a text with the classes of images


@dataclass
class Members:
    """The content of one archive.

    Attributes:
        images: by name: first byte (zip: of the local header), bytes as stored, compression, bytes unpacked.
        labels: of WebDataset samples, by their key.
        others: keys of samples that are more than images.
        annotations: classes of images, by name, from a `val_annotations.txt`.
        left_out: how many files of which suffix are no images.
        links: how many images are links.
        texts: names of text files that may divide the images into splits.
    """

    images: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    annotations: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    links: int = 0
    texts: list[str] = field(default_factory=list)

    def add_other(self, name: str) -> None:
        """A file that is no image."""
        self.others.add(sample_key(name))
        suffix = suffix_left_out(name)
        if suffix is not None:
            self.left_out[suffix] += 1
        if is_dividing_text(os.path.basename(name)):
            self.texts.append(name)


def list_archives(paths: list[str]) -> Listing:
    """All images of some archives, sorted by name within each. Raises InputError for what is no archive."""
    witness = Witness.of(os.path.abspath(path) for path in paths)
    found = [members_of(path) for path in paths]
    names: list[str] = []
    labels: list[int] = []
    places: list[tuple[int, ...]] = []
    annotations: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    dropped: list[str] = []
    for number, members in enumerate(found):
        images = images_of_samples(members)
        dropped += members.images.keys() - set(images)
        names += images
        labels += [members.labels.get(sample_key(name), NO_LABEL) for name in images]
        places += [(number, *members.images[name]) for name in images]
        annotations |= members.annotations
        left_out += members.left_out
    notes = [left_out_in_words(left_out)] if left_out else []
    if dropped:
        notes.append(
            f"{how_many(len(dropped), 'file is', 'files are')} left out, not the image of a sample, "
            f"such as {min(dropped)}"
        )
    links = sum(members.links for members in found)
    if links:
        notes.append(f"{how_many(links, 'link within tars is', 'links within tars are')} left out")
    classes = classes_of_annotations(names, annotations)
    return Listing(
        PackedNames.pack(names),
        np.array(labels, dtype=np.int64) if classes.names is None else classes.labels,
        witness,
        np.array(places, dtype=np.int64).reshape(-1, 5),
        classes.names,
        dict(left_out),
        notes,
        [text for members in found for text in texts_alone(members)],
    )


def texts_alone(members: Members) -> list[str]:
    """Text files but for those of samples."""
    if not members.texts:
        return []
    keys = {sample_key(name) for name in members.images}
    return [text for text in members.texts if sample_key(text) not in keys]


def images_of_samples(members: Members) -> list[str]:
    """Names of the images to be used, sorted."""
    samples: defaultdict[str, list[str]] = defaultdict(list)
    for name in members.images:
        samples[sample_key(name)].append(name)
    return sorted(name for key, names in samples.items() for name in images_of_sample(names, key not in members.others))


def members_of(path: str) -> Members:
    """Raises InputError for what is no zip, nor an uncompressed tar."""
    try:
        return zip_members(path) if path.lower().endswith(".zip") else tar_members(path)
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path} cannot be opened: {error.strerror}") from error
        hint = "; unpack it, or store it uncompressed" if is_compressed_tar(path) else ""
        raise InputError(f"{path} cannot be read as a zip or an uncompressed tar: {error}{hint}") from error


def zip_members(path: str) -> Members:
    members = Members()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = clean_name(entry.filename)
            if entry.is_dir() or is_hidden(name):
                continue
            if not is_image_name(name):
                members.add_other(name)
                if os.path.basename(name) == ANNOTATED and entry.file_size < LARGEST_ANNOTATIONS:
                    text = archive.read(entry).decode("utf-8", "replace")
                    members.annotations |= read_annotations(text, os.path.dirname(name))
                continue
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
                raise ValueError(f"{name} is encrypted, or compressed by another method than deflate")
            members.images[name] = (entry.header_offset, entry.compress_size, entry.compress_type, entry.file_size)
    members.others.clear()  # zips are no shards
    return members


def tar_members(path: str) -> Members:
    """Those of tars within the tar too, in a folder of their name."""
    members = Members()
    with tarfile.open(path, "r:") as archive:
        add_tar(members, archive)
    return members


def add_tar(members: Members, archive: tarfile.TarFile, folder: str = "", start: int = 0) -> None:
    """Adds what a tar holds, and the tars within it.

    Args:
        members: to be added to.
        archive: of which.
        folder: before the names; of a tar that lies within another, its own name, which is a class.
        start: byte of the outermost tar at which this one begins.
    """
    for entry in archive:
        # a tar keeps all entries it has passed: half a gigabyte for ImageNet
        archive.members = []  # type: ignore[attr-defined]
        name = os.path.join(folder, clean_name(entry.name))
        if is_hidden(name) or entry.isdir():
            continue
        if not entry.isreg():
            members.links += is_image_name(name)
        elif is_image_name(name):
            members.images[name] = (start + entry.offset_data, entry.size, zipfile.ZIP_STORED, entry.size)
        elif name.endswith(".tar"):
            with tarfile.open(fileobj=contents(archive, entry), mode="r:") as inner:
                add_tar(members, inner, name.removesuffix(".tar"), start + entry.offset_data)
        else:
            members.add_other(name)
            if name.endswith(".cls"):
                members.labels[sample_key(name)] = label_of_sample(contents(archive, entry).read(LARGEST_LABEL))
            elif os.path.basename(name) == ANNOTATED:
                text = contents(archive, entry).read(LARGEST_ANNOTATIONS).decode("utf-8", "replace")
                members.annotations |= read_annotations(text, os.path.dirname(name))


def contents(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(entry)
    assert file is not None  # it is a regular file
    return file


def is_compressed_tar(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return re.match(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", file.read(6)) is not None
    except OSError:
        return False
