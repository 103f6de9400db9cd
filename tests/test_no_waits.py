"""A training step queues its work and goes on: between two logged steps nothing waits for the device."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from gsq_lightning import GSQTokenizer, TokenizerModule, indices
from gsq_lightning.discriminators import DifferentiableAugmentation, DINODiscriminator, ProjectedDiscriminator
from gsq_lightning.losses import LPIPS, EfficientNetLoss, LossWeights
from gsq_lightning.optim import WarmupDecay
from gsq_lightning.quantizers import spherical
from gsq_lightning.quantizers.lookup.dense import dense_nearest_code
from gsq_lightning.runs.divergence import Divergence
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


class Watch(Callback):
    """Surrounds steps, callbacks and Lightning's own work included, by a context.

    Args:
        context: of a step, by its number.
    """

    def __init__(self, context: Callable[[int], AbstractContextManager[Any]]) -> None:
        self.context = context
        self.entered = ExitStack()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.entered.enter_context(self.context(trainer.global_step + 1))


class EndOf(Callback):
    """Behind all other callbacks."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_batch_end(self, *_: Any) -> None:
        self.watch.entered.close()

    def on_exception(self, *_: Any) -> None:
        self.watch.entered.close()


def train(
    module: TokenizerModule,
    folder: Path,
    context: Callable[[int], AbstractContextManager[Any]],
    steps: int,
    accelerator: str,
) -> None:
    """Logs every second step."""
    watch = Watch(context)
    run = Trainer(
        default_root_dir=folder,
        accelerator=accelerator,
        devices=1,
        max_steps=steps,
        log_every_n_steps=2,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[watch, Divergence(), EndOf(watch)],
    )
    images = torch.rand(2 * steps, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    run.fit(module, DataLoader(images, batch_size=2))  # type: ignore[arg-type]
    assert run.global_step == steps
    assert all(value.isfinite().all() for value in module.tokenizer.state_dict().values())


@pytest.mark.filterwarnings("ignore:.*not.*implemented for this mode")
@pytest.mark.parametrize("options", [as_in_f8, without_network, lambda: {"trained": "decoder"}])
def test_steps_wait_for_the_device_only_where_they_are_logged(
    options: Callable[[], dict[str, Any]],
    small_tokenizer: Callable[..., GSQTokenizer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spherical, "nearest_code", lambda points, codes, **_: dense_nearest_code(points, codes))
    monkeypatch.setattr(spherical, "CodeIndex", DenseIndex)
    monkeypatch.setattr(spherical, "COMPARE_WITHOUT_WAITING", ())  # as on a GPU
    monkeypatch.setattr(indices, "is_at_hand", lambda _: False)  # likewise
    waits = {step: Waits() for step in range(1, 5)}
    train(TokenizerModule(small_tokenizer(), **options()), tmp_path, waits.__getitem__, steps=4, accelerator="cpu")
    assert waits[1].found == waits[3].found == []
    assert waits[2].found  # the counters were read


@contextmanager
def refusing_waits(step: int) -> Iterator[None]:
    """Has torch raise where it would wait for a GPU, in steps that are not logged; the first one may load kernels."""
    torch.cuda.set_sync_debug_mode("error" if step > 1 and step % 2 else "default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [as_in_f8, without_network, lambda: {"trained": "decoder"}])
def test_steps_on_a_gpu_do_not_wait(
    options: Callable[[], dict[str, Any]], small_tokenizer: Callable[..., GSQTokenizer], tmp_path: Path
) -> None:
    train(TokenizerModule(small_tokenizer(), **options()), tmp_path, refusing_waits, steps=6, accelerator="gpu")


WAITING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0, 0].item(),
    "if": lambda x: bool(x[0, 0] > 0),
    "mask": lambda x: x[x > 0],
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "number": lambda x: torch.tensor(1.0, device=x.device),
    "as_tensor": lambda x: torch.as_tensor([1.0], device=x.device),
    "list": lambda x: x[[0, 1]],
    "solve": lambda x: torch.linalg.solve(x, x),
    "inv": torch.linalg.inv,
    "cholesky": torch.linalg.cholesky,
    "eigh": torch.linalg.eigh,
    "unique_consecutive": torch.unique_consecutive,
    "allclose": lambda x: torch.allclose(x, x),
    "array": np.asarray,
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_seen(name: str) -> None:
    with Waits() as waits:
        WAITING[name](torch.eye(2))
    assert waits.found


def test_what_only_queues_is_not_counted() -> None:
    x = torch.eye(2)
    with Waits() as waits:
        x.masked_fill_(x > 0, 2.0)
        x[0, 0] = torch.where(x > 0, x, 3.0).amax()
        torch.full((2,), 3.0).add_(x[torch.arange(2), x.argmax(dim=1)])
    assert waits.found == []
