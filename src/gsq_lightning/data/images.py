"""ImageNet, and any other set of images."""

from contextlib import suppress
from pathlib import Path

from gsq_lightning.data.datamodule import ImageDataModule, ImageDataset
from gsq_lightning.data.dataset import OnError, SourceImages
from gsq_lightning.data.sources import ArchiveSource, ImageSource
from gsq_lightning.data.sources.locate import Shards, SourceKind, Split, find_split, is_remote, open_images
from gsq_lightning.data.stream import StreamedShards
from gsq_lightning.data.transforms import MAX_IMAGE_SIZE, Crop, ResizeAndCrop, short_side_for
from gsq_lightning.errors import InputError


class ImageNetDataModule(ImageDataModule):
    """Images of a `train` and a `val` split, with or without labels.

    Training: short side to `image_size`, center crop, no flip (the paper's section 4). Validation: short side to
    `image_size / val_crop_ratio`, center crop.

    Args:
        root: what holds both splits, each as a folder (of class folders, or any others), a text list, a zip or
            uncompressed tar, several of these (WebDataset shards too), or Parquet files, found by the names train and
            val (or validation): a folder, or with `source` "parquet" the name of a data set on the Hugging Face Hub.
            To validate or predict, images alone will do.
        image_size: side of the square images, in pixels.
        global_batch_size: images per training step over all devices, nodes and accumulated batches.
        val_batch_size: images per device and step in validation, test and prediction.
        val_crop_ratio: in (0, 1]; 1.0 as most of the field evaluates, 0.875 as the paper's reference does
            (256: resize to 292, crop 256).
        crop: in training: "center"; "random" after the resize; or "resized", a rectangle of random area and shape.
        flip: mirror left and right with probability ½ in training.
        num_workers: loading processes per device.
        on_error: what an unreadable image does: "raise" stops with its name; "skip" leaves it out and counts it.
        seed: of order, crops and flips.
        source: what `root`, `train` and `val` are; "auto" tells by what lies there. With "webdataset" shards are read
            from front to back; else those at hand are read in any order.
        train, val: where a split lies, if not in `root`: a folder, list, archive, Parquet file, or pattern of shards
            such as imagenet-train-{0000..1023}.tar, local, a URL, or a `pipe:` command.
        crop_scale: least and greatest share of the image's area that a "resized" crop takes.
        train_images: how many images remote training shards hold; 1,281,167 in ImageNet.
        shuffle_buffer: encoded images that each loading process holds to draw from when training from streamed shards.

    Raises:
        InputError: where images are missing, or sizes make no sense.
    """

    def __init__(
        self,
        root: str | None = None,
        image_size: int = 256,
        global_batch_size: int = 256,
        val_batch_size: int = 32,
        val_crop_ratio: float = 1.0,
        crop: Crop = "center",
        flip: bool = False,
        num_workers: int = 4,
        on_error: OnError = "raise",
        seed: int = 0,
        source: SourceKind = "auto",
        train: str | None = None,
        val: str | None = None,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        train_images: int | None = None,
        shuffle_buffer: int = 1000,
    ) -> None:
        super().__init__(global_batch_size, val_batch_size, num_workers, seed)
        if not 1 <= image_size <= MAX_IMAGE_SIZE:
            raise InputError(f"image_size is {image_size}; it must be from 1 to {MAX_IMAGE_SIZE}")
        if not 0.0 < val_crop_ratio <= 1.0:
            raise InputError(f"val_crop_ratio is {val_crop_ratio}; it must be above 0 and at most 1")
        if not 0.0 < crop_scale[0] <= crop_scale[1] <= 1.0:
            raise InputError(
                f"crop_scale is {tuple(crop_scale)}; it must be two shares above 0 and at most 1, in order"
            )
        for name, place in (("root", root), ("train", train), ("val", val)):
            if place is not None and not place.strip():
                raise InputError(f"data.{name} is empty; it takes a folder or another source of images")
        if train_images is not None and train_images < 1:
            raise InputError(f"train_images is {train_images}; it must be at least 1")
        if shuffle_buffer < 1:
            raise InputError(f"shuffle_buffer is {shuffle_buffer}; it must be at least 1")
        self.save_hyperparameters()
        self.root = root
        self.image_size = image_size
        self.val_crop_ratio = val_crop_ratio
        self.crop: Crop = crop
        self.flip = flip
        self.on_error: OnError = on_error
        self.source: SourceKind = source
        self.train = train
        self.val = val
        self.crop_scale = (crop_scale[0], crop_scale[1])
        self.train_images = train_images
        self.shuffle_buffer = shuffle_buffer

    def prepare_data(self) -> None:
        """Lists or converts the images once on each machine; all processes then find that in the cache."""
        fits = self.trainer is not None and self.trainer.state.fn == "fit"
        splits: tuple[Split, ...] = ("train", "val") if fits else ("val",)
        with suppress(InputError):  # which `setup` raises in all processes, so that none waits for another
            for split in splits:
                self._find(split)

    def make_train_dataset(self) -> ImageDataset:
        transform = ResizeAndCrop(self.image_size, self.image_size, self.crop, self.flip, self.crop_scale)
        found = self._find("train")
        if isinstance(found, Shards):
            return StreamedShards(found, transform, self.seed, self.on_error, self.shuffle_buffer)
        return SourceImages(found, transform, self.seed, self.on_error, substitute=True)

    def make_val_dataset(self) -> ImageDataset:
        transform = ResizeAndCrop(self.image_size, short_side_for(self.image_size, self.val_crop_ratio))
        found = self._find("val")
        if isinstance(found, Shards):
            return StreamedShards(found, transform, self.seed, self.on_error)
        return SourceImages(found, transform, self.seed, self.on_error)

    def count(self, dataset: ImageDataset) -> int:
        if not isinstance(dataset, StreamedShards):
            return super().count(dataset)
        if self.train_images is not None:
            return self.train_images
        if any(is_remote(url) for url in dataset.urls):
            raise InputError(
                "how many images the remote training shards hold is not known; set data.train_images, "
                "1281167 for ImageNet"
            )
        return len(ArchiveSource([Path(url) for url in dataset.urls]))

    def _find(self, split: Split) -> ImageSource | Shards:
        location = self.train if split == "train" else self.val
        if location is not None:
            return open_images(location, self.source, split)
        if self.root is None:
            raise InputError(
                f"data.root is missing: --data.root FOLDER, which holds train and val; or --data.{split} with the "
                "images of that split"
            )
        return find_split(self.root, split, self.source)
