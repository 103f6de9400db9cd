"""Training over streamed shards through the Trainer: passes, counts, limits."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gsq_lightning import GSQTokenizer, TokenizerModule
from gsq_lightning.data import ImageNetDataModule
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
