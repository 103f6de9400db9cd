"""A training step queues its work and goes on: between two logged steps nothing waits for the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from gsq_lightning import GSQTokenizer, TokenizerModule
from gsq_lightning.discriminators import DifferentiableAugmentation, DINODiscriminator, ProjectedDiscriminator
from gsq_lightning.losses import LPIPS, EfficientNetLoss, LossWeights
from gsq_lightning.optim import WarmupDecay
from gsq_lightning.quantizers import spherical
from gsq_lightning.quantizers.lookup.dense import dense_nearest_code
from tests.waits import Waits


class DenseIndex:
    """On a CPU the lookup takes other methods than on a GPU; one without choices takes its place."""

    def __init__(self, codes: Tensor, **_: Any) -> None:
        self.codes = codes

    def query(self, points: Tensor) -> Tensor:
        return dense_nearest_code(points, self.codes)


def as_in_f8() -> dict[str, Any]:
    """With LeCam, the adaptive weight and a schedule."""
    return {
        "discriminator": DINODiscriminator(
            weights="random", input_size=28, kernel_size=3, augmentation=DifferentiableAugmentation()
        ),
        "perceptual_loss": LPIPS(weights="random"),
        "loss_weights": LossWeights(lecam=0.001),
        "adaptive_weight": True,
        "tokenizer_scheduler": lambda optimizer: WarmupDecay(optimizer, warmup_steps=3),
    }


def without_network() -> dict[str, Any]:
    return {
        "discriminator": ProjectedDiscriminator(weights="random"),
        "perceptual_loss": EfficientNetLoss(weights="random"),
    }


@pytest.mark.filterwarnings("ignore:.*not.*implemented for this mode")
@pytest.mark.parametrize("options", [as_in_f8, without_network, lambda: {"trained": "decoder"}])
def test_steps_wait_for_the_device_only_where_they_are_logged(
    options: Callable[[], dict[str, Any]],
    small_tokenizer: Callable[..., GSQTokenizer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logs every second step."""
    monkeypatch.setattr(spherical, "nearest_code", lambda points, codes, **_: dense_nearest_code(points, codes))
    monkeypatch.setattr(spherical, "CodeIndex", DenseIndex)
    waits_of_step: dict[int, list[str]] = {}

    class Watched(TokenizerModule):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            with Waits() as waits:
                super().training_step(batch, batch_idx)
            waits_of_step.setdefault(self.global_step, []).extend(waits.found)

    module = Watched(small_tokenizer(), **options())
    run = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=4,
        log_every_n_steps=2,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    run.fit(module, DataLoader(images, batch_size=2))  # type: ignore[arg-type]
    assert waits_of_step[1] == waits_of_step[3] == []
    assert waits_of_step[2]  # the counters were read
    assert all(value.isfinite().all() for value in module.tokenizer.state_dict().values())
