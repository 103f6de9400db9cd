"""The second validation on the same images against the first, whose statistics of the originals it reuses, in one run.

    python benchmarks/validate.py                 # 600 images of 64×64, a small tokenizer
    python benchmarks/validate.py --count 2000 --base_channels 32 --device cuda

Inception has random weights; the arithmetic is that of the real ones. "rFID" is the time of its updates and its result,
"all" that of the whole validation, in which the tokenizer's own work is the same both times.
"""

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torchvision.transforms.v2 import functional as F

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, TokenizerModule
from gsq_lightning.data import ImageNetDataModule, PhotographsDataModule
from gsq_lightning.data.sampler import SampleKey
from gsq_lightning.metrics import ReconstructionMetrics


class Times(NamedTuple):
    """Seconds, and the value that they bought."""

    rfid: float
    all: float
    value: float


class TimedMetrics(ReconstructionMetrics):
    """Counts the seconds within it."""

    seconds = 0.0

    def start(self, *arguments: Any) -> None:
        self.seconds = 0.0
        self._timed(super().start, *arguments)

    def update(self, *arguments: Any) -> None:
        self._timed(super().update, *arguments)

    def compute(self) -> dict[str, float]:
        return self._timed(super().compute)

    def _timed(self, method: Any, *arguments: Any) -> Any:
        started = time.perf_counter()
        result = method(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started
        return result


def validate(arguments: argparse.Namespace, folder: Path) -> Times:
    torch.manual_seed(0)
    quantizer = GroupedSphericalQuantizer(latent_channels=32, codebook_size=512, num_groups=8)
    tokenizer = GSQTokenizer(
        quantizer, (1, 2, 4, 8), arguments.base_channels, 1, 1, upsampling="nearest", norm_groups=8
    )
    metrics = TimedMetrics(["rfid"], inception_weights="random", statistics_folder=str(folder / "statistics"))
    module = TokenizerModule(tokenizer, metrics=metrics)
    data = ImageNetDataModule(str(folder / "images"), arguments.size, num_workers=0)
    trainer = Trainer(
        accelerator="gpu" if arguments.device == "cuda" else "cpu", devices=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    started = time.perf_counter()
    (values,) = trainer.validate(module, data, verbose=False)
    return Times(metrics.seconds, time.perf_counter() - started, values["val/rfid"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--base_channels", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print("| run | first rFID, s | second rFID, s | second / first | first all, s | second all, s | second / first |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for run in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "images").mkdir()
            crops = PhotographsDataModule(arguments.size, crops_per_epoch=arguments.count).make_train_dataset()
            for number in range(arguments.count):
                pixels = crops[SampleKey(0, number)].pixels  # type: ignore[union-attr]
                F.to_pil_image(pixels).save(folder / "images" / f"{number:05d}.png")
            first, second = validate(arguments, folder), validate(arguments, folder)
        assert first.value == second.value, (first, second)
        print(
            f"| {run + 1} | {first.rfid:.1f} | {second.rfid:.1f} | {second.rfid / first.rfid:.2f} "
            f"| {first.all:.1f} | {second.all:.1f} | {second.all / first.all:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
