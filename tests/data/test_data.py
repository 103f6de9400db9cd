"""Order, crops, labels, unreadable images and resuming of the data modules."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torchvision.transforms import v2

from gsq_lightning import InputError
from gsq_lightning.data import ImageBatch, ImageDataModule, ImageNetDataModule, PhotographsDataModule
from gsq_lightning.data.batch import per_device_batch_size
from gsq_lightning.data.dataset import SourceImages
from gsq_lightning.data.sampler import DataPosition, EpochSampler, SampleKey
from gsq_lightning.data.sources import FolderSource
from gsq_lightning.data.transforms import ResizeAndCrop
from gsq_lightning.pixels import image_to_pixels, pixels_to_image
from tests.conftest import write_images


def keys(sampler: EpochSampler) -> list[int]:
    return [key.item for key in sampler]


def order(seed: int, epoch: int, size: int = 50) -> list[int]:
    return keys(EpochSampler(size, position=DataPosition(seed, epoch)))


@pytest.mark.parametrize("world", [1, 2, 3, 5, 12])
def test_unpadded_shards_cover_everything_exactly_once(world: int) -> None:
    shards = [keys(EpochSampler(10, rank, world)) for rank in range(world)]
    assert sorted(itertools.chain(*shards)) == list(range(10))
    assert [len(shard) for shard in shards] == [len(range(rank, 10, world)) for rank in range(world)]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_global_batches_are_the_same_for_any_number_of_devices(world: int) -> None:
    samplers = [EpochSampler(22, rank, world, DataPosition(seed=5), multiple_of=8) for rank in range(world)]
    share = 8 // world
    batches = [
        sorted(itertools.chain(*(keys(sampler)[start : start + share] for sampler in samplers)))
        for start in range(0, len(samplers[0]), share)
    ]
    single = keys(EpochSampler(22, position=DataPosition(seed=5), multiple_of=8))
    assert batches == [sorted(single[:8]), sorted(single[8:16])]


def test_order_changes_with_epoch_and_seed_and_repeats_with_both() -> None:
    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == list(range(50))
    orders = {tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16  # (seed 0, epoch 1) is not (seed 1, epoch 0) either
    # the crops of images come from the same two
    assert {(key.seed, key.epoch) for key in EpochSampler(50, position=DataPosition(3, 2))} == {(3, 2)}


def test_sampler_resumes_from_any_place() -> None:
    assert keys(EpochSampler(10, position=DataPosition(1, epoch=1, consumed=6), multiple_of=2)) == order(1, 1, 10)[6:]
    resumed = EpochSampler(10, position=DataPosition(1, epoch=1, consumed=6), multiple_of=2)
    assert len(resumed) == 10  # of the whole pass, as Lightning counts
    resumed.set_epoch(7)  # somebody who counts otherwise
    assert keys(resumed) == order(1, 1, 10)[6:]
    # what is left is cut to whole batches again: ranks with one more would wait for the others
    cut = EpochSampler(10, position=DataPosition(1, epoch=1, consumed=3), multiple_of=4)
    assert keys(cut) == order(1, 1, 10)[3:7]


def test_a_pass_is_the_same_again_until_something_was_trained_on() -> None:
    position = DataPosition(seed=1)
    sampler = EpochSampler(10, position=position)
    assert keys(sampler) == keys(sampler) == order(1, 0, 10)
    position.advance(4, pass_images=10)  # and then the rest of the pass is given up
    assert keys(sampler) == order(1, 1, 10)
    for _ in range(5):
        position.advance(2, pass_images=10)
    assert (position.epoch, position.consumed, position.total) == (2, 0, 14)
    assert keys(sampler) == order(1, 2, 10)


def test_random_stream_depends_on_seed_epoch_and_index_alone() -> None:
    def draw(seed: int, epoch: int, index: int) -> int:
        return int(torch.randint(2**31, (), generator=SampleKey(epoch, index, seed).generator()))

    draws = {draw(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(3)}
    assert len(draws) == 27
    assert draw(2, 1, 0) == draw(2, 1, 0)


@pytest.mark.parametrize(("world", "accumulate", "expected"), [(1, 1, 12), (4, 1, 3), (2, 3, 2)])
def test_per_device_batch_size(world: int, accumulate: int, expected: int) -> None:
    assert per_device_batch_size(12, world, accumulate) == expected


def test_batches_that_do_not_divide_are_refused_with_sizes_that_do() -> None:
    with pytest.raises(InputError, match=r"12 does not divide over 5 device\(s\) × 1 .*; use 10 or 15"):
        per_device_batch_size(12, 5, 1)


def test_pixels_survive_the_way_to_the_model_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    image = pixels_to_image(pixels)
    assert (image.min(), image.max()) == (-1.0, 1.0)
    assert torch.equal(image_to_pixels(image), pixels)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def drawn(transform: ResizeAndCrop, pixels: torch.Tensor, seed: int) -> torch.Tensor:
    return transform(pixels, lambda: torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("short_side", "size"), [(32, 32), (36, 32)])
def test_resize_and_center_crop_equal_pillow(short_side: int, size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    resized = image.resize((round(90 * short_side / 60), short_side), Image.Resampling.BILINEAR)
    left, top = round((resized.width - size) / 2), round((short_side - size) / 2)
    expected = np.asarray(resized.crop((left, top, left + size, top + size)))
    got = ResizeAndCrop(size, short_side)(as_tensor(image), torch.Generator).permute(1, 2, 0).numpy()
    assert np.abs(got.astype(int) - expected).max() <= 1  # both round the weights of their filters, each its way


@pytest.mark.parametrize("shape", [(60, 90), (91, 60), (64, 64), (32, 33), (36, 39), (20, 50)])
def test_resize_and_center_crop_equal_torchvision_bit_exact(shape: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8).permute(2, 0, 1)
    expected = v2.functional.center_crop(v2.functional.resize(pixels, [36], antialias=True), [32])
    assert torch.equal(ResizeAndCrop(32, 36)(pixels, torch.Generator), expected)
    assert torch.equal(ResizeAndCrop(32, 36)(pixels.contiguous(), torch.Generator), expected)


@pytest.mark.parametrize(("side", "short"), [(20, 32), (40, 40), (100, 64)])
def test_without_enlarging_an_image_keeps_its_size_down_to_that_of_the_crop(side: int, short: int) -> None:
    pixels = torch.randint(0, 256, (3, side, side + 10), dtype=torch.uint8)
    kept = ResizeAndCrop(32, 64, enlarge=False)(pixels, torch.Generator)
    assert torch.equal(kept, ResizeAndCrop(32, short)(pixels, torch.Generator))


def test_random_crop_and_flip_show_every_place_of_the_image() -> None:
    image = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6, 1).repeat(3, axis=2))
    transform = ResizeAndCrop(4, 6, crop="random", flip=True)
    corners = {int(drawn(transform, as_tensor(image), seed)[0, 0, 0]) for seed in range(300)}
    unflipped = {6 * row + column for row in range(3) for column in range(3)}
    assert corners == unflipped | {corner + 3 for corner in unflipped}


def test_resized_crops_take_rectangles_of_every_area_and_repeat_with_their_stream() -> None:
    """Of an image whose red is the column and whose green is the row, both from 0 to 255."""
    ramp = torch.arange(256, dtype=torch.uint8)
    image = torch.stack([ramp.expand(256, 256), ramp[:, None].expand(256, 256), torch.zeros(256, 256).byte()])
    transform = ResizeAndCrop(16, 16, crop="resized", flip=True, crop_scale=(0.25, 1.0))
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    crops = [drawn(transform, image, seed).float() for seed in range(200)]
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's stream moved
    assert torch.equal(drawn(transform, image, 3).float(), crops[3])
    widths = torch.stack([(crop[0].amax() - crop[0].amin()) * 16 / 15 for crop in crops])
    heights = torch.stack([(crop[1].amax() - crop[1].amin()) * 16 / 15 for crop in crops])
    areas = widths * heights / 256**2
    assert 0.2 < areas.min() < 0.35
    assert areas.max() > 0.85
    assert (widths / heights).max() > 1.2 > 1 / 1.2 > (widths / heights).min()
    flipped = sum(bool(crop[0, 0, 0] > crop[0, 0, -1]) for crop in crops)
    assert 60 < flipped < 140


def test_resized_crops_are_not_enlarged() -> None:
    """A share of 0.01 of this image would be 6×6 pixels; the ramp of its columns rises by at least one a pixel."""
    ramp = torch.arange(64, dtype=torch.uint8)
    image = torch.stack([ramp.expand(64, 64)] * 3)
    transform = ResizeAndCrop(16, 16, crop="resized", crop_scale=(0.01, 0.2))
    slopes = [(crop := drawn(transform, image, seed).float())[0, 0, -1] - crop[0, 0, 0] for seed in range(100)]
    assert min(slopes) > 15 * 0.8  # the shape of the rectangle may take a little
    assert max(slopes) > 20


class Idle(LightningModule):
    """Notes the names of the images of each training batch, and after how many of them it validates."""

    def __init__(self, accumulate_batches: int = 1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.automatic_optimization = False
        self.accumulate_batches = accumulate_batches
        self.seen: list[list[str]] = []
        self.validated: list[int] = []

    def training_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self.seen.append([Path(path).name for path in batch.path])
        assert batch.image.dtype == torch.float32
        if len(self.seen) % self.accumulate_batches == 0:
            optimizer: Any = self.optimizers()
            optimizer.step()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None: ...

    def on_validation_epoch_end(self) -> None:
        self.validated.append(len(self.seen))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def quiet_trainer(steps: int, folder: Path, **options: Any) -> Trainer:
    """Keeps a checkpoint of each step."""
    return Trainer(
        **{
            "max_steps": steps,
            "max_epochs": -1,
            "accelerator": "cpu",
            "logger": False,
            "callbacks": [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "limit_val_batches": 0,
            **options,
        }
    )


def run_through(data: ImageDataModule, steps: int, folder: Path, **fit_arguments: Any) -> list[list[str]]:
    """The names of the images of each training batch."""
    module = Idle()
    quiet_trainer(steps, folder).fit(module, data, **fit_arguments)
    return module.seen


@pytest.mark.parametrize(("stop", "num_workers"), [(1, 0), (3, 0), (4, 0), (5, 0), (8, 0), (9, 0), (3, 1), (8, 1)])
def test_a_resumed_run_sees_the_images_that_the_whole_run_would_have(
    image_root: Path, tmp_path: Path, stop: int, num_workers: int
) -> None:
    """16 images in batches of 4: stops within, at and beyond the ends of epochs."""

    def data() -> ImageNetDataModule:
        return ImageNetDataModule(str(image_root), 8, global_batch_size=4, num_workers=num_workers, seed=3)

    whole = run_through(data(), 11, tmp_path / "whole")
    assert len({name for batch in whole[:4] for name in batch}) == 8  # both classes name their images alike
    resumed = run_through(data(), 11, tmp_path / "resumed", ckpt_path=tmp_path / "whole" / f"step={stop}.ckpt")
    assert resumed == whole[stop:]


def test_a_checkpoint_over_other_images_says_so_and_begins_with_the_first_of_these(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, count in (("before", 8), ("now", 12)):
        for split in ("train", "val"):
            write_images(tmp_path / name / split, count)

    def data(name: str) -> ImageNetDataModule:
        return ImageNetDataModule(str(tmp_path / name), 8, global_batch_size=4, num_workers=0, seed=3)

    run_through(data("before"), 3, tmp_path / "first")
    fresh = run_through(data("now"), 6, tmp_path / "fresh")
    resumed = run_through(data("now"), 9, tmp_path / "resumed", ckpt_path=tmp_path / "first" / "step=3.ckpt")
    assert "trained on 8 images, and here are 12: training goes on with the first epoch of these" in caplog.text
    assert resumed == fresh
    # and from there on a resumed run is the whole run again
    again = run_through(data("now"), 9, tmp_path / "again", ckpt_path=tmp_path / "resumed" / "step=5.ckpt")
    assert again == resumed[2:]


def test_a_larger_global_batch_continues_where_the_smaller_one_was(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / "images" / split, 40)

    def data(global_batch_size: int) -> ImageNetDataModule:
        return ImageNetDataModule(str(tmp_path / "images"), 8, global_batch_size, num_workers=0, seed=3)

    small = run_through(data(8), 3, tmp_path / "small")
    large = run_through(data(16), 4, tmp_path / "large", ckpt_path=tmp_path / "small" / "step=3.ckpt")
    assert not {name for batch in small for name in batch} & set(large[0])


@pytest.mark.parametrize("consumed_steps", [4, 5])
def test_a_batch_larger_than_what_is_left_of_an_epoch_begins_the_next(tmp_path: Path, consumed_steps: int) -> None:
    write_images(tmp_path / "images" / "train", 10)

    def data(global_batch_size: int) -> ImageNetDataModule:
        return ImageNetDataModule(tmp_path / "images", 8, global_batch_size, num_workers=0, seed=3)

    run_through(data(2), consumed_steps, tmp_path / "small")
    resumed = run_through(
        data(4), consumed_steps + 3, tmp_path / "large", ckpt_path=tmp_path / "small" / f"step={consumed_steps}.ckpt"
    )
    fresh = run_through(data(4), 5, tmp_path / "fresh")
    assert resumed == fresh[2:]  # the second epoch, and the third


def epoch_of(root: Path, epoch: int, seed: int = 3) -> list[list[str]]:
    """The batches of a whole epoch, by the sampler alone."""
    data = ImageNetDataModule(root, 8, global_batch_size=4, num_workers=0)
    data.setup("fit")
    images = data.make_train_dataset()
    assert isinstance(images, SourceImages)
    names = [Path(images[key].path).name for key in EpochSampler(len(images), position=DataPosition(seed, epoch))]
    return [names[start : start + 4] for start in range(0, len(names), 4)]


def seeded(root: Path, **arguments: Any) -> ImageNetDataModule:
    return ImageNetDataModule(root, 8, global_batch_size=4, **{"seed": 3, "num_workers": 0, **arguments})


def test_limited_epochs_are_equally_long_and_each_is_validated(image_root: Path, tmp_path: Path) -> None:
    """Three of four batches: not 3, 1, 3, 1, …, with every second validation left out."""
    data, module = seeded(image_root), Idle()
    options = {"limit_train_batches": 3, "limit_val_batches": 1.0, "num_sanity_val_steps": 0}
    quiet_trainer(8, tmp_path / "whole", **options).fit(module, data)
    assert module.seen == [*epoch_of(image_root, 0)[:3], *epoch_of(image_root, 1)[:3], *epoch_of(image_root, 2)[:2]]
    assert module.validated == [3, 6]
    assert data.state_dict()["images_consumed"] == 32
    for stop in (2, 3):
        resumed = Idle()
        trainer = quiet_trainer(8, tmp_path / f"resumed {stop}", **options)
        trainer.fit(resumed, seeded(image_root), ckpt_path=tmp_path / "whole" / f"step={stop}.ckpt")
        assert resumed.seen == module.seen[stop:]


def test_reloading_loaders_changes_nothing(image_root: Path, tmp_path: Path) -> None:
    data, module = seeded(image_root), Idle()
    quiet_trainer(10, tmp_path / "reloaded", reload_dataloaders_every_n_epochs=1).fit(module, data)
    assert module.seen == run_through(seeded(image_root), 10, tmp_path / "plain")
    assert data.state_dict()["images_consumed"] == 40


@pytest.mark.parametrize(("first", "num_workers"), [(4, 0), (2, 0), (2, 1)])
def test_a_second_fit_continues_with_the_next_epoch(
    image_root: Path, tmp_path: Path, first: int, num_workers: int
) -> None:
    data, module = seeded(image_root, num_workers=num_workers), Idle()
    trainer = quiet_trainer(first, tmp_path, callbacks=[], enable_checkpointing=False)
    trainer.fit(module, data)
    trainer.fit_loop.epoch_loop.max_steps = first + 4
    trainer.fit(module, data)
    assert module.seen == [*epoch_of(image_root, 0)[:first], *epoch_of(image_root, 1)]
    assert data.state_dict()["images_consumed"] == 4 * (first + 4)


def test_the_order_is_that_of_seed_everything_unless_the_data_have_a_seed(
    image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # set back after the test
    for seed in (1, 2):
        seed_everything(seed, verbose=False)
        assert run_through(seeded(image_root, seed=None), 4, tmp_path / str(seed)) == epoch_of(image_root, 0, seed)
        assert run_through(seeded(image_root), 4, tmp_path / f"own {seed}") == epoch_of(image_root, 0, 3)
    # and without seed_everything it is what torch began with, which a resumed run knows from the checkpoint
    monkeypatch.delenv("PL_GLOBAL_SEED")
    torch.manual_seed(5)
    whole = run_through(seeded(image_root, seed=None), 3, tmp_path / "whole")
    assert whole == epoch_of(image_root, 0, 5)[:3]
    torch.manual_seed(6)
    checkpoint = tmp_path / "whole" / "step=1.ckpt"
    assert run_through(seeded(image_root, seed=None), 3, tmp_path / "resumed", ckpt_path=checkpoint) == whole[1:]


@pytest.mark.parametrize(("stop", "warns"), [(2, True), (4, False)])  # within an epoch of four steps, and at its end
def test_a_run_resumed_with_another_seed_says_that_its_epoch_is_mixed(
    image_root: Path, tmp_path: Path, stop: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "run" / f"step={stop}.ckpt"
    run_through(seeded(image_root), stop, tmp_path / "run")
    run_through(seeded(image_root), stop + 1, tmp_path / "same", ckpt_path=checkpoint)
    assert "the seed is" not in caplog.text
    run_through(seeded(image_root, seed=5), stop + 1, tmp_path / "other", ckpt_path=checkpoint)
    assert ("the seed is 5, the checkpoint's was 3" in caplog.text) == warns


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (4, 1)])
@pytest.mark.parametrize("stop", [1, 2, 3])  # within epochs of two steps, and at their end
def test_a_run_resumed_with_other_accumulation_sees_each_image_of_an_epoch_once(
    image_root: Path, tmp_path: Path, before: int, now: int, stop: int
) -> None:
    def run(accumulate: int, steps: int, **arguments: Any) -> tuple[list[str], Idle]:
        module = Idle(accumulate)
        data = ImageNetDataModule(image_root, 8, global_batch_size=8, num_workers=0, seed=3)
        options = {"limit_val_batches": 1.0, "num_sanity_val_steps": 0}
        quiet_trainer(steps, tmp_path / f"{accumulate}", **options).fit(module, data, **arguments)
        return list(itertools.chain(*module.seen)), module

    whole, _ = run(before, 6)
    resumed, module = run(now, 6, ckpt_path=tmp_path / f"{before}" / f"step={stop}.ckpt")
    assert resumed == whole[8 * stop :]
    ends = [2 * step * now for step in (1, 2, 3)]
    assert module.validated == [end - stop * now for end in ends if end > stop * now]  # where epochs of the data end


@pytest.mark.filterwarnings("ignore:You requested to overfit")  # Lightning says that it shuffles no more
def test_overfitting_sees_the_same_images_in_every_epoch(image_root: Path, tmp_path: Path) -> None:
    module = Idle()
    quiet_trainer(6, tmp_path / "run", overfit_batches=2).fit(module, seeded(image_root, crop="random", flip=True))
    assert module.seen == module.seen[:2] * 3
    assert len(set(itertools.chain(*module.seen))) == 8


def test_the_place_in_training_does_not_concern_validation(image_root: Path, tmp_path: Path) -> None:
    trained = seeded(image_root)
    run_through(trained, 3, tmp_path / "run")
    data = ImageNetDataModule(image_root, 8, val_batch_size=4, num_workers=0)
    data.setup("validate")
    before = [batch.path for batch in data.val_dataloader()]
    data.load_state_dict(trained.state_dict() | {"training_images": 99})
    assert [batch.path for batch in data.val_dataloader()] == before
    assert len(before) == 2


def test_labels_are_the_class_folders_in_order_of_their_names(image_root: Path) -> None:
    data = ImageNetDataModule(str(image_root), 8, val_batch_size=6, num_workers=0)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert batch.label.tolist() == [0, 0, 0, 1, 1, 1]
    assert [Path(path).parent.name for path in batch.path] == ["cats"] * 3 + ["dogs"] * 3


def test_flat_folders_have_no_labels_and_a_folder_of_images_alone_can_be_validated(tmp_path: Path) -> None:
    write_images(tmp_path / "flat", 3)
    data = ImageNetDataModule(str(tmp_path / "flat"), 8, num_workers=0)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert batch.label.tolist() == [-1, -1, -1]


def test_names_with_spaces_and_other_scripts_are_found(tmp_path: Path) -> None:
    write_images(tmp_path / "val" / "eine Kätzchen 猫", 1)
    data = ImageNetDataModule(str(tmp_path), 8, num_workers=0)
    data.setup("validate")
    assert len(list(data.val_dataloader())) == 1


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file or folder .*nowhere; set data.root"):
        ImageNetDataModule(str(tmp_path / "nowhere")).setup("fit")
    for stage in ("fit", "validate"):
        with pytest.raises(InputError, match="there are no images below"):
            ImageNetDataModule(str(tmp_path)).setup(stage)
    write_images(tmp_path / "val", 1)
    with pytest.raises(InputError, match="and nothing named train"):
        ImageNetDataModule(str(tmp_path)).setup("fit")


def test_fewer_images_than_a_batch_are_refused(image_root: Path) -> None:
    data = ImageNetDataModule(str(image_root), 8, global_batch_size=17, num_workers=0)
    with pytest.raises(InputError, match="training has 16 images, fewer than global_batch_size 17"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"crop_scale": (0.1, 0.5)}, r"crop_scale is \(0.1, 0.5\), which only data.crop resized takes; crop is center"),
        ({"val_crop_ratio": 1.5}, "val_crop_ratio is 1.5"),
        ({"global_batch_size": -4}, "global_batch_size is -4"),
        ({"val_batch_size": 0}, "val_batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageNetDataModule("somewhere", **arguments)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_an_unreadable_image_is_named(image_root: Path) -> None:
    damage(image_root / "val" / "cats" / "image_001.png")
    data = ImageNetDataModule(str(image_root), 8, num_workers=0)
    data.setup("validate")
    with pytest.raises(InputError, match=r"image_001.png cannot be read as an image.*on_error to skip"):
        list(data.val_dataloader())


def test_skipped_images_are_left_out_of_validation_and_counted(image_root: Path) -> None:
    damage(image_root / "val" / "cats" / "image_001.png")
    data = ImageNetDataModule(str(image_root), 8, num_workers=0, on_error="skip", val_batch_size=2)
    data.setup("validate")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    assert [len(batch.image) for batch in batches] == [1, 2, 2]
    assert [Path(path).name for path in data.unreadable] == ["image_001.png"]


def test_skipped_images_are_replaced_in_training_and_counted(image_root: Path) -> None:
    for name in ("image_001.png", "image_002.png"):
        damage(image_root / "train" / "cats" / name)
    data = ImageNetDataModule(str(image_root), 8, global_batch_size=4, num_workers=0, on_error="skip")
    data.setup("fit")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    assert [len(batch.image) for batch in batches] == [4, 4, 4, 4]
    assert sorted(Path(path).name for path in data.unreadable) == ["image_001.png", "image_002.png"]


def test_a_folder_without_one_readable_image_ends(tmp_path: Path) -> None:
    for path in write_images(tmp_path, 2):
        damage(path)
    images = SourceImages(FolderSource(tmp_path), ResizeAndCrop(8, 8), on_error="skip", substitute=True)
    with pytest.raises(InputError, match=r"none of 2 images of .* can be read, the last .*png"):
        images[SampleKey(0, 0)]


def test_photographs_train_on_random_crops_and_validate_on_others() -> None:
    data = PhotographsDataModule(image_size=32, crops_per_epoch=8, global_batch_size=4, num_workers=0)
    data.setup("fit")
    first, again = (torch.cat([batch.image for batch in data.train_dataloader()]) for _ in range(2))
    assert torch.equal(first, again)
    assert len({crop.numpy().tobytes() for crop in first}) == 8
    tiles = torch.cat([batch.image for batch in data.val_dataloader()])
    assert tiles.shape == (2 * (300 // 32) * (450 // 32), 3, 32, 32)
    assert tiles.float().std() > 20


def test_photographs_validate_on_larger_tiles_than_they_train_on() -> None:
    data = PhotographsDataModule(image_size=32, crops_per_epoch=8, num_workers=0, val_image_size=96)
    data.setup("validate")
    tiles = torch.cat([batch.image for batch in data.val_dataloader()])
    assert tiles.shape == (2 * (300 // 96) * (450 // 96), 3, 96, 96)
    with pytest.raises(InputError, match="val_image_size is 301; it must be at most short_side, 300"):
        PhotographsDataModule(val_image_size=301)


def test_images_are_evaluated_at_another_size_than_they_train_at(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "val", 3)
    data = ImageNetDataModule(tmp_path, image_size=16, val_image_size=24, global_batch_size=2, num_workers=0)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).image.shape == (2, 3, 16, 16)
    assert next(iter(data.val_dataloader())).image.shape == (3, 3, 24, 24)
    again = ImageNetDataModule(**{name: value for name, value in data.settings.items() if name != "class"})
    assert again.predicted_size == 24
