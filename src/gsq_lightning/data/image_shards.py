"""A split of images, cut into the shards that its tokens are written in: the units of work of a prediction."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from gsq_lightning.data.batch import Sample, UnreadableImage, batch_of
from gsq_lightning.data.copies import COPIES, copies_of
from gsq_lightning.data.loader import Loading, make_loader
from gsq_lightning.data.sampler import InOrder, SampleKey
from gsq_lightning.tokens.facts import Augmentation

if TYPE_CHECKING:
    from gsq_lightning.data.dataset import IndexedImages
    from gsq_lightning.data.stream import StreamedShards


class ShardBatch(NamedTuple):
    """Images of one shard, all copies of an image next to each other. No batch spans two shards.

    Attributes:
        image: (B, 3, H, W), uint8 pixels as loaded, float32 in [-1, 1] once on the device.
        label: (B,) int64, NO_LABEL where there is none.
        path: B names, within the data set.
        unreadable: images that belong here but could not be decoded.
        copy: (B,) int64, which copy of its image each is.
        shard: its number.
        ends_shard: whether this is the last batch of the shard.
    """

    image: Tensor
    label: Tensor
    path: list[str]
    unreadable: list[UnreadableImage]
    copy: Tensor
    shard: int
    ends_shard: bool


class Cut(NamedTuple):
    """How images become rows.

    Attributes:
        augmentation: which copies are made of each.
        size: side of the copies, in pixels.
    """

    augmentation: Augmentation
    size: int

    def batch(self, samples: Iterable[Sample | UnreadableImage], most: int, shard: int, ends: bool) -> ShardBatch:
        """Makes a batch of at most so many images."""
        copies = len(COPIES[self.augmentation])
        batch = batch_of(self._rows(samples), most * copies)
        return ShardBatch(*batch, torch.arange(len(batch.path)) % copies, shard, ends)

    def images_of(self, rows: int) -> int:
        """Images of a batch of so many rows; at least one."""
        return max(1, rows // len(COPIES[self.augmentation]))

    def _rows(self, samples: Iterable[Sample | UnreadableImage]) -> Iterator[Sample | UnreadableImage]:
        for sample in samples:
            if isinstance(sample, UnreadableImage):
                yield sample
                continue
            for number, pixels in enumerate(copies_of(sample.pixels, self.augmentation, self.size)):
                yield sample._replace(pixels=pixels, unreadable=() if number else sample.unreadable)


class ImageShards(ABC):
    """A split cut into shards, numbered from 0.

    Attributes:
        shards: how many.
        images: of the split; None where they are streamed.
        images_per_shard: in all shards but the last; None where they are streamed.
        class_names: in the order of the labels, or None.
        copies: names of the copies of an image.
        size: side of the images, in pixels.
    """

    shards: int
    images: int | None = None
    images_per_shard: int | None = None
    class_names: list[str] | None = None

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self.copies = COPIES[cut.augmentation]
        self.size = cut.size

    def images_in(self, shards: Sequence[int]) -> int | None:
        """Images of some shards; None where that is not known before they are read."""
        if self.images is None or self.images_per_shard is None:
            return None
        return sum(min(self.images_per_shard, self.images - number * self.images_per_shard) for number in shards)

    @property
    @abstractmethod
    def fingerprint(self) -> str | None:
        """Identifies images and preparation; None where the data has none. May ask for the times of all files."""

    @abstractmethod
    def loader(self, shards: Sequence[int], loading: Loading) -> DataLoader:
        """`ShardBatch`es of some shards; of none, a single batch without images or no batch."""


class IndexedShards(ImageShards, Dataset[ShardBatch]):
    """Shard k holds images k·N to (k + 1)·N of the order of the data set. Workers share the batches of a shard."""

    def __init__(self, images: "IndexedImages", cut: Cut, images_per_shard: int) -> None:
        super().__init__(cut)
        self.dataset = images
        self.images: int = len(images)
        self.images_per_shard: int = images_per_shard
        self.shards = -(-self.images // images_per_shard)

    @property
    def fingerprint(self) -> str | None:
        return getattr(self.dataset, "fingerprint", None)

    def loader(self, shards: Sequence[int], loading: Loading) -> DataLoader:
        step = self.cut.images_of(loading.batch_size)
        parts = []
        for number in shards:
            end = min((number + 1) * self.images_per_shard, self.images)
            starts = range(number * self.images_per_shard, end, step)
            parts += [ShardPart(number, start, min(start + step, end), end) for start in starts]
        # a batch of none, so that a device without a share takes part
        sampler = InOrder(parts or [ShardPart(-1, 0, 0, -1)])
        return make_loader(self, loading._replace(batch_size=1), sampler, collate_fn=only)

    def __getitem__(self, part: "ShardPart") -> ShardBatch:
        samples = (self._sample(item) for item in range(part.start, part.stop))
        return self.cut.batch(samples, part.stop - part.start, part.shard, part.stop == part.shard_end)

    def _sample(self, item: int) -> Sample | UnreadableImage:
        sample = self.dataset[SampleKey(0, item)]
        return sample._replace(path=self.dataset.short_name(item, sample)) if isinstance(sample, Sample) else sample


class StreamShards(ImageShards, IterableDataset[ShardBatch]):
    """Each streamed shard of images is one of tokens. A worker reads whole shards."""

    def __init__(self, images: "StreamedShards", cut: Cut) -> None:
        super().__init__(cut)
        self.dataset = images
        self.shards = len(images.urls)
        self._wanted: Sequence[int] = ()
        self._step = 1

    @property
    def fingerprint(self) -> str | None:
        return self.dataset.fingerprint

    def loader(self, shards: Sequence[int], loading: Loading) -> DataLoader:
        self._wanted, self._step = shards, self.cut.images_of(loading.batch_size)
        return make_loader(self, loading._replace(batch_size=1), collate_fn=only)

    def __iter__(self) -> Iterator[ShardBatch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for number in self._wanted[first::step]:
            yield from self._batches(number)

    def _batches(self, number: int) -> Iterator[ShardBatch]:
        waiting: list[Sample | UnreadableImage] = []
        for sample in self.dataset.samples_of(number):
            if len(waiting) == self._step:  # another one follows: it is not the last batch
                yield self.cut.batch(waiting, len(waiting), number, False)
                waiting = []
            waiting.append(sample)
        yield self.cut.batch(waiting, len(waiting), number, True)


class ShardPart(NamedTuple):
    """The images of one batch: `start` to `stop` of a shard that ends at `shard_end`, all in the data set's order."""

    shard: int
    start: int
    stop: int
    shard_end: int


def only(batches: list[ShardBatch]) -> ShardBatch:
    """The one batch that a data set gave, which needs no collating."""
    (batch,) = batches
    return batch
