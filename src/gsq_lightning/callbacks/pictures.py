"""Pictures of a validation: originals, reconstructions and their errors, and how often each code was used."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid, save_image

from gsq_lightning.errors import require_at_least
from gsq_lightning.files import left_out_on_disk_errors, write_whole
from gsq_lightning.pixels import image_of

GAP = 2  # pixels between pictures
LEGIBLE = 192  # pixels: smaller pictures are enlarged to about this
HEADER = 32  # pixels above the pictures, for the words
WORDS = ("original", "ours", "error")
LOGGED_IMAGES = 4  # below each other: the cards of TensorBoard are narrow
FULL_ERROR = 64 / 255  # of the range of pixels: shown white in an error map


class ReconstructionGrid(Callback):
    """Original, reconstruction and error map of images spread evenly over validation, as PNG and in the logs.

    Writes `reconstructions.png` into the log folder after each validation, and logs the first four images to
    TensorBoard and Weights & Biases, to the first also a histogram of how often codes were used (where the module's
    metrics have "codebook"). The images are the same each time; those of another size than the first are not shown.
    Small ones are enlarged, pixel by pixel.

    Args:
        num_images: how many images are shown.
        columns: images beside each other, each with what was made of it.
        error_maps: show the mean absolute error of each pixel, from black for none over red and yellow to white for a
            quarter of the range and more.
        folder: where the picture goes; by default the log folder.
    """

    def __init__(
        self, num_images: int = 16, columns: int = 4, error_maps: bool = True, folder: str | None = None
    ) -> None:
        require_at_least(1, num_images=num_images, columns=columns)
        self.num_images = num_images
        self.columns = columns
        self.error_maps = error_maps
        self._images: list[Tensor] = []
        self.folder = folder
        self._folder: str | None = None
        self.path: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        log_dir = trainer.log_dir  # a collective call
        self._folder = self.folder or log_dir

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        batches = trainer.num_val_batches[dataloader_idx]
        wanted = share_of_batch(self.num_images, batch_idx, batches)
        image = image_of(batch)
        shown = self._images[0].shape[1:] if self._images else image.shape[1:]
        if wanted and len(image) and image.shape[1:] == shown:
            positions = torch.linspace(0, len(image) - 1, min(wanted, len(image))).round().long()
            self._images.append(image[positions.to(image.device)].detach())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._images or self._folder is None:
            return
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            grids = [side_by_side(image, pl_module(image), self.error_maps) for image in self._images]
        pictures = torch.cat(grids).cpu()
        words = WORDS if self.error_maps else WORDS[:2]
        path = Path(self._folder) / "reconstructions.png"
        with left_out_on_disk_errors(str(path)):
            picture = io.BytesIO()
            save_image(picture_of(pictures, words, self.columns), picture, format="png")
            write_whole(path, picture.getvalue())
            self.path = path
        shown = picture_of(pictures[: LOGGED_IMAGES * len(words)], words, columns=1)
        with left_out_on_disk_errors("pictures in the logs"):
            for experiment in tensorboard_writers(trainer):
                experiment.add_image("quality/reconstructions", shown, trainer.global_step)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image("val/reconstructions", [to_pil_image(shown)], trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        uses = codebook_uses(pl_module)
        if uses is None or not trainer.is_global_zero or trainer.sanity_checking or int(uses.sum()) == 0:
            return
        with left_out_on_disk_errors("the histogram of codes in TensorBoard"):
            for experiment in tensorboard_writers(trainer):
                _add_usage_histogram(experiment, uses, trainer.global_step)


def share_of_batch(num_images: int, batch_idx: int, batches: float) -> int:
    """How many of `num_images` a batch contributes so that they spread over all; the first where that is unknown."""
    if math.isinf(batches):
        return 1 if batch_idx < num_images else 0
    return int((batch_idx + 1) * num_images // batches - batch_idx * num_images // batches)


def side_by_side(image: Tensor, reconstruction: Tensor, error_maps: bool) -> Tensor:
    """Two (B, 3, H, W) in [-1, 1] → (2B or 3B, 3, H, W) in [0, 1]: original, reconstruction and error of each image."""
    pictures = [(x.float().nan_to_num().clamp(-1.0, 1.0) + 1.0) / 2.0 for x in (image, reconstruction)]
    if error_maps:
        pictures.append(error_map(*pictures))
    return torch.stack(pictures, dim=1).flatten(0, 1)


def picture_of(pictures: Tensor, words: Sequence[str], columns: int) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1], as many of each image as there are words, in a grid with the words above.

    Args:
        pictures: enlarged by a whole number where they are small.
        words: what the pictures of an image are.
        columns: images beside each other.
    """
    times = max(1, round(LEGIBLE / min(pictures.shape[2:])))
    large = pictures.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    grid = make_grid(large, nrow=len(words) * columns, padding=GAP, pad_value=1.0)
    header = Image.new("RGB", (grid.shape[2], HEADER), "white")
    draw, font = ImageDraw.Draw(header), ImageFont.load_default(size=HEADER * 2 / 3)
    pitch = large.shape[3] + GAP
    for place in range(min(len(words) * columns, len(pictures))):
        middle = GAP + place * pitch + large.shape[3] / 2
        draw.text((middle, HEADER / 2), words[place % len(words)], fill="black", anchor="mm", font=font)
    return torch.cat([pil_to_tensor(header).to(grid) / 255, grid], dim=1)


def error_map(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Two (B, 3, H, W) in [0, 1] → (B, 3, H, W): the mean absolute error of each pixel, from black to white."""
    heat = (image - reconstruction).abs().mean(dim=1, keepdim=True) / FULL_ERROR * 3.0
    return torch.cat([heat, heat - 1.0, heat - 2.0], dim=1).clamp(0.0, 1.0)


def tensorboard_writers(trainer: Trainer) -> list[Any]:
    """The SummaryWriters of the run."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def codebook_uses(pl_module: LightningModule) -> Tensor | None:
    """How often each code was used in the last validation, (V,), by all processes; None where it was not counted."""
    metrics = getattr(pl_module, "metrics", None)
    if metrics is None or "codebook" not in metrics.metrics:
        return None
    uses: Tensor | None = metrics.metrics["codebook"].uses
    return uses


def _add_usage_histogram(experiment: Any, counts: Tensor, step: int) -> None:
    """Distribution of log10(uses) over the codes; codes never used stand at -1."""
    uses = counts.double().cpu()
    values = torch.where(uses > 0, uses.clamp(min=1).log10(), torch.full_like(uses, -1.0))
    bins = torch.linspace(-1.5, math.ceil(float(values.max())) + 0.5, 40)
    experiment.add_histogram("codebook/log10_uses", values, step, bins=bins.tolist())
