"""Validation images where there is no validation split; what checkpoints keep of the data; photographs of one's own."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from gsq_lightning import InputError
from gsq_lightning.data import ImageNetDataModule, PhotographsDataModule, holdout
from gsq_lightning.data.dataset import SourceImages
from gsq_lightning.data.loader import default_workers, usable_cores
from tests.conftest import write_images
from tests.data.test_data import Idle, quiet_trainer


def names(images: Any) -> set[str]:
    return {images.source.names[item] for item in range(len(images.source))}


def both(**arguments: Any) -> tuple[set[str], set[str]]:
    """The images for training and for validation."""
    data = ImageNetDataModule(image_size=8, global_batch_size=4, num_workers=0, **arguments)
    data.setup("fit")
    return names(data.make_train_dataset()), names(data.make_val_dataset())


def test_a_share_of_a_folder_is_held_out_by_name_wherever_it_lies(tmp_path: Path) -> None:
    write_images(tmp_path / "here" / "photos", 40)
    train, val = both(root=tmp_path / "here", val_share=0.25)
    assert not train & val
    assert len(train | val) == 40
    assert 4 <= len(val) <= 16
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "photos").rename(tmp_path / "there" / "photos")
    for path in write_images(tmp_path / "there" / "photos", 44)[40:]:  # more images move none of the others
        train.add(f"photos/{path.name}")
    more_train, more_val = both(train=tmp_path / "there", val_share=0.25)
    assert val <= more_val
    assert more_val - val <= train
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in (tmp_path / "there").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path / "there"))
    assert both(root=tmp_path / "photos.zip", val_share=0.25) == (more_train, more_val)


def test_names_are_hashed_once_for_both_parts(image_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million names take seconds."""
    hashed: list[str] = []
    hash_of = holdout.hash_of
    monkeypatch.setattr(holdout, "hash_of", lambda name: [hash_of(name), hashed.append(name)][0])
    both(train=image_root / "train", val_share=0.5)
    assert len(hashed) == 16


def test_labels_of_both_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cat"):
        write_images(tmp_path / name, 10)
    data = ImageNetDataModule(tmp_path, 8, global_batch_size=4, val_share=0.2, num_workers=0)
    data.setup("fit")
    for images in (data.make_train_dataset(), data.make_val_dataset()):
        assert isinstance(images, SourceImages)
        for item in range(len(images)):
            assert images.source.labels[item] == ["ant", "bee", "cat"].index(images.source.names[item][:3])


def test_a_validation_split_goes_before_a_share(image_root: Path) -> None:
    train, val = both(root=image_root, val_share=0.5)
    assert (len(train), len(val)) == (16, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_share": 1.0}, "val_share is 1.0"),
        ({"val_share": 1e-9}, "val_share 1e-09 of 4 images in .* leaves 4 for training and 0 for validation"),
    ],
)
def test_shares_that_leave_nothing_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    write_images(tmp_path, 4)
    with pytest.raises(InputError, match=message):
        ImageNetDataModule(tmp_path, global_batch_size=4, **arguments).setup("fit")


def test_training_without_validation_images_says_so_and_validating_nothing_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path / "photos", 8)
    for place in ({"root": tmp_path / "photos"}, {"train": tmp_path / "photos"}):
        data, module = ImageNetDataModule(image_size=8, global_batch_size=4, num_workers=0, **place), Idle()
        caplog.clear()
        trainer = quiet_trainer(4, tmp_path, limit_val_batches=1.0, callbacks=[], enable_checkpointing=False)
        trainer.fit(module, data)
        assert (len(module.seen), module.validated) == (4, [])
        assert "there are no validation images: training goes on without validation" in caplog.text
        with pytest.raises(InputError, match="there are no validation images"):
            trainer.validate(module, data)
        # nor does one that finds the place in the checkpoint take the images that were trained on
        settings = data.settings
        assert (settings["root"], settings["train"]) == (None, str(tmp_path / "photos"))
        with pytest.raises(InputError, match="there are no validation images"):
            ImageNetDataModule(train=settings["train"]).setup("validate")


def test_validation_images_are_not_looked_for_where_none_are_wanted(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 4)
    data = ImageNetDataModule(tmp_path, 8, global_batch_size=4, num_workers=0, val=tmp_path / "gone")
    quiet_trainer(1, tmp_path / "checkpoints", limit_val_batches=0).fit(Idle(), data)
    with pytest.raises(InputError, match=r"there is no file or folder .*gone"):
        quiet_trainer(1, tmp_path / "checkpoints", limit_val_batches=1).fit(Idle(), data)


def test_settings_are_plain_data_that_make_the_same_images_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "photos", 30)
    monkeypatch.chdir(tmp_path)
    data: Any = ImageNetDataModule(
        Path("photos"),
        np.int64(8),  # type: ignore[arg-type]
        global_batch_size=np.int32(4),  # type: ignore[arg-type]
        val_crop_ratio=np.float32(0.5),  # type: ignore[arg-type]
        val_share=0.25,
        num_workers=0,
    )
    data.setup("fit")
    fingerprint = data._val.fingerprint
    torch.save(data.settings, tmp_path / "settings.pt")
    settings = torch.load(tmp_path / "settings.pt", weights_only=True)
    assert settings.pop("class") == "ImageNetDataModule"
    monkeypatch.chdir("/")
    again = ImageNetDataModule(**settings)
    again.setup("validate")
    assert again._val.fingerprint == fingerprint  # type: ignore[union-attr]


def labelled(**arguments: Any) -> tuple[dict[str, int], list[str] | None]:
    """The label of each folder of validation images, and the names of all classes."""
    data = ImageNetDataModule(image_size=8, num_workers=0, **arguments)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    return {Path(path).parent.name: int(label) for path, label in zip(batch.path, batch.label, strict=True)}, (
        data.class_names
    )


def test_labels_of_validation_images_are_the_numbers_of_the_training_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a validation split that lacks one class of training, and has one that training lacks."""
    for name in ("train/ant", "train/bee", "train/cat", "val/ant", "val/cat", "val/dog", "others/elk", "others/fox"):
        write_images(tmp_path / name, 1)
    caplog.set_level("INFO")
    expected = {"ant": 0, "cat": 2, "dog": -1}
    assert labelled(root=tmp_path, val=tmp_path / "val") == (expected, ["ant", "bee", "cat"])
    assert labelled(train=tmp_path / "train", val=tmp_path / "val") == (expected, ["ant", "bee", "cat"])
    assert "1 of 3 images are of 1 classes that training does not have (dog)" in caplog.text
    write_images(tmp_path / "train" / "fox", 1)
    assert labelled(train=tmp_path / "train", val=tmp_path / "others")[0] == {"elk": -1, "fox": 3}
    (tmp_path / "train" / "fox").rename(tmp_path / "fox")
    # without the training split, by what the checkpoint of its training says
    data = ImageNetDataModule(tmp_path, 8, global_batch_size=1, num_workers=0, val=tmp_path / "val")
    data.setup("fit")
    kept = {"trained_class_names": ["ant", "bee", "cat"]}
    assert kept.items() <= data.settings.items()
    assert labelled(val=tmp_path / "val", **kept)[0] == expected
    # and images of quite other classes keep numbers of their own
    assert labelled(root=tmp_path / "others", **kept) == ({"elk": 0, "fox": 1}, ["elk", "fox"])


def test_names_of_classes_are_not_matched_with_numbers_unless_it_is_said_how(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The list numbers them in another order than that of their names."""
    for name in ("ant", "bee"):
        write_images(tmp_path / "images" / name, 1)
        write_images(tmp_path / "val" / name, 1)
    lines = [f"{tmp_path}/images/{name}/{name}_0.png {label}" for name, label in (("ant", 1), ("bee", 0))]
    for name in ("ant", "bee"):
        (image,) = (tmp_path / "images" / name).iterdir()
        image.rename(image.with_name(f"{name}_0.png"))
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    places = {"train": tmp_path / "train.txt", "val": tmp_path / "val"}
    caplog.set_level("INFO")
    assert labelled(**places) == ({"ant": -1, "bee": -1}, None)
    assert "data.class_names takes the names in the order of the numbers" in caplog.text
    assert labelled(**places, class_names=["bee", "ant"]) == ({"ant": 1, "bee": 0}, ["bee", "ant"])
    data = ImageNetDataModule(image_size=8, global_batch_size=1, num_workers=0, **places, class_names=["bee", "ant"])
    data.setup("fit")
    assert data.settings["class_names"] == data.settings["trained_class_names"] == ["bee", "ant"]
    (batch,) = data.val_dataloader()
    assert sorted(batch.label.tolist()) == [0, 1]
    data = ImageNetDataModule(image_size=8, global_batch_size=1, num_workers=0, **places, class_names=["bee"])
    with pytest.raises(InputError, match=r"has the label 1, and data\.class_names names 1 classes"):
        data.setup("fit")


def test_numbers_are_named_by_what_the_user_gives_and_not_by_a_training_on_other_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path / "some", 2)
    write_images(tmp_path / "train" / "ant", 1)
    write_images(tmp_path / "train" / "bee", 1)
    trained = {"trained_class_names": ["ant", "bee"]}
    for numbered, folder in ((tmp_path / "some" / "list.txt", ""), (tmp_path / "list.txt", "some/")):
        first, second = sorted(path.name for path in (tmp_path / "some").glob("*.png"))
        numbered.write_text(f"{folder}{first} 4\n{folder}{second} 2\n")
        for split in ({"val": numbered}, {"train": numbered, "val": numbered}):
            assert labelled(**split, **trained)[1] is None
            assert labelled(**split, class_names=list("abcde"))[1] == list("abcde")
            with pytest.raises(InputError, match=r"has the label 4, and data\.class_names names 4 classes"):
                labelled(**split, class_names=list("abcd"))
    data = ImageNetDataModule(image_size=8, train=numbered, **trained)  # type: ignore[arg-type]
    data.make_predict_dataset("train")
    assert data.class_names is None
    # nor by training folders that are fewer
    caplog.set_level("INFO")
    assert labelled(train=tmp_path / "train", val=numbered) == ({"some": -1}, ["ant", "bee"])
    assert "it has the label 4, and training has 2 classes: labels are left out" in caplog.text


def test_given_names_decide_the_order_of_training_folders_and_name_all(tmp_path: Path) -> None:
    for name in ("train/ant", "train/bee", "val/bee"):
        write_images(tmp_path / name, 1)
    for split in ({"root": tmp_path}, {"root": tmp_path / "train", "val_share": 0.5}):
        data = ImageNetDataModule(**split, image_size=8, global_batch_size=1, num_workers=0, class_names=["bee", "ant"])
        data.setup("fit")
        for batch in (*data.train_dataloader(), *data.val_dataloader()):
            assert [int(Path(path).parent.name == "ant") for path in batch.path] == batch.label.tolist()
        assert data.class_names == ["bee", "ant"]
    for stage in ("fit", "validate"):
        data = ImageNetDataModule(tmp_path, 8, global_batch_size=1, num_workers=0, class_names=["bee", "cat"])
        with pytest.raises(InputError, match=r"train has classes that data\.class_names does not name \(ant\)"):
            data.setup(stage)


def test_training_photographs_number_the_classes_too(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "train/eel", "val/cat", "val/eel"):
        write_images(tmp_path / name, 1)
    data = PhotographsDataModule(8, 2, root=tmp_path, global_batch_size=1, num_workers=0)
    data.setup("fit")
    assert data.settings["trained_class_names"] == ["cat", "dog", "eel"]
    (batch,) = data.val_dataloader()
    assert batch.label.tolist() == [0, 2]


@pytest.mark.parametrize("num_workers", [None, 3])
def test_workers_follow_the_machine_unless_they_are_given(
    image_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, num_workers: int | None
) -> None:
    monkeypatch.setattr("gsq_lightning.data.loader.usable_cores", lambda: 2)
    monkeypatch.setattr("gsq_lightning.data.datamodule.usable_cores", lambda: 2)
    data = ImageNetDataModule(image_root, 8, global_batch_size=4, num_workers=num_workers)
    caplog.set_level("INFO")
    data.setup("fit")
    assert data.train_dataloader().num_workers == (num_workers or 2)
    assert ("num_workers is 3 for each of 1 device(s), and this machine has 2" in caplog.text) == bool(num_workers)


def test_the_cores_of_a_machine_are_shared_by_its_devices() -> None:
    assert [default_workers(devices) for devices in (1, usable_cores(), 1000)] == [min(usable_cores(), 8), 1, 1]


@pytest.mark.parametrize(("visible", "workers"), [(4, 4), (32, 4), (64, 8)])
def test_a_task_of_slurm_may_have_cores_of_its_own(visible: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight tasks of 4 cores: bound to them, or seeing those of the whole machine, and of one with more."""
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    monkeypatch.setattr("gsq_lightning.data.loader.usable_cores", lambda: visible)
    assert default_workers(8) == workers


def test_own_photographs_take_the_place_of_the_bundled_ones(tmp_path: Path) -> None:
    """Of 60×40 pixels: none is enlarged to the usual short side of 300."""
    write_images(tmp_path, 12, size=(60, 40))
    data = PhotographsDataModule(
        32, crops_per_epoch=40, global_batch_size=4, root=tmp_path, val_share=0.3, num_workers=0, seed=1
    )
    data.setup("fit")
    train = data.make_train_dataset()
    assert isinstance(train, SourceImages)
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == 10
    seen = [path for batch in batches for path in batch.path]
    assert {Path(path).name for path in seen} == names(train)
    counts = [seen.count(path) for path in set(seen)]
    assert max(counts) - min(counts) <= 1  # all come equally often
    crops = {pixels.numpy().tobytes() for batch in batches for pixels in batch.image}
    assert len(crops) > 30  # elsewhere each time
    (val,) = data.val_dataloader()
    assert {Path(path).name for path in val.path} == names(data.make_val_dataset())
    original = SourceImages(train.source, lambda pixels, _: pixels)
    assert train.transform(original[0].pixels, torch.Generator).shape == (3, 32, 32)


def test_epochs_that_are_shorter_than_the_set_go_round_it(tmp_path: Path) -> None:
    write_images(tmp_path, 10)
    data = PhotographsDataModule(32, crops_per_epoch=4, global_batch_size=4, root=tmp_path, num_workers=0, seed=1)
    module = Idle()
    quiet_trainer(5, tmp_path / "checkpoints").fit(module, data)
    seen = [name for batch in module.seen for name in batch]
    assert [seen.count(name) for name in names(data.make_train_dataset())] == [2] * 10


def test_a_trainer_of_another_module_divides_the_batch_by_its_own_accumulation(image_root: Path) -> None:
    class Plain(Idle):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = True
            del self.accumulate_batches

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # type: ignore[override]
            self.seen.append(batch.path)
            return self.weight.sum()

    module = Plain()
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accumulate_grad_batches=4,
        limit_val_batches=0,
    )
    trainer.fit(module, ImageNetDataModule(image_root, 8, global_batch_size=8, num_workers=0))
    assert [len(batch) for batch in module.seen] == [2] * 8


def test_data_modules_are_found_from_the_package() -> None:
    import gsq_lightning

    assert {"ImageNetDataModule", "PhotographsDataModule"} <= set(dir(gsq_lightning))
    assert gsq_lightning.PhotographsDataModule is PhotographsDataModule


def test_settings_of_photographs_make_the_same_validation_again(tmp_path: Path) -> None:
    write_images(tmp_path, 30, size=(60, 40))
    arguments: dict[str, Any] = {"image_size": 32, "root": tmp_path, "val_share": 0.25, "short_side": 36}
    data = PhotographsDataModule(global_batch_size=4, **arguments)
    data.setup("fit")
    again = PhotographsDataModule(**{name: value for name, value in data.settings.items() if name != "class"})
    again.setup("validate")
    assert again._val.fingerprint == data._val.fingerprint  # type: ignore[union-attr]


def test_accents_written_in_two_ways_are_the_same_name() -> None:
    """macOS takes them apart."""
    assert len({holdout.hash_of(name) for name in ("café/1.png", "cafe\u0301/1.png")}) == 1
