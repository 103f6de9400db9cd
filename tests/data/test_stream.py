"""Training over streamed shards through the Trainer: passes, counts, limits."""

import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gsq_lightning import GSQTokenizer, TokenizerModule
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.data.loader import Loading
from gsq_lightning.data.sampler import DataPosition
from gsq_lightning.data.stream import StreamedShards
from gsq_lightning.metrics import ReconstructionMetrics
from tests.conftest import write_images
from tests.data.test_data import Idle, quiet_trainer


@pytest.fixture
def pattern(tmp_path: Path) -> str:
    """Four shards of three images each."""
    (tmp_path / "shards").mkdir()
    paths = write_images(tmp_path / "images", 12)
    for shard in range(4):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as archive:
            for path in paths[3 * shard : 3 * shard + 3]:
                archive.add(path, path.name)
    return str(tmp_path / "shards" / "{0..3}.tar")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_limits_reloads_and_a_second_fit_count_streamed_images_right(
    pattern: str, tmp_path: Path, num_workers: int
) -> None:
    data = ImageNetDataModule(
        train=pattern, image_size=8, global_batch_size=2, num_workers=num_workers, source="webdataset", seed=1
    )
    module = Idle()
    trainer = quiet_trainer(
        8,
        tmp_path,
        limit_train_batches=4,
        reload_dataloaders_every_n_epochs=2,
        callbacks=[],
        enable_checkpointing=False,
    )
    trainer.fit(module, data)
    trainer.fit_loop.epoch_loop.max_steps = 10
    trainer.fit(module, data)
    assert [len(batch) for batch in module.seen] == [2] * 10
    epochs = [[name for batch in module.seen[start : start + 4] for name in batch] for start in (0, 4, 8)]
    assert [len(set(epoch)) for epoch in epochs] == [8, 8, 4]
    assert epochs[0] != epochs[1]
    state = data.state_dict()
    assert (state["epoch"], state["images_consumed_in_epoch"], state["images_consumed"]) == (2, 4, 20)


def test_streamed_shards_cannot_be_overfitted(pattern: str, tmp_path: Path) -> None:
    data = ImageNetDataModule(train=pattern, image_size=8, global_batch_size=2, num_workers=0, source="webdataset")
    with pytest.raises(ValueError, match="overfit_batches needs images that can be read in any order"):
        quiet_trainer(2, tmp_path / "checkpoints", overfit_batches=1).fit(Idle(), data)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streamed_validation_images_are_measured(
    pattern: str, tmp_path: Path, small_tokenizer: Callable[..., GSQTokenizer], num_workers: int
) -> None:
    """Each of them once, although their number is not known before."""
    tokenizer = small_tokenizer()
    values = []
    for source in ("auto", "webdataset"):
        data = ImageNetDataModule(
            val=pattern, image_size=8, val_batch_size=2, global_batch_size=2, num_workers=num_workers, source=source
        )
        module = TokenizerModule(tokenizer, metrics=ReconstructionMetrics(["psnr", "rfd_random"]))
        trainer = quiet_trainer(1, tmp_path, callbacks=[], enable_checkpointing=False)
        trainer.validate(module, data, verbose=False)
        values.append(module.metric_values)
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def noise(pixels: Tensor, stream: Callable[[], torch.Generator]) -> Tensor:
    """A transform that shows the random stream of an image."""
    return torch.randint(256, (3, 8, 8), generator=stream(), dtype=torch.uint8)


def streamed(pattern: str, **options: int) -> StreamedShards:
    return StreamedShards([pattern.replace("{0..3}", str(shard)) for shard in range(4)], noise, **options)  # type: ignore[arg-type]


def trained_on(pattern: str, **position: int) -> dict[str, Tensor]:
    """What an epoch makes of each image, in the order of the images."""
    loader = streamed(pattern, shuffle_buffer=12).train_loader(DataPosition(**position), 2, Loading(batch_size=2))  # type: ignore[arg-type]
    pairs = (pair for batch in loader for pair in zip(batch.path, batch.image, strict=True))
    return {path.rpartition("/")[2]: image for path, image in pairs}


def test_the_order_depends_on_seed_and_epoch(pattern: str) -> None:
    orders = {tuple(trained_on(pattern, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    first = list(trained_on(pattern, seed=2, epoch=1))
    assert list(trained_on(pattern, seed=2, epoch=1)) == first
    numbers = [int(name[6:9]) // 3 for name in first]  # of shards, three images each
    assert sum(before != after for before, after in pairwise(numbers)) > 3, "the images of a shard follow each other"


def test_a_pass_that_is_resumed_goes_on_in_another_order(pattern: str) -> None:
    """In the same one it would see the first images again, and never the last."""
    whole, rest = list(trained_on(pattern)), list(trained_on(pattern, consumed=6))
    assert len(rest) == 6
    assert rest not in (whole[:6], whole[6:])


def test_another_round_has_another_order(pattern: str) -> None:
    loader = streamed(pattern, train_images=24).train_loader(DataPosition(), 2, Loading(batch_size=2))
    seen = [path for batch in loader for path in batch.path]
    assert sorted(seen[:12]) == sorted(seen[12:])
    assert seen[:12] != seen[12:]


def test_each_image_has_a_random_stream_of_its_own_in_each_epoch(pattern: str) -> None:
    """Crops that all images of an epoch shared would hardly augment."""
    made = [trained_on(pattern, seed=seed, epoch=epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    drawn = torch.stack([image for one in made for image in one.values()])
    assert len(drawn.flatten(1).unique(dim=0)) == 3 * 12
    again = trained_on(pattern, seed=1, epoch=0)
    assert all(torch.equal(image, made[0][name]) for name, image in again.items())


def test_a_pass_is_cut_to_whole_steps(pattern: str) -> None:
    """Of 12 images one step of four accumulated batches of two, not six batches."""
    assert len(list(streamed(pattern).train_loader(DataPosition(), 8, Loading(batch_size=2)))) == 4
