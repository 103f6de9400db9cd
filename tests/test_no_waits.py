"""A training step queues its work and goes on: between two logged steps nothing waits for the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from gsq_lightning import GSQTokenizer, TokenizerModule
from gsq_lightning.discriminators import DifferentiableAugmentation, DINODiscriminator
from gsq_lightning.losses import LPIPS, LossWeights
from gsq_lightning.optim import WarmupDecay
from gsq_lightning.quantizers import spherical
from gsq_lightning.quantizers.lookup.dense import dense_nearest_code
from tests.waits import Waits


@pytest.mark.filterwarnings("ignore:.*not.*implemented for this mode")
def test_steps_wait_for_the_device_only_where_they_are_logged(
    small_tokenizer: Callable[..., GSQTokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that f8.yaml has, LeCam, the adaptive weight and a schedule; logs every second step.

    On a CPU the lookup takes other methods than on a GPU; one without choices takes its place.
    """
    monkeypatch.setattr(spherical, "nearest_code", lambda points, codes, **_: dense_nearest_code(points, codes))
    waits_of_step: dict[int, list[str]] = {}

    class Watched(TokenizerModule):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            with Waits() as waits:
                super().training_step(batch, batch_idx)
            waits_of_step.setdefault(self.global_step, []).extend(waits.found)

    module = Watched(
        small_tokenizer(),
        DINODiscriminator(weights="random", input_size=28, kernel_size=3, augmentation=DifferentiableAugmentation()),
        LPIPS(weights="random"),
        loss_weights=LossWeights(lecam=0.001),
        adaptive_weight=True,
        tokenizer_scheduler=lambda optimizer: WarmupDecay(optimizer, warmup_steps=3),
    )
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
