"""What writing tokens costs over the encoder alone, and how long reading them takes.

    python benchmarks/tokens.py --images 512 --image_size 128

The same tokenizer encodes the same batches, in memory, in a plain loop; then `gsq predict`'s callback and data module
write their tokens from image files. Rounds alternate, and the ratio of each pair is taken. Where other programs use the
processor too, look at the CPU time of the main process, which leaves the workers out.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from PIL import Image

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, TokenizerModule
from gsq_lightning.callbacks import TokenWriter
from gsq_lightning.cli.trainer import keep_freed_memory
from gsq_lightning.data import ImageNetDataModule, TokenDataset
from gsq_lightning.pixels import pixels_to_image
from gsq_lightning.tokens.facts import FACTS_FILE
from gsq_lightning.tokens.shards import shard_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--base_channels", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command does
    torch.manual_seed(0)
    quantizer = GroupedSphericalQuantizer(16, 8192, 8)
    tokenizer = GSQTokenizer(quantizer, base_channels=arguments.base_channels).eval()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_images(folder / "images", arguments.images, arguments.image_size)
        data = ImageNetDataModule(
            str(folder / "images"),
            arguments.image_size,
            val_batch_size=arguments.batch_size,
            num_workers=arguments.num_workers,
        )
        print("| encoder alone, s | gsq predict, s | more | CPU of the encoder, s | of the main process, s | more |")
        print("|---|---|---|---|---|---|")
        more = []
        for _ in range(arguments.rounds):
            encoded = time_encoder(tokenizer, data)
            written = time_writer(tokenizer, data, folder / "tokens")
            more.append([after / before - 1 for before, after in zip(encoded, written, strict=True)])
            print(
                f"| {encoded.wall:.2f} | {written.wall:.2f} | {more[-1][0]:.1%} "
                f"| {encoded.cpu:.2f} | {written.cpu:.2f} | {more[-1][1]:.1%} |",
                flush=True,
            )
        wall, cpu = (statistics.median(part) for part in zip(*more, strict=True))
        print(f"\nmedian over the encoder alone: {wall:.1%} more time, {cpu:.1%} more CPU time of the main process")
        print(f"a million images: opened in {time_opening(folder):.2f} s")


def write_images(folder: Path, images: int, size: int) -> None:
    (folder / "val").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(images):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / "val" / f"{number:06d}.jpg")


class Seconds(NamedTuple):
    """On the clock, and of the main process on the processor."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Seconds":
        return cls(time.perf_counter(), time.process_time())

    def since(self) -> "Seconds":
        return Seconds(time.perf_counter() - self.wall, time.process_time() - self.cpu)


@torch.no_grad()
def time_encoder(tokenizer: GSQTokenizer, data: ImageNetDataModule) -> Seconds:
    """What encoding and lookup take, the images at hand."""
    data.setup("validate")
    batches = [pixels_to_image(batch.image) for batch in data.val_dataloader()]  # type: ignore[union-attr]
    tokenizer.encode_indices(batches[0])
    start = Seconds.now()
    for image in batches:
        tokenizer.encode_indices(image)
    return start.since()


def time_writer(tokenizer: GSQTokenizer, data: ImageNetDataModule, folder: Path) -> Seconds:
    """From the first batch that is asked for to the last file."""
    shutil.rmtree(folder, ignore_errors=True)
    writer = Timed(str(folder), images_per_shard=128)
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[writer], enable_progress_bar=False, enable_model_summary=False
    )
    trainer.predict(TokenizerModule(tokenizer, ema_decay=None), data, return_predictions=False)
    return writer.seconds


class Timed(TokenWriter):
    """Knows how long it took from the start of prediction on."""

    def on_predict_start(self, *_: object) -> None:
        self.start = Seconds.now()

    def on_predict_epoch_end(self, *_: object) -> None:
        self.seconds = self.start.since()


def time_opening(folder: Path) -> float:
    """Seconds to open a million images, 100 shards of 10,000, and read one of them."""
    source, large = folder / "tokens" / "val", folder / "large"
    large.mkdir()
    facts = (source / FACTS_FILE).read_text()
    shards = TokenDataset(source).facts.shards
    (large / FACTS_FILE).write_text(facts.replace(f'"shards": {shards}', '"shards": 100'))
    from safetensors.torch import save_file

    save_file(
        {
            "indices": torch.zeros(10_000, 16, 16, 8, dtype=torch.uint16),
            "label": torch.zeros(10_000, dtype=torch.int64),
            "copy": torch.zeros(10_000, dtype=torch.uint8),
            "names": torch.zeros(10_000, dtype=torch.uint8),
            "name_ends": torch.arange(1, 10_001),
        },
        large / shard_name(0),
    )
    for number in range(1, 100):
        (large / shard_name(number)).hardlink_to(large / shard_name(0))
    start = time.perf_counter()
    dataset = TokenDataset(large)
    dataset[len(dataset) // 2]
    assert len(dataset) == 1_000_000
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
