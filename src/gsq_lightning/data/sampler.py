"""The order of images: depends on the seed, not on the number of devices and workers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DistributedSampler


class SampleKey(NamedTuple):
    """Which sample, in which epoch, under which seed: all that a dataset's random choices may depend on."""

    epoch: int
    item: int
    seed: int = 0

    def generator(self) -> torch.Generator:
        """The random stream of this sample, the same wherever and whenever it is drawn."""
        return generator_of(self.seed, self.epoch, self.item)


def generator_of(seed: int, *path: int) -> torch.Generator:
    """A random generator for each seed and path of numbers, independent of all others."""
    state = np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@dataclass
class DataPosition:
    """The position of training in the data, in images over all devices.

    Attributes:
        seed: of the order of images.
        epoch: passes over the data before this one.
        consumed: images of this pass that were trained on.
        total: images that were trained on in all passes.
        begun: training used images since this pass was begun or resumed.
    """

    seed: int = 0
    epoch: int = 0
    consumed: int = 0
    total: int = 0
    begun: bool = False

    def begin_pass(self) -> None:
        """Moves to the next epoch, unless nothing was trained on yet since the last call, or since resuming."""
        if self.begun:
            self.epoch, self.consumed, self.begun = self.epoch + 1, 0, False

    def advance(self, images: int, pass_images: int) -> None:
        """Counts images that training uses; a pass of which all `pass_images` are used is over."""
        self.consumed += images
        self.total += images
        self.begun = True
        if self.consumed >= pass_images:
            self.begin_pass()


class EpochSampler(DistributedSampler[SampleKey]):
    """This device's share of a pass over the data, as `SampleKey`s.

    Devices take turns: with R devices, device r gets positions r, r + R, r + 2R, … of the order, so that the k-th
    batches of all devices together are the k-th run of the order, whatever R. Nothing is repeated to make shares equal.
    (A DistributedSampler by type, so that Lightning leaves it in place.)

    Args:
        size: images to draw from.
        rank, world_size: which device this is, and of how many.
        position: of training: each pass has an order drawn from its seed and epoch, and begins after what it has
            consumed. None: in order, as evaluation does.
        multiple_of: what is left of a pass is cut to a multiple of this many images, over all devices.
    """

    def __init__(
        self, size: int, rank: int = 0, world_size: int = 1, position: DataPosition | None = None, multiple_of: int = 1
    ) -> None:
        super().__init__(range(size), num_replicas=world_size, rank=rank, shuffle=position is not None)  # type: ignore[arg-type]
        self.size = size
        self.position = position
        self.multiple_of = multiple_of

    def __iter__(self) -> Iterator[SampleKey]:
        if self.position is None:
            return (SampleKey(0, item) for item in range(self.rank, self.size, self.num_replicas))
        self.position.begin_pass()
        seed, epoch, consumed = self.position.seed, self.position.epoch, self.position.consumed
        order = torch.randperm(self.size, generator=generator_of(seed, epoch))[consumed:]
        share = order[: len(order) // self.multiple_of * self.multiple_of][self.rank :: self.num_replicas]
        return (SampleKey(epoch, item, seed) for item in share.tolist())

    def __len__(self) -> int:
        """Samples of a full epoch on this device, including those already consumed."""
        return len(range(self.rank, self.size // self.multiple_of * self.multiple_of, self.num_replicas))


class InOrder(DistributedSampler[Any]):
    """Given keys in their order. (A DistributedSampler by type, so that Lightning leaves it in place.)"""

    def __init__(self, keys: Sequence[Any]) -> None:
        super().__init__(keys, num_replicas=1, rank=0, shuffle=False)  # type: ignore[arg-type]
        self.keys = keys

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)
