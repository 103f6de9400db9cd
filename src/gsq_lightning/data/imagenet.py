"""ImageNet, and any other folder of images."""

from pathlib import Path

from gsq_lightning.data.folder import FolderImages, OnError
from gsq_lightning.data.module import ImageDataModule, ImageDataset
from gsq_lightning.data.transforms import Crop, ResizeAndCrop
from gsq_lightning.errors import InputError

VAL_SPLIT = "val"
TRAIN_SPLIT = "train"


class ImageNetDataModule(ImageDataModule):
    """Images below `root/train` and `root/val`, with or without class folders.

    Training: short side to `image_size`, center crop, no flip (the paper's section 4). Validation: short side to
    `image_size / val_crop_ratio`, center crop.

    Args:
        root: folder that holds `train` and `val`. To validate or predict, a folder of images alone will do.
        image_size: side of the square images, in pixels.
        global_batch_size: images per training step over all devices, nodes and accumulated batches.
        val_batch_size: images per device and step in validation, test and prediction.
        val_crop_ratio: in (0, 1]; 1.0 as most of the field evaluates, 0.875 as the paper's reference does
            (256: resize to 292, crop 256).
        crop: "center", or "random" after the resize, in training.
        flip: mirror left and right with probability ½ in training.
        num_workers: loading processes per device.
        on_error: what an unreadable image does: "raise" stops with its name; "skip" leaves it out and counts it.
        seed: of order, crops and flips.

    Raises:
        InputError: where folders are missing or empty, or sizes make no sense.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 256,
        global_batch_size: int = 256,
        val_batch_size: int = 32,
        val_crop_ratio: float = 1.0,
        crop: Crop = "center",
        flip: bool = False,
        num_workers: int = 4,
        on_error: OnError = "raise",
        seed: int = 0,
    ) -> None:
        super().__init__(global_batch_size, val_batch_size, num_workers, seed)
        if image_size < 1:
            raise InputError(f"image_size is {image_size}; it must be at least 1")
        if not 0.0 < val_crop_ratio <= 1.0:
            raise InputError(f"val_crop_ratio is {val_crop_ratio}; it must be above 0 and at most 1")
        self.save_hyperparameters()
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.val_crop_ratio = val_crop_ratio
        self.crop: Crop = crop
        self.flip = flip
        self.on_error: OnError = on_error

    def make_train_dataset(self) -> ImageDataset:
        transform = ResizeAndCrop(self.image_size, self.image_size, self.crop, self.flip)
        return FolderImages(self._split(TRAIN_SPLIT), transform, self.seed, self.on_error, substitute=True)

    def make_val_dataset(self) -> ImageDataset:
        transform = ResizeAndCrop(self.image_size, int(self.image_size / self.val_crop_ratio))
        return FolderImages(self._split(VAL_SPLIT), transform, self.seed, self.on_error)

    def _split(self, name: str) -> Path:
        if not self.root.is_dir():
            raise InputError(f"there is no folder {self.root}; set data.root to the folder that holds train and val")
        if (self.root / name).is_dir():
            return self.root / name
        if name == VAL_SPLIT and not (self.root / TRAIN_SPLIT).is_dir():
            return self.root
        raise InputError(f"{self.root} holds no folder {name!r}; data.root must hold {TRAIN_SPLIT!r} and {VAL_SPLIT!r}")
