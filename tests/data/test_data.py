"""Order, crops, labels, unreadable images and resuming of the data modules."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torchvision.transforms import v2

from gsq_lightning import InputError
from gsq_lightning.data import ImageBatch, ImageDataModule, ImageNetDataModule, PhotographsDataModule
from gsq_lightning.data.batch import per_device_batch_size
from gsq_lightning.data.dataset import SourceImages
from gsq_lightning.data.sampler import EpochSampler, SampleKey, sample_generator
from gsq_lightning.data.sources import FolderSource
from gsq_lightning.data.transforms import ResizeAndCrop
from gsq_lightning.pixels import image_to_pixels, pixels_to_image
from tests.conftest import write_images


def keys(sampler: EpochSampler) -> list[int]:
    return [key.item for key in sampler]


@pytest.mark.parametrize("world", [1, 2, 3, 5, 12])
def test_unpadded_shards_cover_everything_exactly_once(world: int) -> None:
    shards = [keys(EpochSampler(range(10), world, rank)) for rank in range(world)]  # type: ignore[arg-type]
    assert sorted(itertools.chain(*shards)) == list(range(10))
    assert [len(shard) for shard in shards] == [len(range(rank, 10, world)) for rank in range(world)]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_global_batches_are_the_same_for_any_number_of_devices(world: int) -> None:
    samplers = [
        EpochSampler(range(22), world, rank, shuffle=True, seed=5, multiple_of=8)  # type: ignore[arg-type]
        for rank in range(world)
    ]
    share = 8 // world
    batches = [
        sorted(itertools.chain(*(keys(sampler)[start : start + share] for sampler in samplers)))
        for start in range(0, len(samplers[0]), share)
    ]
    single = keys(EpochSampler(range(22), shuffle=True, seed=5, multiple_of=8))  # type: ignore[arg-type]
    assert batches == [sorted(single[:8]), sorted(single[8:16])]


def test_order_changes_with_epoch_and_seed_and_repeats_with_both() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(range(50), shuffle=True, seed=seed)  # type: ignore[arg-type]
        sampler.set_epoch(epoch)
        return keys(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert sorted(order(0, 0)) == list(range(50))


def test_sampler_goes_on_from_any_place() -> None:
    whole = EpochSampler(range(10), shuffle=True, seed=1, multiple_of=2)  # type: ignore[arg-type]
    orders = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        orders.append(keys(whole))
    resumed = EpochSampler(range(10), shuffle=True, seed=1, multiple_of=2)  # type: ignore[arg-type]
    place = 10 + 6
    resumed.follow(lambda: place)
    assert keys(resumed) == orders[1][6:]
    assert len(resumed) == 10
    resumed.set_epoch(7)  # somebody who counts otherwise
    assert keys(resumed) == orders[1][6:]
    place = 20
    assert keys(resumed) == orders[2]


def test_random_stream_depends_on_seed_epoch_and_index_alone() -> None:
    def draw(seed: int, epoch: int, index: int) -> int:
        return int(torch.randint(2**31, (), generator=sample_generator(seed, SampleKey(epoch, index))))

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


@pytest.mark.parametrize("shape", [(60, 90), (91, 60), (64, 64), (32, 33), (20, 50)])
def test_resize_and_center_crop_equal_torchvision_to_the_bit(shape: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8).permute(2, 0, 1)
    expected = v2.functional.center_crop(v2.functional.resize(pixels, [36], antialias=True), [32])
    assert torch.equal(ResizeAndCrop(32, 36)(pixels, torch.Generator), expected)
    assert torch.equal(ResizeAndCrop(32, 36)(pixels.contiguous(), torch.Generator), expected)


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


def run_through(data: ImageDataModule, steps: int, folder: Path, **fit_arguments: Any) -> list[list[str]]:
    """The names of the images of each training batch."""
    seen: list[list[str]] = []

    class Idle(LightningModule):
        accumulate_batches = 1

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: ImageBatch, batch_idx: int) -> torch.Tensor:
            seen.append([Path(path).name for path in batch.path])
            assert batch.image.dtype == torch.float32
            return self.weight.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    keep: list[Callback] = [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)]
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        callbacks=keep,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(Idle(), data, **fit_arguments)
    return seen


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


def test_a_larger_global_batch_goes_on_where_the_smaller_one_was(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / "images" / split, 40)

    def data(global_batch_size: int) -> ImageNetDataModule:
        return ImageNetDataModule(str(tmp_path / "images"), 8, global_batch_size, num_workers=0, seed=3)

    small = run_through(data(8), 3, tmp_path / "small")
    large = run_through(data(16), 4, tmp_path / "large", ckpt_path=tmp_path / "small" / "step=3.ckpt")
    assert not {name for batch in small for name in batch} & set(large[0])


def test_the_place_in_training_does_not_concern_validation(image_root: Path) -> None:
    data = ImageNetDataModule(str(image_root), 8, global_batch_size=7)
    data.setup("validate")
    data.load_state_dict({"images_consumed": 3, "training_images": 99, "global_batch_size": 2})


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
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; set data.root"):
        ImageNetDataModule(str(tmp_path / "nowhere")).setup("fit")
    with pytest.raises(InputError, match="there are no images below"):
        ImageNetDataModule(str(tmp_path)).setup("validate")
    with pytest.raises(InputError, match="holds nothing named 'train'"):
        ImageNetDataModule(str(tmp_path)).setup("fit")


def test_fewer_images_than_a_batch_are_refused(image_root: Path) -> None:
    data = ImageNetDataModule(str(image_root), 8, global_batch_size=17, num_workers=0)
    data.setup("fit")
    with pytest.raises(InputError, match="16 training images, fewer than global_batch_size 17"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"val_crop_ratio": 1.5}, "val_crop_ratio is 1.5"),
        ({"global_batch_size": -4}, "global_batch_size -4"),
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
