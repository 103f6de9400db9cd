"""WebDataset shards read sequentially: from object stores, pipes, and disks with slow random access."""

import os
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from gsq_lightning.data.batch import Sample, UnreadableImage
from gsq_lightning.data.dataset import ImageDataset, OnError, Transform, unreadable_line
from gsq_lightning.data.decoding import decode_image
from gsq_lightning.data.image_shards import Cut, ImageShards, StreamShards
from gsq_lightning.data.loader import Loading, make_loader
from gsq_lightning.data.sampler import DataPosition, SampleKey
from gsq_lightning.data.sources.archive import ArchiveSource
from gsq_lightning.data.sources.classes import unnamed_label
from gsq_lightning.data.sources.locate import is_remote
from gsq_lightning.data.sources.shards import BrokenShard, ShardImage, read_shard
from gsq_lightning.errors import InputError, how_many

Image = TypeVar("Image")


class StreamedShards(ImageDataset, IterableDataset[Sample | UnreadableImage]):
    """Images of tar shards through `webdataset`, each shard read by one worker of one device.

    Training: shards are shuffled by (seed, epoch), dealt to devices and their workers, and images shuffled within a
    buffer. A device that runs out of its shards before the epoch ends continues with a share of another round; readable
    images take the place of those that are not. Other than with sources of random access, the order depends on the
    number of devices and workers, and a run that is resumed in the middle of an epoch continues in another order: it
    may see some images of that epoch twice and some not at all.

    Evaluation: each shard once, in order.

    Args:
        urls: names, URLs or `pipe:` commands of the shards, as `webdataset` opens them.
        transform: as of `SourceImages`.
        on_error: what an image or shard that cannot be read does: "raise" InputError with its name, or "skip".
        shuffle_buffer: images that each worker holds to draw from in training, encoded; 0 for evaluation.
        train_images: how many images the shards hold; local ones are counted where it is None.
        class_names: names of the classes, in the order of the labels; an image of another one is an InputError.
    """

    has_random_access = False

    def __init__(
        self,
        urls: list[str],
        transform: Transform,
        on_error: OnError = "raise",
        shuffle_buffer: int = 0,
        train_images: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.urls = urls
        self.transform = transform
        self.on_error = on_error
        self.shuffle_buffer = shuffle_buffer
        self.train_images = train_images
        self.class_names = class_names
        self._loading = Loading()
        self._position: DataPosition | None = None  # in training
        self._batches = 0  # of a whole epoch of training, on this device

    def count(self) -> int:
        if self.train_images is None:
            if any(is_remote(url) for url in self.urls):
                raise InputError(
                    "how many images the remote training shards hold is not known; set data.train_images, "
                    "1281167 for ImageNet"
                )
            self.train_images = len(ArchiveSource([Path(url) for url in self.urls]))
        return self.train_images

    def __str__(self) -> str:
        return how_many(len(self.urls), "shard")

    def __len__(self) -> int:
        """Images of a full training epoch on this device."""
        if self._position is None:
            raise TypeError("how many images the shards hold is not known before they are read")
        return self._batches * self._loading.batch_size

    def train_loader(self, position: DataPosition, step_images: int, loading: Loading) -> DataLoader:
        self._position, self._loading = position, loading
        self._batches = self.count() // step_images * step_images // (loading.batch_size * loading.world_size)
        # Lightning and torch warn of workers that all yield everything; these take a share each
        warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__` defined")
        # workers start with each pass, as they take the position along
        return make_loader(self, loading, persistent=False)

    def val_loader(self, loading: Loading) -> DataLoader:
        self._loading = loading
        return make_loader(self, loading)

    def in_shards(self, cut: Cut, images_per_shard: int) -> ImageShards:
        return StreamShards(self, cut)

    def samples_of(self, shard: int) -> Iterator[Sample | UnreadableImage]:
        """The images of one shard in its order, under short names: SHARD/IMAGE."""
        url = self.urls[shard]
        before = url[: url.rstrip("/").rfind("/") + 1]
        for sample in self._samples([url], SampleKey(0, 0)):
            yield sample._replace(path=sample.path.removeprefix(before)) if isinstance(sample, Sample) else sample

    @cached_property
    def fingerprint(self) -> str | None:
        """Identifies these images by the names of the shards, size and time of local ones, and the transform.

        None where the transform does not say what it does.
        """
        if not is_dataclass(self.transform):
            return None
        # a tar that is written anew often keeps its size, as tars are padded
        states = [os.stat(url) for url in self.urls if not is_remote(url) and os.path.isfile(url)]
        stamps = [(state.st_size, state.st_mtime_ns) for state in states]
        return sha256(f"{self.urls} {stamps} {self.transform!r}".encode()).hexdigest()

    def __iter__(self) -> Iterator[Sample | UnreadableImage]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        if self._position is None:
            yield from self._samples(self._share(self.urls, number, workers), SampleKey(0, 0))
            return
        self._position.begin_pass()
        seed, epoch, consumed = self._position.seed, self._position.epoch, self._position.consumed
        batches = self._batches - consumed // (self._loading.batch_size * self._loading.world_size)
        wanted = self._loading.batch_size * (batches // workers + (number < batches % workers))
        yielded, cycle = 0, 0
        unreadable: list[UnreadableImage] = []  # counted with the next one that is not, which takes their place
        while yielded < wanted:
            generator = random.Random(f"{seed} {epoch} {consumed} {cycle}")
            urls = self._share(generator.sample(self.urls, len(self.urls)), number, workers)
            if not urls:
                shards = how_many(len(self.urls), "shard does", "shards do")
                raise InputError(
                    f"{shards} not go round {self._loading.world_size} device(s) with {workers} worker(s) each; "
                    "lower num_workers or make more, smaller shards"
                )
            before = yielded
            shuffle = random.Random(f"{generator.random()} {self._loading.rank} {number}")
            for sample in self._samples(urls, SampleKey(epoch, 0, seed), shuffle):
                if isinstance(sample, UnreadableImage):
                    unreadable.append(sample)
                    continue
                yield sample._replace(unreadable=tuple(unreadable))
                unreadable = []
                yielded += 1
                if yielded == wanted:
                    return
            if yielded == before:
                raise InputError(
                    f"none of the images in {how_many(len(urls), 'shard')} can be read, the first of them {urls[0]}"
                )
            cycle += 1

    def _share(self, urls: list[str], worker: int, workers: int) -> list[str]:
        return urls[self._loading.rank :: self._loading.world_size][worker::workers]

    def _samples(
        self, urls: list[str], key: SampleKey, generator: random.Random | None = None
    ) -> Iterator[Sample | UnreadableImage]:
        """Decoded samples of some shards; shuffled within the buffer where there is a generator.

        Args:
            urls: the shards.
            key: epoch and seed of all of them.
            generator: of the order of samples.
        """
        encoded = self._encoded(urls)
        if generator is not None:
            encoded = shuffled(encoded, self.shuffle_buffer, generator)
        for image in encoded:
            if isinstance(image, UnreadableImage):
                yield image
                continue
            if self.class_names is not None and image.label >= len(self.class_names):
                raise InputError(unnamed_label(image.name, image.label, len(self.class_names)))
            try:
                yield Sample(self._decode(image.content, image.name, key), image.label, image.name)
            except ValueError as error:
                if self.on_error == "raise":
                    raise InputError(unreadable_line(image.name, error)) from error
                yield UnreadableImage(image.name, str(error))

    def _encoded(self, urls: list[str]) -> Iterator[ShardImage | UnreadableImage]:
        """The images of some shards, and the shards that are broken."""
        for url in urls:
            try:
                yield from read_shard(url)
            except BrokenShard as error:
                if self.on_error == "raise":
                    raise InputError(
                        f"the shard {url} cannot be read: {error}. Repair it, or set on_error to skip to go on without "
                        "what it still holds"
                    ) from error
                yield UnreadableImage(url, str(error))

    def _decode(self, content: bytes, name: str, key: SampleKey) -> Any:
        item = int.from_bytes(sha256(os.fsencode(name)).digest()[:7], "big")
        return self.transform(decode_image(content), key._replace(item=item).generator)


def shuffled(images: Iterable[Image], size: int, generator: random.Random) -> Iterator[Image]:
    """Shuffles within a buffer of `size` images; it is half as large at first, so that the first image comes soon."""
    waiting: list[Image] = []
    drawn = 0
    for image in images:
        waiting.append(image)
        if len(waiting) > min(size, size // 2 + drawn):
            place = generator.randrange(len(waiting))
            waiting[place], waiting[-1] = waiting[-1], waiting[place]
            yield waiting.pop()
            drawn += 1
    generator.shuffle(waiting)
    yield from waiting
