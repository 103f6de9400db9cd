"""WebDataset shards: which files of a tar are one sample, which of them is its image, and shards read as streams."""

import logging
import os
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import NamedTuple

from gsq_lightning.data.batch import NO_LABEL
from gsq_lightning.data.sources.names import clean_name, is_hidden, is_image_name
from gsq_lightning.data.sources.text_list import label_of_text
from gsq_lightning.errors import InputError

logger = logging.getLogger(__name__)

LARGEST_LABEL = 20  # digits of int64


class ShardImage(NamedTuple):
    """An image of a shard, encoded.

    Attributes:
        name: the shard and the image's name within it.
        content: the image file.
        label: number of its class, or NO_LABEL.
    """

    name: str
    content: bytes
    label: int


class BrokenShard(ValueError):
    """A shard that ends too early, or is none."""


def sample_key(name: str) -> str:
    """The key of a sample, which its files share: the name up to the first dot after its folders."""
    folder, name = os.path.split(name)
    return os.path.join(folder, name.partition(".")[0])


def images_of_sample(images: list[str], is_alone: bool) -> list[str]:
    """Which of the images with one key are used.

    Args:
        images: their names, in the order of the shard.
        is_alone: nothing but images has this key. Then the names have dots by chance, `holiday.2020.png`, and all are
            images. Beside a label or a text they are a sample, with one image: the first that is `KEY.suffix`, for
            `KEY.mask.png` and the like are none.
    """
    plain = [name for name in images if name.count(".", len(sample_key(name))) == 1]
    return images if is_alone or not plain else plain[:1]


def label_of_sample(text: str | bytes) -> int:
    """The label in the `cls` file of a sample; NO_LABEL, with a warning, if it is no number."""
    try:
        return label_of_text(text)
    except ValueError:
        warn_once("some labels in shards (.cls) are no numbers; their images go without")
        return NO_LABEL


@cache
def warn_once(text: str) -> None:
    logger.warning(text)


def read_shard(url: str) -> Iterator[ShardImage]:
    """The images of a shard in its order, as `ArchiveSource` has them, but for classes that are only folders.

    Args:
        url: name, URL or `pipe:` command, as `webdataset` opens them.

    Raises:
        BrokenShard: where it ends too early, or is no tar.
        InputError: where the system cannot read it, or it can only be read at random: it holds tars, or keeps the
            files of a sample apart.
    """
    from webdataset.gopen import gopen

    try:
        with gopen(url) as stream:
            with tarfile.open(fileobj=stream, mode="r|*") as archive:
                yield from _images_of(archive, url)
            while stream.read(2**16):  # what pads the tar: a command that is cut off there would fail
                pass
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise BrokenShard(str(error)) from error
    except OSError as error:
        if error.errno is None:  # of webdataset: a command that failed
            raise BrokenShard(str(error)) from error
        raise InputError(f"the shard {url} was not read: {error.strerror}") from error


def _images_of(archive: tarfile.TarFile, url: str) -> Iterator[ShardImage]:
    seen: defaultdict[str, set[str]] = defaultdict(set)  # names of images by key
    others: set[str] = set()  # keys of samples that are more than images
    for key, entries in groupby(_files(archive, url), key=lambda entry: sample_key(entry.name)):
        images: dict[str, bytes] = {}
        label, before = NO_LABEL, key in seen
        for entry in entries:
            is_image = is_image_name(entry.name)
            if not is_image:
                others.add(key)
            if is_image or entry.name.endswith(".cls"):
                file = archive.extractfile(entry)
                assert file is not None
                content = file.read() if is_image else file.read(LARGEST_LABEL)
                if len(content) < min(entry.size, LARGEST_LABEL):
                    raise EOFError("unexpected end of data")
                if is_image:
                    images[entry.name] = content
                else:
                    label = label_of_sample(content)
        if before and ((key in others and (images or seen[key])) or seen[key] & images.keys()):
            raise InputError(
                f"the shard {url} keeps the files of the sample {key} apart, so that it cannot be read as a stream; "
                "sort it by name, or read it in any order (data.source archive)"
            )
        if images or key in others:
            seen[key] |= images.keys()
        chosen = images_of_sample(list(images), key not in others)
        if len(chosen) < len(images):
            warn_once("some files of shards are not the image of their sample and are left out")
        if chosen and label == NO_LABEL and key not in others and os.path.dirname(key):
            warn_once("streamed shards hold images in folders, which are not numbered as classes: they have no label")
        for name in chosen:
            yield ShardImage(f"{url}/{name}", images[name], label)


def _files(archive: tarfile.TarFile, url: str) -> Iterator[tarfile.TarInfo]:
    for entry in archive:
        archive.members = []  # type: ignore[attr-defined]  # a tar keeps all entries it has passed
        entry.name = clean_name(entry.name)
        if not entry.isreg() or is_hidden(entry.name):
            continue
        if entry.name.endswith(".tar"):
            raise InputError(f"{url} holds tars, which cannot be read as a stream; use data.source archive")
        yield entry
