"""WebDataset shards read from front to back: from object stores, pipes, and disks that are slow at finding places."""

import random
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from gsq_lightning.data.batch import NO_LABEL, Sample, UnreadableImage
from gsq_lightning.data.dataset import OnError, Transform, unreadable_line
from gsq_lightning.data.decoding import UNREADABLE, ImageDecoder
from gsq_lightning.data.sampler import SampleKey, sample_generator
from gsq_lightning.data.sources.archive import image_suffix, label_of_sample, warn_once
from gsq_lightning.data.sources.folder import is_hidden
from gsq_lightning.errors import InputError


class StreamedShards(IterableDataset[Sample | UnreadableImage]):
    """Images of tar shards through `webdataset`, each shard read by one loading process of one device.

    Training: shards are shuffled by (seed, epoch), dealt to devices and their loading processes, and images shuffled
    within a buffer. A device that runs out of its shards before the epoch ends goes on with a share of another round;
    readable images take the place of those that are not. Other than with sources of random access, the order depends
    on the number of devices and loading processes, and a run that is resumed in the middle of an epoch goes on with
    another order: it may see some images of that epoch twice and some not at all.

    Evaluation: each shard once, in order.

    Args:
        urls: names, URLs or `pipe:` commands of the shards, as `webdataset` opens them.
        transform: as of `SourceImages`.
        seed: of order, crops and flips.
        on_error: what an image or shard that cannot be read does: "raise" InputError with its name, or "skip".
        shuffle_buffer: images that each loading process holds to draw from in training, encoded; 0 for evaluation.
    """

    def __init__(
        self, urls: list[str], transform: Transform, seed: int = 0, on_error: OnError = "raise", shuffle_buffer: int = 0
    ) -> None:
        self.urls = urls
        self.transform = transform
        self.seed = seed
        self.on_error = on_error
        self.shuffle_buffer = shuffle_buffer
        self.rank, self.num_replicas = 0, 1
        self._batch_size = 1
        self._batches: int | None = None  # of an epoch, on this device
        self._passes = 0  # of this copy of the data set: loading processes that persist count their own
        self._first_epoch, self._batches_before = 0, 0
        self._decoder = ImageDecoder()

    def deal(self, num_replicas: int, rank: int) -> "StreamedShards":
        """Takes the share of one of several devices."""
        self.num_replicas, self.rank = num_replicas, rank
        return self

    def train(self, batch_size: int, batches: int, batches_before: int) -> "StreamedShards":
        """Makes epochs of exactly so many batches on this device, the first one after so many that are done."""
        self._batch_size, self._batches = batch_size, batches
        self._first_epoch, self._batches_before = divmod(batches_before, batches)
        return self

    def __iter__(self) -> Iterator[Sample | UnreadableImage]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        epoch, done = self._first_epoch + self._passes, self._batches_before if self._passes == 0 else 0
        self._passes += 1
        if self._batches is None:
            yield from self._samples(self._share(self.urls, number, workers), epoch)
            return
        batches = self._batches - done
        wanted = self._batch_size * (batches // workers + (number < batches % workers))
        yielded, cycle = 0, 0
        unreadable: list[UnreadableImage] = []  # told with the next one that is not, which takes their place
        while yielded < wanted:
            generator = random.Random(f"{self.seed} {epoch} {done} {cycle}")
            urls = self._share(generator.sample(self.urls, len(self.urls)), number, workers)
            if not urls:
                raise InputError(
                    f"{len(self.urls)} shards do not go round {self.num_replicas} device(s) with {workers} loading "
                    "process(es) each; lower num_workers or make more, smaller shards"
                )
            before = yielded
            for sample in self._samples(urls, epoch, random.Random(f"{generator.random()} {self.rank} {number}")):
                if isinstance(sample, UnreadableImage):
                    unreadable.append(sample)
                    continue
                yield sample._replace(unreadable=tuple(unreadable))
                unreadable = []
                yielded += 1
                if yielded == wanted:
                    return
            if yielded == before:
                raise InputError(f"none of the images in {len(urls)} shards can be read, the first of them {urls[0]}")
            cycle += 1

    def _share(self, urls: list[str], worker: int, workers: int) -> list[str]:
        return urls[self.rank :: self.num_replicas][worker::workers]

    def _samples(
        self, urls: list[str], epoch: int, generator: random.Random | None = None
    ) -> Iterator[Sample | UnreadableImage]:
        """Decoded samples of some shards; shuffled within the buffer where there is a generator."""
        import webdataset

        broken: list[UnreadableImage] = []
        handler = self._on_broken_shard(broken)
        # webdataset's tarfile_samples, but the case of names is kept
        opened = webdataset.tariterators.url_opener(({"url": url} for url in urls), handler=handler)
        files = webdataset.tariterators.tar_file_expander(opened, handler=handler, select_files=not_hidden)
        encoded: Iterable[dict[str, Any]] = webdataset.tariterators.group_by_keys(files, lcase=False, handler=handler)
        if generator is not None and self.shuffle_buffer > 0:
            initial = self.shuffle_buffer // 2
            encoded = webdataset.filters._shuffle(iter(encoded), self.shuffle_buffer, initial, generator)
        for sample in encoded:
            while broken:
                yield broken.pop()
            suffix = image_suffix(sample)
            if suffix is None:
                warn_once("samples of shards without a file such as NAME.jpg are passed over")
                continue
            name = f"{sample['__url__']}/{sample['__key__']}.{suffix}"
            try:
                yield Sample(
                    self._decode(sample[suffix], name, epoch), label_of_sample(sample.get("cls", str(NO_LABEL))), name
                )
            except UNREADABLE as error:
                if self.on_error == "raise":
                    raise InputError(unreadable_line(name, error)) from error
                yield UnreadableImage(name, str(error))
        yield from broken

    def _decode(self, content: bytes, name: str, epoch: int) -> Any:
        item = int.from_bytes(sha256(name.encode()).digest()[:7], "big")
        pixels = self._decoder.decode(content)
        pixels = self.transform(pixels, lambda: sample_generator(self.seed, SampleKey(epoch, item)))
        return pixels.clone() if self._decoder.owns(pixels) else pixels

    def _on_broken_shard(self, broken: list[UnreadableImage]) -> Callable[[Exception], bool]:
        named: set[str] = set()

        def handle(error: Exception) -> bool:
            reason = str(error.args[0]) if error.args else type(error).__name__
            # webdataset adds what it was reading to the error; one broken shard may raise several
            said = " ".join(map(str, error.args))
            url = next((url for url in self.urls if url in said), f"{self.urls[0]} or one that follows")
            if self.on_error == "raise":
                raise InputError(
                    f"the shard {url} cannot be read: {reason}. Repair it, or set on_error to skip to go on without "
                    "what it still holds"
                ) from error
            if url not in named:
                named.add(url)
                broken.append(UnreadableImage(url, reason))
            return True

        return handle


def not_hidden(name: str) -> bool:
    return not is_hidden(name)
