"""Tests on a device that is no CPU and has no float64; tests/test_other_devices.py runs them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.strategies import SingleDeviceStrategy

from gsq_lightning import GSQTokenizer, TokenizerModule
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.discriminators import DifferentiableAugmentation, DINODiscriminator
from gsq_lightning.losses import EfficientNetLoss, LossWeights
from gsq_lightning.metrics import ReconstructionMetrics, SampleMetrics
from gsq_lightning.runs import RunCheckpoint
from tests.conftest import write_images
from tests.simulated_device import DEVICE, SimulatedTensor, register

Build = Callable[..., GSQTokenizer]
CPU = torch.device("cpu")
register()


class Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


def test_a_training_is_that_of_the_cpu(small_tokenizer: Build, tmp_path: Path) -> None:
    """With validations, EMA and frozen networks, and resumed."""
    write_images(tmp_path / "images" / "train", 8)
    write_images(tmp_path / "images" / "val", 4, seed=1)

    def fit(device: torch.device, folder: str, steps: int, checkpoint: Path | None = None) -> dict[str, Any]:
        torch.manual_seed(0)
        module = TokenizerModule(
            small_tokenizer(),
            DINODiscriminator("random", input_size=28, kernel_size=3, augmentation=DifferentiableAugmentation()),
            EfficientNetLoss("random"),
            ReconstructionMetrics(["psnr", "ssim", "codebook", "rfd_random"], statistics_folder=None),
            LossWeights(lecam=0.1),
            adaptive_weight=True,
        )
        on: list[torch.device] = []
        trainer = Trainer(
            strategy=SingleDeviceStrategy(device, accelerator=Accelerator()),
            max_steps=steps,
            callbacks=[
                RunCheckpoint(dirpath=str(tmp_path / folder)),
                LambdaCallback(on_train_end=lambda _, module: on.append(module.device)),
            ],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = ImageNetDataModule(str(tmp_path / "images"), 32, 4, 2, crop="resized", num_workers=0)
        trainer.fit(module, data, ckpt_path=checkpoint)
        assert on == [device]
        return module.metric_values | {
            name: weights.cpu() for name, weights in module.state_dict().items() if name.startswith("tokenizer")
        }

    there, here = fit(DEVICE, "there", 1), fit(CPU, "here", 1)
    resumed = fit(DEVICE, "there", 2, tmp_path / "there" / "last.ckpt")
    whole = fit(CPU, "here", 2, tmp_path / "here" / "last.ckpt")
    for one, other in ((there, here), (resumed, whole)):
        assert one.keys() == other.keys()
        for name in one:
            # composite functions are other kernels there
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_indices_are_those_of_the_cpu(small_tokenizer: Build) -> None:
    tokenizer = small_tokenizer().eval()
    image = torch.rand(2, 3, 16, 20) * 2 - 1
    indices = tokenizer.encode_indices(image)
    there = tokenizer.to(DEVICE)
    assert isinstance(found := there.encode_indices(image.to(DEVICE)), SimulatedTensor)
    assert torch.equal(found.cpu(), indices)
    picture = (torch.rand(3, 21, 18) * 255).to(torch.uint8)
    assert there.decode_image(there.encode_image(picture)).size == (18, 21)


def test_metrics_are_those_of_the_cpu() -> None:
    image, other = torch.rand(2, 4, 3, 16, 16) * 2 - 1
    values = []
    for device in (CPU, DEVICE):
        metrics = ReconstructionMetrics(["psnr", "psnr_set", "ssim", "rfd_random"], statistics_folder=None)
        samples = SampleMetrics(["rfd_random"], statistics_folder=None)
        metrics.to(device)
        metrics.update(image.to(device), other.to(device))
        for images, real in ((image, True), (other, False)):
            samples.update(images.to(device), real)
        values.append([metrics.compute(), samples.compute()])
    assert values[0] == values[1]
