"""ImageNet, and any other set of images."""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from gsq_lightning.data.class_numbers import ClassNumbers
from gsq_lightning.data.dataset import ImageDataset, OnError, SourceImages, Transform
from gsq_lightning.data.holdout import HeldOut, SourcePart, check_share, hold_out
from gsq_lightning.data.image_datamodule import ImageDataModule
from gsq_lightning.data.sources import ImageSource, ParquetSource
from gsq_lightning.data.sources.locate import (
    Shards,
    SourceKind,
    find_split,
    is_on_hub,
    is_remote,
    open_images,
    splits_of,
)
from gsq_lightning.data.sources.parquet import Columns
from gsq_lightning.data.sources.splits import Split
from gsq_lightning.data.stream import StreamedShards
from gsq_lightning.data.transforms import CROP_SCALE, MAX_IMAGE_SIZE, Crop, ResizeAndCrop, short_side_for
from gsq_lightning.errors import InputError, one_of, require, whole_number
from gsq_lightning.tokens.facts import PredictedSplit


class ImageNetDataModule(ImageDataModule):
    """Images of a training and a validation split, with or without labels: ImageNet's, or any others.

    Training: short side to `image_size`, center crop, no flip (the paper's section 4). Validation: short side to
    `val_image_size / val_crop_ratio`, center crop.

    Args:
        root: a folder or archive that holds both splits; or, with `source` "parquet", the name of a data set on the
            Hugging Face Hub. A split is a folder of images (in class folders or not), a text list, one or more zips or
            uncompressed tars (WebDataset shards too), or Parquet files. It is found by its name, train or val (or
            validation), which may be part of a longer name, at any depth.
            Without splits all images are for training, except for `val_share`; validation and prediction on their own
            take all of them.
        image_size: side of the square images, in pixels.
        global_batch_size: images per training step over all devices, nodes and accumulated batches.
        val_batch_size: images per device and step in validation, test and prediction.
        val_crop_ratio: in (0, 1]; 1.0 as most of the field evaluates, 0.875 as the paper's reference does
            (256: resize to 292, crop 256).
        crop: in training: "center" or "random" after the resize; or "resized", a rectangle of random area and shape,
            resized.
        flip: mirror left and right with probability ½ in training.
        num_workers: worker processes per device that load images; by default its share of the machine's cores, at
            most 8.
        on_error: what an unreadable image does: "raise" stops with its name; "skip" leaves it out and counts it.
        seed: what order, crops and flips follow from; by default that of `seed_everything`, else torch's initial seed.
        source: the kind of `root`, `train` and `val`; "auto" decides by their content. "webdataset" streams local
            shards from front to back; otherwise they are read in any order.
        val: the validation split, if not in `root`; as `train`.
        train: the training split, if not in `root`: a folder, list, archive, Parquet file, or pattern of
            these such as imagenet-train-{0000..1023}.tar; of shards also a URL or a `pipe:` command; several with `::`
            between.
        crop_scale: smallest and largest share of the image's area that a "resized" crop takes, at least `image_size`²
            pixels; for no other crop.
        train_images: how many images remote training shards hold; 1,281,167 in ImageNet. For streamed shards alone.
        shuffle_buffer: encoded images that each worker keeps in memory to draw from, when training from streamed
            shards.
        val_share: share of the training images, in (0, 1), that is held out for validation where there is no
            validation split, such as 0.02. Names decide, so that it is the same on every machine.
        class_names: names of the classes in the order of their numbers, if labels are numbers, or if another order
            than the alphabetical one is wanted. After `setup` those of the labels, or None.
        image_column: the column of images in Parquet files, if there are several.
        val_image_size: side of the images that are evaluated, in pixels; by default `image_size`.
        trained_class_names: names of the classes of the training, in the order of their numbers; a checkpoint sets
            them. Images whose classes have names take these numbers; labels that are numbers get no names from it.
        label_column: which column of Parquet files has the numbers of the classes; by default `label`, `labels`, `cls`
            or `class`.

    Raises:
        InputError: where images are missing, sizes make no sense, or `class_names` leaves a class out.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        image_size: int = 256,
        global_batch_size: int = 256,
        val_batch_size: int = 32,
        val_crop_ratio: float = 1.0,
        crop: Crop = "center",
        flip: bool = False,
        num_workers: int | None = None,
        on_error: OnError = "raise",
        seed: int | None = None,
        source: SourceKind = "auto",
        train: str | os.PathLike[str] | None = None,
        val: str | os.PathLike[str] | None = None,
        crop_scale: tuple[float, float] = CROP_SCALE,
        train_images: int | None = None,
        shuffle_buffer: int = 1000,
        val_share: float | None = None,
        class_names: Sequence[str] | None = None,
        image_column: str | None = None,
        val_image_size: int | None = None,
        trained_class_names: Sequence[str] | None = None,
        label_column: str | None = None,
    ) -> None:
        super().__init__(global_batch_size, val_batch_size, num_workers, seed)
        self.image_size = whole_number("image_size", image_size, 1)
        self.val_image_size = None if val_image_size is None else whole_number("val_image_size", val_image_size, 1)
        for name, size in (("image_size", image_size), ("val_image_size", self.predicted_size)):
            require(size <= MAX_IMAGE_SIZE, f"{name} is {size}; it must be at most {MAX_IMAGE_SIZE}")
        self.val_crop_ratio = float(val_crop_ratio)
        require(0 < val_crop_ratio <= 1, f"val_crop_ratio is {val_crop_ratio}; it must be above 0 and at most 1")
        self.crop_scale = (float(crop_scale[0]), float(crop_scale[1]))
        require(
            0 < crop_scale[0] <= crop_scale[1] <= 1,
            f"crop_scale is {self.crop_scale}; it must be two shares above 0 and at most 1, in order",
        )
        require(
            crop == "resized" or self.crop_scale == CROP_SCALE,
            f"crop_scale is {self.crop_scale}, which only data.crop resized takes; crop is {crop}",
        )
        self.root, self.train, self.val = place("root", root), place("train", train), place("val", val)
        self.train_images = None if train_images is None else whole_number("train_images", train_images, 1)
        self.shuffle_buffer = whole_number("shuffle_buffer", shuffle_buffer, 1)
        self.val_share = check_share(val_share)
        self._classes = ClassNumbers(class_names, trained_class_names)
        self._columns = Columns(image_column, label_column)
        self.crop: Crop = one_of("crop", crop, Crop)
        self.flip = bool(flip)
        self.on_error: OnError = one_of("on_error", on_error, OnError)
        self.source: SourceKind = one_of("source", source, SourceKind)
        self._trains_on_all = False  # on what `root` holds, which has no splits

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of the labels, or None; before `setup` those that were given."""
        return self._classes.names

    @property
    def settings(self) -> dict[str, Any]:
        # a validation that is given no place must not take the images that were trained on
        trained = self.root if self._trains_on_all else self.train
        return {
            "class": type(self).__name__,
            "root": None if self._trains_on_all else self._absolute(self.root),
            "train": self._absolute(trained),
            "val": self._absolute(self.val),
            "source": self.source,
            "val_share": self.val_share,
            "class_names": self._classes.given,
            "trained_class_names": self.class_names,
            "image_column": self._columns.image,
            "label_column": self._columns.label,
            "image_size": self.image_size,
            "val_image_size": self.val_image_size,
            "val_crop_ratio": self.val_crop_ratio,
            "val_batch_size": self.val_batch_size,
            "on_error": self.on_error,
        }

    def prepare_data(self) -> None:
        """Lists or converts the images once on each machine; all processes then find that in the cache."""
        with suppress(InputError):  # which `setup` raises in all processes, so that none waits for another
            if self.trainer is not None and self.trainer.state.fn == "fit":
                self._find_train()
            self._find_val()

    def make_train_dataset(self) -> ImageDataset:
        transform = ResizeAndCrop(self.image_size, self.image_size, self.crop, self.flip, self.crop_scale)
        found = self._find_train()
        if isinstance(found, Shards):
            return StreamedShards(
                found, transform, self.on_error, self.shuffle_buffer, self.train_images, self._classes.given
            )
        require(
            self.train_images is None,
            f"train_images is {self.train_images}, and {found.place} holds {len(found)} images, all of which are "
            "trained on: the option is for streamed shards, leave it out; a text list names some of the images",
        )
        self._classes.number_training(found)
        return SourceImages(found, transform, self.on_error, substitute=True)

    def make_val_dataset(self) -> ImageDataset | None:
        return self.make_predict_dataset("val")

    def make_predict_dataset(self, split: Split, side: int | None = None) -> ImageDataset | None:
        if side is None:
            short_side = short_side_for(self.predicted_size, self.val_crop_ratio)
            return self._evaluated(ResizeAndCrop(self.predicted_size, short_side), split)
        return self._evaluated(ResizeAndCrop(side, side), split)

    @property
    def predicted_size(self) -> int:
        return self.val_image_size or self.image_size

    def predict_splits(self, split: PredictedSplit) -> list[Split]:
        splits = super().predict_splits(split)
        return splits if split != "all" or self._has_val_split() or self.val_share is not None else ["train"]

    def _evaluated(self, transform: Transform, split: Split) -> ImageDataset | None:
        found = self._find_val() if split == "val" else self._find_train()
        if found is None:
            return None
        if isinstance(found, Shards):
            return StreamedShards(found, transform, self.on_error, class_names=self._classes.given)
        if split == "train":
            self._classes.number_training(found)
        elif self._train is not None:
            self._classes.number_as_training(found)
        else:
            self._classes.number_alone(found, self._images_that_number(found))
        return SourceImages(found, transform, self.on_error)

    def _find_train(self) -> ImageSource | Shards:
        if self.val_share is None or self._has_val_split():
            return self._all_training_images()
        return self._part(self.val_share, "train")

    def _find_val(self) -> ImageSource | Shards | None:
        """None where there are training images alone, of which none are held out."""
        if self.val is not None:
            return open_images(self.val, self.source, "val", self._columns)
        if self.root is not None and "val" in self._splits:
            return find_split(self.root, "val", self.source, self._columns)
        if self.val_share is not None:
            return self._part(self.val_share, "val")
        if self._train is not None or self.train is not None:
            return None
        if self.root is None:
            raise NoImagesNamed
        return find_split(self.root, "val", self.source, self._columns)  # all images, where there are no splits

    def _all_training_images(self) -> ImageSource | Shards:
        if self.train is not None:
            return open_images(self.train, self.source, "train", self._columns)
        if self.root is None:
            raise NoImagesNamed
        if self._splits:
            return find_split(self.root, "train", self.source, self._columns)
        self._trains_on_all = self.val_share is None
        return open_images(self.root, self.source, "train", self._columns)

    def _part(self, val_share: float, split: Split) -> SourcePart:
        return SourcePart(self._divided, self._parts, val_share, split)

    @cached_property
    def _divided(self) -> ImageSource:
        """All training images, of which `val_share` holds some out."""
        return self._in_any_order(self._all_training_images(), "data.val_share needs")

    @cached_property
    def _parts(self) -> HeldOut:
        assert self.val_share is not None
        return hold_out(self._divided.names, self.val_share, self._divided.place)

    def _has_val_split(self) -> bool:
        return self.val is not None or "val" in self._splits

    @cached_property
    def _splits(self) -> set[str]:
        """What `root` holds by name. Raises InputError where that is not clear."""
        if self.root is None:
            return set()
        return {"train", "val"} if is_on_hub(self.root, self.source) else splits_of(self.root, self.source)

    def _images_that_number(self, found: ImageSource) -> ImageSource | None:
        """The images whose classes number those of validation images; None where there are none, or no need of any."""
        if found.class_names is None and os.sep not in found.names[0]:  # nothing names the class of an image
            return None
        is_held_out = self.val_share is not None and not self._has_val_split()
        has_training = self.train is not None or "train" in self._splits
        # Parquet files name all classes in each split, and the training split would be converted
        if is_held_out or (has_training and isinstance(found, ParquetSource)):
            return found
        if has_training:
            with suppress(InputError):  # of training images, which validation does without
                training = self._all_training_images()
                return training if isinstance(training, ImageSource) else None
        return None

    def _in_any_order(self, found: ImageSource | Shards, what: str) -> ImageSource:
        if isinstance(found, Shards):
            raise InputError(f"{what} images that can be read in any order, and shards are streamed")
        return found

    def _absolute(self, location: str | None) -> str | None:
        """The same place for a process in another folder."""
        if location is None or is_remote(location) or is_on_hub(location, self.source):
            return location
        return "::".join(os.path.abspath(os.path.expanduser(part)) for part in location.split("::"))


class NoImagesNamed(InputError):
    """No option says where the images lie."""

    def __init__(self) -> None:
        super().__init__(
            "data.root is missing: --data.root FOLDER, which holds train and val; or --data.train and --data.val with "
            "the images of each split"
        )


def place(name: str, location: str | os.PathLike[str] | None) -> str | None:
    """A place of images as text. Raises InputError for one that is empty."""
    if location is None:
        return None
    text = os.fspath(location)
    require(bool(text.strip()), f"data.{name} is empty; it takes a folder or another source of images")
    return text
