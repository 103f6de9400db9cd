from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from gsq_lightning import GSQTokenizer, TokenizerModule
from gsq_lightning.callbacks import ReconstructionGrid, Report
from gsq_lightning.callbacks.pictures import FULL_ERROR, HEADER, error_map, share_of_batch, side_by_side
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.discriminators import PatchDiscriminator
from gsq_lightning.errors import InputError
from gsq_lightning.metrics import ReconstructionMetrics
from gsq_lightning.reports import read_report, sha256_of
from gsq_lightning.runs import RunCheckpoint, RunLogger

Build = Callable[..., GSQTokenizer]


def trainer(folder: Path, **settings: Any) -> Trainer:
    return Trainer(
        **{
            "default_root_dir": folder,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": -1,
            "max_steps": 5,
            **settings,
        }
    )


def data(root: Path) -> ImageNetDataModule:
    return ImageNetDataModule(str(root), 16, global_batch_size=8, val_batch_size=4, num_workers=0)


def test_pictures_of_an_image_stand_beside_each_other() -> None:
    image, reconstruction = torch.full((2, 3, 1, 1), -1.0), torch.full((2, 3, 1, 1), 3.0)
    assert side_by_side(image, reconstruction, error_maps=False)[:, 0, 0, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert side_by_side(image, reconstruction, error_maps=True)[:, 0, 0, 0].tolist() == [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]


def test_an_error_map_goes_from_black_over_red_and_yellow_to_white() -> None:
    quarter = FULL_ERROR / 3
    image, reconstruction = torch.zeros(1, 3, 1, 5), torch.tensor([0, 0.5, 1, 2, 9]).mul(quarter).expand(1, 3, 1, 5)
    colors = error_map(image, reconstruction)[0, :, 0].T
    expected = [[0, 0, 0], [0.5, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    torch.testing.assert_close(colors, torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("images", "batches"), [(16, 3), (16, 16), (16, 1000), (5, 7), (16, 1)])
def test_pictures_are_spread_over_all_batches(images: int, batches: int) -> None:
    shares = [share_of_batch(images, batch, batches) for batch in range(batches)]
    assert sum(shares) == images
    assert max(shares) - min(shares) <= 1


def test_reconstructions_go_to_a_picture_and_to_tensorboard(
    small_tokenizer: Build, image_root: Path, tmp_path: Path
) -> None:
    module = TokenizerModule(
        small_tokenizer(), PatchDiscriminator(8, 1), metrics=ReconstructionMetrics(["psnr", "codebook"])
    )
    grid = ReconstructionGrid(num_images=4, columns=2)
    run = trainer(
        tmp_path,
        logger=RunLogger(str(tmp_path)),
        callbacks=[grid],
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    run.fit(module, data(image_root))
    assert grid.path is not None
    picture = Image.open(grid.path)
    # two images with reconstruction and error beside each other, two rows, gaps of 2; 16 pixels enlarged to 192
    assert picture.size == (6 * 192 + 7 * 2, HEADER + 2 * 192 + 3 * 2)
    assert np.asarray(picture)[:HEADER].min() < 64, "there are no words above the pictures"
    tops = [np.asarray(picture)[HEADER + 2 + 6 :: 12, left + 6 :: 12][:16, :16] for left in (2, 2 + 3 * 194)]
    batches = [batch.image for batch in run.val_dataloaders]
    assert batches[0][0].permute(1, 2, 0).numpy().tobytes() in [top.tobytes() for top in tops]

    assert run.log_dir is not None
    events = EventAccumulator(run.log_dir, size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    assert events.Tags()["images"] == ["quality/reconstructions"]
    assert events.Tags()["histograms"] == ["codebook/log10_uses"]
    tags = events.Tags()["scalars"]
    assert {tag.split("/")[0] for tag in tags} == {"loss", "gan", "codebook", "quality", "speed"}
    assert {"loss/reconstruction", "gan/loss_discriminator", "quality/psnr", "codebook/usage"} <= set(tags)
    assert {"speed/learning_rate_discriminator", "speed/ema_decay", "speed/epoch"} <= set(tags)
    assert [event.value for event in events.Scalars("speed/learning_rate_tokenizer")] == pytest.approx([1e-4] * 5)
    assert [event.value for event in events.Scalars("speed/ema_decay")] == pytest.approx(
        [(1 + n) / (10 + n) for n in range(5)]
    )
    assert all(event.value > 0 for event in events.Scalars("speed/images_per_second"))


class Wandb(WandbLogger):
    """Notes the pictures of a logger whose package need not be there."""

    experiment: Any = None
    name = version = None

    def __init__(self) -> None:
        self.pictures: list[tuple[str, tuple[int, int], int | None]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None, **_: Any) -> None:
        self.pictures += [(key, image.size, step) for image in images]

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    log_hyperparams = after_save_checkpoint = finalize = save = log_metrics  # type: ignore[assignment]


def test_reconstructions_go_to_weights_and_biases(small_tokenizer: Build, image_root: Path, tmp_path: Path) -> None:
    wandb = Wandb()
    run = trainer(
        tmp_path,
        logger=[RunLogger(str(tmp_path)), wandb],
        callbacks=[ReconstructionGrid(num_images=4)],
        enable_checkpointing=False,
    )
    run.fit(TokenizerModule(small_tokenizer(), metrics=ReconstructionMetrics(["psnr"])), data(image_root))
    size = (3 * 192 + 4 * 2, HEADER + 4 * 192 + 5 * 2)  # four rows of three pictures
    assert wandb.pictures == [("val/reconstructions", size, step) for step in (2, 4)]  # after each epoch of two steps


def test_images_of_several_sizes_have_mean_bits_and_pictures_of_one_size(
    small_tokenizer: Build, tmp_path: Path
) -> None:
    batches = [torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 24), torch.zeros(1, 3, 16, 16)]
    module = TokenizerModule(small_tokenizer(), metrics=ReconstructionMetrics(["psnr"]))
    grid, report = ReconstructionGrid(num_images=3, columns=1), Report()
    run = trainer(tmp_path, callbacks=[grid, report])
    run.validate(module, DataLoader(batches, batch_size=None), verbose=False)
    bits = module.tokenizer.bits_per_image(16, 16)
    assert module.metric_values["bits_per_image"] == pytest.approx((2 * bits + 1.5 * bits) / 3)
    assert module.metric_values["bits_per_pixel"] == bits / 256
    assert read_report(tmp_path / "metrics.json").image_size == "several"
    assert grid.path is not None
    assert Image.open(grid.path).size == (3 * 192 + 4 * 2, HEADER + 2 * 192 + 3 * 2)


@pytest.mark.parametrize(("replaced", "weights_only"), [(False, False), (True, False), (True, True)])
def test_a_checkpoint_that_is_replaced_while_it_is_validated_is_not_taken_for_another(
    small_tokenizer: Build, image_root: Path, tmp_path: Path, replaced: bool, weights_only: bool
) -> None:
    """A training that is still running writes last.ckpt again and again."""
    keep = ModelCheckpoint(tmp_path / "kept", save_last=True, save_top_k=0, save_weights_only=weights_only)
    trainer(tmp_path, callbacks=[keep]).fit(TokenizerModule(small_tokenizer()), data(image_root))
    checkpoint = tmp_path / "kept" / "last.ckpt"
    validated = sha256_of(checkpoint)

    class Replace(Callback):
        def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
            if replaced:
                other = checkpoint.with_name("other")
                other.write_bytes(b"a later step")
                other.replace(checkpoint)

    module = TokenizerModule(small_tokenizer(), metrics=ReconstructionMetrics(["psnr"]))
    run = trainer(tmp_path, callbacks=[Replace(), Report(), RunCheckpoint()])
    run.validate(module, data(image_root), ckpt_path=str(checkpoint), verbose=False)
    report = read_report(tmp_path / "metrics.json")
    assert report.checkpoint == str(checkpoint)
    assert report.checkpoint_sha256 == validated


def test_last_checkpoint_is_that_of_the_last_step(small_tokenizer: Build, image_root: Path, tmp_path: Path) -> None:
    module = TokenizerModule(small_tokenizer())
    keep = RunCheckpoint(every_n_train_steps=2, keep_all=True, dirpath=str(tmp_path))
    trainer(tmp_path, callbacks=[keep]).fit(module, data(image_root))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["last.ckpt", "step=2.ckpt", "step=4.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5


def test_checkpoints_are_not_all_kept_unless_asked_for(
    small_tokenizer: Build, image_root: Path, tmp_path: Path
) -> None:
    keep = RunCheckpoint(every_n_train_steps=2, dirpath=str(tmp_path))
    trainer(tmp_path, callbacks=[keep]).fit(TokenizerModule(small_tokenizer()), data(image_root))
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


def test_a_second_training_with_the_same_callback_keeps_its_checkpoint_too(
    small_tokenizer: Build, image_root: Path, tmp_path: Path
) -> None:
    keep = RunCheckpoint()
    for folder in ("first", "second"):
        trainer(tmp_path / folder, callbacks=[keep]).fit(TokenizerModule(small_tokenizer()), data(image_root))
        assert (tmp_path / folder / "checkpoints" / "last.ckpt").is_file()


def test_a_training_that_starts_anew_does_not_overwrite_the_checkpoint_of_another(
    small_tokenizer: Build, image_root: Path, tmp_path: Path
) -> None:
    """As with `ckpt_path="last"`, for which Lightning finds those of its own callback alone."""
    trainer(tmp_path, callbacks=[RunCheckpoint()]).fit(TokenizerModule(small_tokenizer()), data(image_root))
    path = tmp_path / "checkpoints" / "last.ckpt"
    written = path.read_bytes()
    with pytest.raises(InputError, match=r"last.ckpt is the checkpoint of another training"):
        trainer(tmp_path, callbacks=[RunCheckpoint()]).fit(
            TokenizerModule(small_tokenizer()), data(image_root), ckpt_path="last"
        )
    assert path.read_bytes() == written


def test_the_best_checkpoint_is_not_asked_of_a_callback_that_keeps_the_last(
    small_tokenizer: Build, image_root: Path, tmp_path: Path
) -> None:
    run = trainer(tmp_path, callbacks=[RunCheckpoint()])
    run.fit(TokenizerModule(small_tokenizer()), data(image_root))
    with pytest.raises(InputError, match="RunCheckpoint keeps the last checkpoint, not the best"):
        run.validate(datamodule=data(image_root))
