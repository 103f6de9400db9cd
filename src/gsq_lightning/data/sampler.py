"""The order in which images are seen: the same for a seed, whatever the number of devices and workers."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler


class SampleKey(NamedTuple):
    """Which sample, and in which epoch: all that a dataset's random choices may depend on, besides its seed."""

    epoch: int
    item: int


class EpochSampler(DistributedSampler[SampleKey]):
    """This device's share of each epoch, as `SampleKey`s.

    Devices take turns: with R devices, device r gets positions r, r + R, r + 2R, … of the epoch's order, so that the
    k-th batches of all devices together are the k-th run of the order, whatever R. Nothing is ever repeated to make
    shares equal. (A DistributedSampler by type, so that Lightning leaves it in place.)

    Args:
        dataset: what is sampled; its length counts.
        num_replicas, rank: devices, and which one this is.
        shuffle: a new order each epoch, drawn from (seed, epoch).
        seed: of the order.
        multiple_of: an epoch is cut to a multiple of this many samples, over all devices.
    """

    def __init__(
        self,
        dataset: Dataset,
        num_replicas: int = 1,
        rank: int = 0,
        shuffle: bool = False,
        seed: int = 0,
        multiple_of: int = 1,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.epoch_size = len(dataset) // multiple_of * multiple_of  # type: ignore[arg-type]
        self._position: Callable[[], int] | None = None

    def follow(self, position: Callable[[], int]) -> None:
        """From now on the place in the data tells epoch and sample, and nobody else's count of epochs.

        Args:
            position: how many samples were used so far, over all devices and epochs.
        """
        self._position = position

    def __iter__(self) -> Iterator[SampleKey]:
        consumed = 0
        if self._position is not None:
            self.epoch, consumed = divmod(self._position(), self.epoch_size)
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        size = len(self.dataset)  # type: ignore[arg-type]
        order = torch.randperm(size, generator=generator) if self.shuffle else torch.arange(size)
        share = order[consumed : self.epoch_size][self.rank :: self.num_replicas]
        return (SampleKey(self.epoch, index) for index in share.tolist())

    def __len__(self) -> int:
        """Samples of a whole epoch on this device, those already consumed included."""
        return len(range(self.rank, self.epoch_size, self.num_replicas))


def sample_generator(seed: int, key: SampleKey) -> torch.Generator:
    """The random stream of one sample, the same wherever and whenever it is drawn."""
    state = np.random.SeedSequence((seed, key.epoch, key.item)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
