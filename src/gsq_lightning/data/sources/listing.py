"""The images of a source, in arrays that workers share; long listings are cached on disk."""

import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from stat import S_ISDIR

import numpy as np

from gsq_lightning.data.decoding import image_suffixes
from gsq_lightning.files import cache_folder, read_cached, write_cached
from gsq_lightning.names import PackedNames

logger = logging.getLogger(__name__)

CACHED_FROM = 10_000  # images; listing fewer takes no time worth a file
VERSION = 4  # of the cached files
WORDS = ("class_names", "left_out", "notes", "texts")
SETTLED_NS = 2_000_000_000  # what changed more recently may change again without a new time stamp


@dataclass(frozen=True)
class Witness:
    """Files or folders whose times and sizes show whether a listing is still valid.

    Attributes:
        paths: absolute.
        stamps: (N, 3) int64, of each one the time its content changed, in ns; the time anything of it did, a link to
            it or its mode, which no program can set back; and its size (0 for folders).
    """

    paths: PackedNames
    stamps: np.ndarray

    @classmethod
    def of(cls, paths: Iterable[str]) -> "Witness":
        packed = PackedNames.pack(paths)
        return cls(packed, np.array([stamp(path) for path in packed], dtype=np.int64).reshape(-1, 3))

    def holds(self) -> bool:
        return all(stamp(path) == tuple(expected) for path, expected in zip(self.paths, self.stamps, strict=True))

    def is_settled(self, now_ns: int) -> bool:
        return not len(self.stamps) or int(self.stamps[:, 0].max()) < now_ns - SETTLED_NS


@dataclass(frozen=True)
class Listing:
    """The images of a source, in order.

    Attributes:
        names: of the images, within their source.
        labels: (N,) int64, NO_LABEL where there is none.
        witness: files and folders; the listing is valid while these are unchanged.
        places: within archives: (N, 5) int64, number of the archive, first byte, bytes there, compression, bytes of
            the file; else (0, 5).
        class_names: in the order of the labels; None where labels are numbers of their own, or there are none.
        left_out: how many files of which suffix are no images.
        notes: further remarks on the images, for the log.
        texts: within archives: names of text files that may divide the images into splits.
    """

    names: PackedNames
    labels: np.ndarray
    witness: Witness
    places: np.ndarray
    class_names: list[str] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(
            buffer,
            names=self.names.encoded,
            name_ends=self.names.ends,
            labels=self.labels,
            paths=self.witness.paths.encoded,
            path_ends=self.witness.paths.ends,
            stamps=self.witness.stamps,
            places=self.places,
            words=np.frombuffer(json.dumps({name: getattr(self, name) for name in WORDS}).encode(), dtype=np.uint8),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Listing":
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            names = PackedNames(arrays["names"], arrays["name_ends"])
            witness = Witness(PackedNames(arrays["paths"], arrays["path_ends"]), arrays["stamps"])
            words = json.loads(arrays["words"].tobytes())
            return cls(names, arrays["labels"], witness, arrays["places"], **words)


def stamp(path: str) -> tuple[int, int, int]:
    """A row of `Witness.stamps`; -1 where there is nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return (-1, -1, -1)
    return (status.st_mtime_ns, status.st_ctime_ns, 0 if S_ISDIR(status.st_mode) else status.st_size)


def cached_listing(identity: str, make: Callable[[], Listing]) -> Listing:
    """A listing from the cache, if it is still valid; otherwise a new one, which is cached if it is long.

    Args:
        identity: differs between listings: kind and absolute place of the source.
        make: lists the source.
    """
    suffixes = sorted(image_suffixes())  # another Pillow may read more formats
    name = hashlib.sha256(os.fsencode(f"{VERSION} {suffixes} {identity}")).hexdigest()[:32]
    path = cache_folder("listings") / f"{name}.listing"
    content = read_cached(path, "listing")
    if content is not None:
        listing = Listing.from_bytes(content)
        if listing.witness.holds():
            return listing
        logger.info("the images changed since they were listed in %s; listing again", path)
    now_ns = time.time_ns()
    listing = make()
    if len(listing.names) >= CACHED_FROM and listing.witness.is_settled(now_ns):
        write_cached(path, listing.to_bytes(), f"listing of {len(listing.names)} images")
    return listing
