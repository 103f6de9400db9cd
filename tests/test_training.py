"""The training step: gradients, counting, averaging, checkpoints."""

import copy
import csv
import os
import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, InputError, TokenizerModule, training
from gsq_lightning.cli.source import read_source
from gsq_lightning.discriminators import (
    DINODiscriminator,
    Discriminator,
    PatchDiscriminator,
    StyleGANDiscriminator,
)
from gsq_lightning.errors import ModelNotFinite, TrainingDiverged
from gsq_lightning.files import read_cached
from gsq_lightning.losses import LPIPS, Loss, LossWeights
from gsq_lightning.metrics import ReconstructionMetrics
from gsq_lightning.optim import PaperAdamW
from gsq_lightning.quantizers import QuantizerOutput
from gsq_lightning.runs import RunCheckpoint

Build = Callable[..., GSQTokenizer]


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.1)


def discriminator() -> PatchDiscriminator:
    return PatchDiscriminator(channels=8, num_layers=1)


def images(count: int = 16, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def trainer(folder: Path, **settings: Any) -> Trainer:
    return Trainer(
        **{
            "default_root_dir": folder,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": -1,
            **settings,
        }
    )


def fit(module: TokenizerModule, folder: Path, batch_size: int = 2, **settings: Any) -> Trainer:
    run = trainer(folder, **settings)
    run.fit(module, DataLoader(images(), batch_size=batch_size))  # type: ignore[arg-type]
    return run


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def changed(before: dict[str, Tensor], module: nn.Module) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in module.named_parameters())


def test_a_tokenizer_that_was_loaded_in_eval_mode_is_trained_in_train_mode(
    small_tokenizer: Build, tmp_path: Path
) -> None:
    """Else it would train without dropout, and stop at the first latent that is not finite."""
    small_tokenizer().save_pretrained(tmp_path / "saved")
    modes: list[list[bool]] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            tokenizer = pl_module.tokenizer
            modes.append([part.training for part in (tokenizer.encoder, tokenizer.quantizer, tokenizer.decoder)])

    for trained in ("all", "decoder"):
        module = TokenizerModule(
            GSQTokenizer.from_pretrained(tmp_path / "saved"),
            trained=trained,  # type: ignore[arg-type]
        )
        fit(module, tmp_path, max_steps=1, callbacks=[Watch()])
    assert modes == [[True, True, True], [False, False, True]]


@pytest.mark.parametrize("adversary", [True, False])
def test_global_step_counts_generator_steps(small_tokenizer: Build, tmp_path: Path, adversary: bool) -> None:
    module = TokenizerModule(small_tokenizer(), discriminator() if adversary else None)
    steps: list[int] = []

    class Count(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            steps.append(trainer.global_step)

    fit(module, tmp_path, max_steps=5, callbacks=[Count()])
    assert steps == [1, 2, 3, 4, 5]


def test_late_discriminator_starts_at_its_step(small_tokenizer: Build, tmp_path: Path) -> None:
    module = TokenizerModule(small_tokenizer(), discriminator(), discriminator_start_step=3)
    before = weights(module.discriminator)  # type: ignore[arg-type]
    moved: list[bool] = []
    seen: list[bool] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            moved.append(changed(before, pl_module.discriminator))  # type: ignore[arg-type]
            seen.append("train/loss_adversarial" in trainer.callback_metrics)

    run = fit(module, tmp_path, max_steps=5, callbacks=[Watch()])
    assert moved == [False, False, False, True, True]
    assert seen == [False, False, False, True, True]
    assert run.global_step == 5


ADVERSARIES: dict[str, Callable[[], Discriminator]] = {
    "NLD": discriminator,
    "SGD": lambda: StyleGANDiscriminator(channels=4, multipliers=(1, 2)),
    # without augmentation: with it, untrained features need more steps than a test has
    "DD": lambda: DINODiscriminator(weights="random", input_size=28, kernel_size=3),
}


def test_one_step_equals_the_equations(small_tokenizer: Build, tmp_path: Path) -> None:
    """Both updates of one batch, recomputed with plain autograd."""
    tokenizer, adversary = small_tokenizer(), discriminator()
    module = TokenizerModule(
        copy.deepcopy(tokenizer),
        copy.deepcopy(adversary),
        loss_weights=LossWeights(reconstruction=2.0, quantizer=0.5, adversarial=0.3, discriminator=0.7),
        tokenizer_optimizer=sgd,
        discriminator_optimizer=sgd,
        tokenizer_clip_norm=None,
        discriminator_clip_norm=None,
        ema_decay=None,
    )
    fit(module, tmp_path, max_steps=1)

    image = images()[:2]
    output = tokenizer.encode(image)
    reconstruction = tokenizer.decode(output.quantized)
    logits = adversary(reconstruction).flatten(1).mean(1)
    loss = (
        2.0 * (reconstruction - image).square().mean()
        + 0.5 * output.loss
        + 0.3 * -torch.log(torch.sigmoid(logits)).mean()
    )
    gradients = torch.autograd.grad(loss, list(tokenizer.parameters()))
    for (name, value), gradient, got in zip(
        tokenizer.named_parameters(), gradients, module.tokenizer.parameters(), strict=True
    ):
        torch.testing.assert_close(got, value - 0.1 * gradient, msg=lambda text, name=name: f"{name}: {text}")

    real, fake = adversary(image), adversary(reconstruction.detach())
    loss = 0.7 * 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    gradients = torch.autograd.grad(loss, list(adversary.parameters()))
    assert module.discriminator is not None
    for value, gradient, got in zip(adversary.parameters(), gradients, module.discriminator.parameters(), strict=True):
        torch.testing.assert_close(got, value - 0.1 * gradient)


def test_clipping_bounds_the_gradient(small_tokenizer: Build, tmp_path: Path) -> None:
    def moved(clip: float | None) -> float:
        torch.manual_seed(0)
        tokenizer = small_tokenizer()
        before = weights(tokenizer)
        module = TokenizerModule(tokenizer, tokenizer_optimizer=sgd, tokenizer_clip_norm=clip, ema_decay=None)
        fit(module, tmp_path, max_steps=1)
        return (
            sum(float((value.detach() - before[name]).square().sum()) for name, value in tokenizer.named_parameters())
            ** 0.5
        )

    free = moved(None)
    assert free > 0.1 * 0.01
    assert moved(free / 0.1 / 2) == pytest.approx(free / 2, rel=1e-3)
    assert moved(free / 0.1 * 2) == pytest.approx(free, rel=1e-3)


def test_accumulated_batches_give_the_gradient_of_the_whole(small_tokenizer: Build, tmp_path: Path) -> None:
    """Also where an epoch cuts the group short, batches have different sizes, and LeCam's averages move with steps.

    An epoch of 6 images is a step of 4 and one of 2.
    """

    def train(batch_size: int, accumulate: int) -> tuple[dict[str, Tensor], dict[str, float], list[int]]:
        torch.manual_seed(0)
        module = TokenizerModule(
            small_tokenizer(),
            PatchDiscriminator(channels=8, num_layers=1, norm="none"),  # batch norm would see other batches
            loss_weights=LossWeights(lecam=0.5),
            tokenizer_optimizer=sgd,
            discriminator_optimizer=sgd,
            accumulate_batches=accumulate,
            ema_decay=None,
        )
        steps: list[int] = []

        class Watch(Callback):
            def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
                if pl_module.between_steps:
                    steps.append(trainer.global_step)

        run = trainer(tmp_path, max_steps=5, callbacks=[Watch()])
        run.fit(module, DataLoader(images(6), batch_size=batch_size))  # type: ignore[arg-type]
        logged = {name: float(value) for name, value in run.callback_metrics.items()}
        return {name: value.clone() for name, value in module.state_dict().items()}, logged, steps

    whole, logs, steps = train(batch_size=4, accumulate=1)
    for batch_size, accumulate in ((2, 2), (1, 4)):
        parts, logs_of_parts, steps_of_parts = train(batch_size, accumulate)
        assert steps == steps_of_parts == [1, 2, 3, 4, 5]
        assert logs_of_parts == pytest.approx(logs, rel=1e-3, abs=1e-5)
        for name, value in whole.items():
            torch.testing.assert_close(
                parts[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_each_batch_and_rank_has_a_random_stream_of_its_own(
    small_tokenizer: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for all ranks would augment alike. A batch that is run again has its own, a resumed run the next."""
    seeded: list[tuple[int, int, int]] = []
    monkeypatch.setattr(training, "seed_streams", lambda *numbers: seeded.append(numbers))
    monkeypatch.setattr(Trainer, "global_rank", 1)
    torch.manual_seed(5)
    module = TokenizerModule(small_tokenizer())
    run = fit(module, tmp_path, max_steps=3)
    assert seeded == [(5, batch, 1) for batch in range(3)]
    module.find_nonfinite(images()[:2], number=2)
    assert seeded[-1] == seeded[2]
    run.save_checkpoint(tmp_path / "at_3.ckpt")
    torch.manual_seed(6)  # another process, nobody has given it a seed
    loader: Any = DataLoader(images(), batch_size=2)  # type: ignore[arg-type]
    resumed = trainer(tmp_path, max_steps=4)
    resumed.fit(TokenizerModule(small_tokenizer()), loader, ckpt_path=tmp_path / "at_3.ckpt", weights_only=True)
    assert seeded[-1] == (5, 3, 1)


def test_what_several_ranks_change_is_said_at_the_start(
    small_tokenizer: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = TokenizerModule(small_tokenizer(), discriminator())
    fit(module, tmp_path, max_steps=1)
    assert "are not means over images" not in caplog.text
    monkeypatch.setattr(Trainer, "world_size", 2)
    fit(module, tmp_path, max_steps=1)
    assert "with accumulation or several ranks: the discriminator's batch norm" in caplog.text


def test_a_validation_within_an_accumulation_changes_nothing(small_tokenizer: Build, tmp_path: Path) -> None:
    def trained(validates: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = TokenizerModule(small_tokenizer(), accumulate_batches=2, tokenizer_optimizer=sgd)
        data: Any = DataLoader(images(), batch_size=2)  # type: ignore[arg-type]
        run = trainer(tmp_path, max_steps=2, val_check_interval=1, num_sanity_val_steps=0)
        run.fit(module, data, data if validates else None)
        return weights(module.tokenizer)

    torch.testing.assert_close(trained(True), trained(False), rtol=0, atol=0)


def test_average_follows_the_tokenizer(small_tokenizer: Build, tmp_path: Path) -> None:
    """average ← 0.75 · average + 0.25 · weights after each generator step, from the initial weights on."""
    module = TokenizerModule(small_tokenizer(), discriminator(), ema_decay=0.75, ema_warmup=False)
    assert module.evaluated_tokenizer is module.tokenizer  # never swapped in before its first update
    history = [weights(module.tokenizer)]

    class Record(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            history.append(weights(pl_module.tokenizer))

    fit(module, tmp_path, max_steps=3, callbacks=[Record()])
    assert module.evaluated_tokenizer is not module.tokenizer
    for name, got in module.evaluated_tokenizer.named_parameters():
        expected = history[0][name]
        for step in history[1:]:
            expected = 0.75 * expected + 0.25 * step[name]
        torch.testing.assert_close(got, expected)
    assert module.notes == ["the averaged weights that were evaluated are still 42% initialization"]


def test_the_average_of_a_short_run_is_not_its_initialization(small_tokenizer: Build, tmp_path: Path) -> None:
    """With the default decay of 0.999, whose average would be 96 % initialization after 40 steps."""
    module = TokenizerModule(small_tokenizer())
    fit(module, tmp_path, max_steps=40)
    averaged, raw = (F.mse_loss(one(images()), images()).item() for one in (module, module.tokenizer))
    assert averaged < 1.1 * raw
    assert module.notes == []


def test_without_a_discriminator_it_is_an_autoencoder(small_tokenizer: Build, tmp_path: Path) -> None:
    module = TokenizerModule(small_tokenizer())
    before = F.mse_loss(module.tokenizer(images()), images()).item()
    run = fit(module, tmp_path, max_steps=60)
    assert len(run.optimizers) == 1
    assert F.mse_loss(module.tokenizer(images()), images()).item() < 0.8 * before
    assert not [name for name in run.callback_metrics if "adversarial" in name or "discriminator" in name]


def test_every_loss_term_is_logged(small_tokenizer: Build, tmp_path: Path) -> None:
    perceptual = LPIPS(weights="random")
    module = TokenizerModule(small_tokenizer(), discriminator(), perceptual)
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, DataLoader(images(size=32), batch_size=2))  # type: ignore[arg-type]
    expected = {f"train/loss_{name}" for name in ("reconstruction", "perceptual", "adversarial", "quantizer")}
    expected |= {"train/loss_discriminator", "train/loss_tokenizer", "train/quantizer_commitment"}
    expected |= {f"train/{name}_{side}" for name in ("logits", "accuracy") for side in ("real", "fake")}
    expected |= {f"train/gradient_norm_{network}" for network in ("tokenizer", "discriminator")}
    assert expected == set(run.callback_metrics) - {"train/quantizer_codebook"}
    assert all(run.callback_metrics[name].isfinite() for name in expected)


def test_loggers_get_the_means_of_a_step_at_its_number(small_tokenizer: Build, tmp_path: Path) -> None:
    """Not of the last batch, nor at the number of the batch; validations likewise."""
    module = TokenizerModule(small_tokenizer(), metrics=ReconstructionMetrics(["psnr"]), accumulate_batches=3)
    of_batches: list[float] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Tensor, batch_idx: int) -> None:
            with torch.no_grad():
                of_batches.append(float(F.mse_loss(module.tokenizer(batch), batch)))

    loader = DataLoader(images(), batch_size=2)  # type: ignore[arg-type, var-annotated]
    run = trainer(
        tmp_path,
        max_steps=5,
        logger=CSVLogger(tmp_path, name="", version=""),
        log_every_n_steps=2,
        num_sanity_val_steps=0,
        callbacks=[Watch()],
    )
    run.fit(module, loader, loader)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    losses = {row["step"]: float(row["train/loss_reconstruction"]) for row in rows if row["train/loss_reconstruction"]}
    assert losses == pytest.approx({"2": sum(of_batches[3:6]) / 3, "4": sum(of_batches[8:11]) / 3})
    # 8 batches in an epoch: steps of 3, 3 and 2
    assert [row["step"] for row in rows if row["val/psnr"]] == ["3"]


class _Poison(Callback):
    """Makes the gradients of some batches NaN, as an overflow in the network would."""

    def __init__(self, batches: set[int]) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Tensor, batch_idx: int) -> None:
        if batch_idx in self.batches:
            batch[0, 0, 0, 0] = float("nan")


def test_images_per_second_leave_out_what_was_before_the_first_step(
    small_tokenizer: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on a second in each batch, and 100 between the sanity check and training."""
    now = [0.0]
    monkeypatch.setattr("gsq_lightning.callbacks.progress.time.monotonic", lambda: now[0])

    class Clock(Callback):
        def on_train_start(self, *_: Any) -> None:
            now[0] += 100

        def on_train_batch_start(self, *_: Any) -> None:
            now[0] += 1

    module = TokenizerModule(small_tokenizer(), metrics=ReconstructionMetrics(["psnr"]))
    loader: Any = DataLoader(images(), batch_size=2)  # type: ignore[arg-type]
    for folder in ("first", "second"):
        logger = CSVLogger(tmp_path / folder, name="", version="")
        run = trainer(tmp_path, max_steps=2, logger=logger, log_every_n_steps=1, callbacks=[Clock()])
        run.fit(module, loader, loader)
        rows = list(csv.DictReader((tmp_path / folder / "metrics.csv").open()))
        assert [float(row["train/images_per_second"]) for row in rows if row["train/images_per_second"]] == [2, 2]


def test_a_step_with_non_finite_gradients_is_skipped(small_tokenizer: Build, tmp_path: Path) -> None:
    module = TokenizerModule(small_tokenizer(), PatchDiscriminator(channels=8, num_layers=1, norm="none"))
    run = fit(module, tmp_path, max_steps=6, log_every_n_steps=3, callbacks=[_Poison({1, 2, 4})])
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert run.global_step == 6
    assert run.callback_metrics["train/skipped_steps_tokenizer"] == 3


@pytest.mark.parametrize("network", ["tokenizer", "discriminator"])
def test_one_non_finite_gradient_skips_the_step_of_its_network_alone(
    small_tokenizer: Build, tmp_path: Path, network: str
) -> None:
    """Infinite at one place of one parameter, while losses are finite."""
    module = TokenizerModule(small_tokenizer(), PatchDiscriminator(channels=8, num_layers=1, norm="none"))
    backward_passes = []

    def overflow(gradient: Tensor) -> Tensor:
        backward_passes.append(1)
        if len(backward_passes) != 2:
            return gradient
        gradient = gradient.clone()
        gradient.view(-1)[0] = float("inf")
        return gradient

    next(getattr(module, network).parameters()).register_hook(overflow)
    run = fit(module, tmp_path, max_steps=4)
    assert run.global_step == 4
    assert all(value.isfinite().all() for value in module.state_dict().values())
    for name, skipped in module.stepper.skipped_steps().items():
        assert skipped.in_all == (1 if name == network else 0)


@pytest.mark.parametrize(("steps", "found_at"), [(8, 6), (5, 5)])
def test_training_that_stays_non_finite_stops(
    small_tokenizer: Build, tmp_path: Path, steps: int, found_at: int
) -> None:
    """Where the counter is read: after every third step, or at the end."""
    module = TokenizerModule(small_tokenizer(), max_skipped_steps=3)
    message = f"tokenizer were not finite {found_at - 2} times in a row, last at step {found_at}"
    with pytest.raises(TrainingDiverged, match=message):
        fit(module, tmp_path, max_steps=steps, callbacks=[_Poison(set(range(2, 8)))])
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_schedulers_step_once_per_generator_step(small_tokenizer: Build, tmp_path: Path) -> None:
    module = TokenizerModule(
        small_tokenizer(),
        discriminator(),
        tokenizer_optimizer=sgd,
        discriminator_optimizer=sgd,
        tokenizer_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1),
        discriminator_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5),
        accumulate_batches=2,
    )
    run = fit(module, tmp_path, max_steps=4)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**2)
    assert run.optimizers[1].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_clip_val": 1.0}, "model.tokenizer_clip_norm"),
        ({"accumulate_grad_batches": 2}, "model.accumulate_batches"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_trainers_own_clipping_and_accumulation_are_refused(
    small_tokenizer: Build, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(TokenizerModule(small_tokenizer()), tmp_path, max_steps=1, **settings)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (EMAWeightAveraging(), "EMAWeightAveraging .* set model.ema_decay"),
        (GradientAccumulationScheduler({0: 2}), "GradientAccumulationScheduler .* set model.accumulate_batches"),
        (ModelCheckpoint(train_time_interval=timedelta(0)), "train_time_interval saves nothing .* every_n_train_steps"),
    ],
)
def test_callbacks_that_need_a_step_of_lightnings_are_refused(
    small_tokenizer: Build, tmp_path: Path, callback: Callback, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(TokenizerModule(small_tokenizer()), tmp_path, enable_checkpointing=True, callbacks=[callback])


class _Say(Callback):
    """Logs of its own, as a user's callback would."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        pl_module.log("said", float(trainer.global_step))


def test_what_lightning_logs_by_itself_stands_at_generator_steps(small_tokenizer: Build, tmp_path: Path) -> None:
    """With accumulation it would stand at batches; `logged_metrics` have the last values of all."""
    logger = CSVLogger(tmp_path, name="", version="")
    callbacks = [LearningRateMonitor(), _Say()]
    options: dict[str, Any] = {"max_steps": 5, "logger": logger, "log_every_n_steps": 1, "callbacks": callbacks}
    run = fit(TokenizerModule(small_tokenizer(), accumulate_batches=2), tmp_path, **options)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    for name in ("lr-PaperAdamW", "said"):
        assert {int(row["step"]) for row in rows if row[name]} == set(range(5)), name  # before each step
    last = [row for row in rows if row["train/loss_tokenizer"]][-1]
    assert last["step"] == "5"
    assert float(run.logged_metrics["train/loss_tokenizer"]) == pytest.approx(float(last["train/loss_tokenizer"]))


def test_gradients_of_what_is_computed_in_float32_are_not_rounded(small_tokenizer: Build, tmp_path: Path) -> None:
    """A backward pass under autocast would compute its products in bf16."""
    leaf, factor = torch.randn(32, 32, requires_grad=True), torch.randn(32, 32)

    class Module(TokenizerModule):
        def generator_loss_terms(self, image: Tensor, output: QuantizerOutput, reconstruction: Tensor) -> Loss:
            loss = super().generator_loss_terms(image, output, reconstruction)
            with torch.autocast("cpu", enabled=False):
                loss.add("product", (leaf @ factor).square().sum())
            return loss

    fit(Module(small_tokenizer()), tmp_path, max_steps=1, precision="bf16-mixed")
    assert leaf.grad is not None
    expected = 2 * 2 * leaf @ factor @ factor.T  # of two images
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true", "64-true"])
def test_other_precisions_are_refused(
    small_tokenizer: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(Trainer, "precision", precision)  # on the CPU Lightning takes bf16-mixed for 16-mixed
    with pytest.raises(InputError, match=f"{precision} is not supported; use bf16-mixed or 32-true"):
        fit(TokenizerModule(small_tokenizer()), tmp_path, max_steps=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate_batches": 0}, "accumulate_batches is 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"tokenizer_clip_norm": 0.0}, "tokenizer_clip_norm is 0.0"),
        ({"max_skipped_steps": 0}, "max_skipped_steps is 0"),
        ({"adaptive_weight": True}, "adaptive_weight True has no effect without a discriminator"),
        ({"discriminator_scheduler": lambda optimizer: None}, "discriminator_scheduler has no effect without"),
        ({"ema_decay": None, "ema_warmup": False}, "ema_warmup false has no effect where ema_decay is null"),
    ],
)
def test_wrong_arguments_are_named(small_tokenizer: Build, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TokenizerModule(small_tokenizer(), **arguments)


def test_validation_uses_the_average_and_reports_bits(small_tokenizer: Build, tmp_path: Path) -> None:
    module = TokenizerModule(small_tokenizer(), metrics=ReconstructionMetrics(["psnr", "codebook"]), ema_decay=0.5)
    fit(module, tmp_path, max_steps=4)
    run = trainer(tmp_path)
    (values,) = run.validate(module, DataLoader(images(), batch_size=5), verbose=False)  # type: ignore[arg-type]
    with torch.no_grad():
        module.eval()
        rounded = [((x.clamp(-1, 1) + 1) * 127.5).round() for x in (images(), module.evaluated_tokenizer(images()))]
    errors = (rounded[0] - rounded[1]).square().mean(dim=(1, 2, 3))
    assert values["val/psnr"] == pytest.approx(float((10 * torch.log10(255**2 / errors)).mean()), abs=1e-3)
    assert values["val/bits_per_image"] == 4 * 4 * 2 * 5
    assert values["val/bits_per_pixel"] == 4 * 4 * 2 * 5 / 256
    assert 0 < values["val/codebook_usage"] <= 1
    assert 1 <= values["val/codebook_perplexity"] <= 32


def test_checkpoint_resumes_and_holds_no_frozen_network(small_tokenizer: Build, tmp_path: Path) -> None:
    def module() -> TokenizerModule:
        torch.manual_seed(3)
        return TokenizerModule(small_tokenizer(), discriminator(), LPIPS(weights="random"), ema_decay=0.5)

    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    data = DataLoader(images(size=32), batch_size=2)  # type: ignore[arg-type]
    whole = module()
    trainer(tmp_path, max_steps=4, enable_checkpointing=True, callbacks=[keep]).fit(whole, data)

    checkpoint = torch.load(tmp_path / "step=2.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"tokenizer", "ema", "discriminator"}
    assert len(checkpoint["optimizer_states"]) == 2
    assert checkpoint["global_step"] == 2

    resumed = module()
    run = trainer(tmp_path, max_steps=4)
    run.fit(resumed, data, ckpt_path=tmp_path / "step=2.ckpt")
    assert run.global_step == 4
    assert resumed.ema is not None
    assert resumed.ema.updates == 4

    exported = GSQTokenizer.from_pretrained(tmp_path / "step=4.ckpt")
    for name, value in whole.evaluated_tokenizer.state_dict().items():
        assert torch.equal(exported.state_dict()[name], value)


def test_a_checkpoint_of_another_shape_is_refused_with_the_first_tensors(
    small_tokenizer: Build, tmp_path: Path
) -> None:
    run = fit(TokenizerModule(small_tokenizer()), tmp_path, max_steps=1)
    run.save_checkpoint(tmp_path / "small.ckpt")
    other = TokenizerModule(small_tokenizer(codebook_size=64))
    with pytest.raises(
        InputError, match=r"tokenizer.quantizer.codebook: \(32, 4\) in the file, \(64, 4\) in the model"
    ):
        trainer(tmp_path, max_steps=2).fit(
            other,
            DataLoader(images(), batch_size=2),
            ckpt_path=tmp_path / "small.ckpt",  # type: ignore[arg-type]
        )


def test_prediction_gives_indices_of_the_average(small_tokenizer: Build, tmp_path: Path) -> None:
    module = TokenizerModule(small_tokenizer())
    fit(module, tmp_path, max_steps=1)
    with torch.no_grad():
        module.tokenizer.quantizer.codebook.copy_(module.tokenizer.quantizer.codebook.flip(0))  # type: ignore[operator, arg-type]
    (batch,) = trainer(tmp_path).predict(module, DataLoader(images(3), batch_size=3))  # type: ignore[arg-type, misc]
    module.eval()
    with torch.no_grad():
        assert torch.equal(batch.indices, module.evaluated_tokenizer.encode_indices(images(3)))
    assert batch.label.tolist() == [-1, -1, -1]


def logged(module: TokenizerModule, folder: Path, steps: int, names: list[str], **settings: Any) -> list[list[float]]:
    """Values of logged terms after each batch, NaN where a term was not computed."""
    values: list[list[float]] = []

    class Record(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            values.append([float(trainer.callback_metrics.get(f"train/{name}", float("nan"))) for name in names])

    fit(module, folder, max_steps=steps, callbacks=[Record()], **settings)
    return values


def test_discriminator_trains_before_the_adversarial_loss_counts(small_tokenizer: Build, tmp_path: Path) -> None:
    module = TokenizerModule(small_tokenizer(), discriminator(), discriminator_start_step=1, adversarial_start_step=3)
    values = logged(module, tmp_path, 5, ["loss_discriminator", "loss_adversarial"])
    assert [[value == value for value in row] for row in values] == [
        [False, False],
        [True, False],
        [True, False],
        [True, True],
        [True, True],
    ]


def test_adaptive_weight_scales_the_adversarial_gradient(small_tokenizer: Build, tmp_path: Path) -> None:
    tokenizer, adversary = small_tokenizer(), discriminator()
    module = TokenizerModule(
        copy.deepcopy(tokenizer),
        copy.deepcopy(adversary),
        adaptive_weight=True,
        loss_weights=LossWeights(adversarial=0.4),
        tokenizer_optimizer=sgd,
        discriminator_optimizer=sgd,
        tokenizer_clip_norm=None,
        ema_decay=None,
    )
    ((factor,),) = logged(module, tmp_path, 1, ["adaptive_weight"])
    image = images()[:2]
    output = tokenizer.encode(image)
    reconstruction = tokenizer.decode(output.quantized)
    reconstruction_loss = F.mse_loss(reconstruction, image)
    adversarial_loss = F.softplus(-adversary(reconstruction).flatten(1).mean(1)).mean()
    last = tokenizer.decoder.last_layer
    norms = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction_loss, adversarial_loss)
    ]
    expected = float(norms[0] / (norms[1] + 1e-6))
    assert factor == pytest.approx(expected, rel=1e-4)
    (gradient,) = torch.autograd.grad(reconstruction_loss + 0.4 * expected * adversarial_loss, last)
    torch.testing.assert_close(module.tokenizer.decoder.last_layer, last - 0.1 * gradient)


@pytest.mark.parametrize("term", ["lecam", "gradient_penalty"])
def test_regularizers_change_the_discriminators_step_alone(small_tokenizer: Build, tmp_path: Path, term: str) -> None:
    def trained(weight: float) -> tuple[TokenizerModule, float]:
        torch.manual_seed(0)
        module = TokenizerModule(
            small_tokenizer(),
            discriminator(),
            loss_weights=LossWeights(**{term: weight}),
            tokenizer_optimizer=sgd,
            discriminator_optimizer=sgd,
        )
        ((value,),) = logged(module, tmp_path, 1, [f"loss_{term}"])
        return module, value

    (without, missing), (with_term, value) = trained(0.0), trained(10.0)
    assert missing != missing  # a weight of 0 does not compute it
    assert value > 0
    assert not changed(weights(without.tokenizer), with_term.tokenizer)
    assert changed(weights(without.discriminator), with_term.discriminator)  # type: ignore[arg-type]


def test_lecam_follows_the_logits_of_training(small_tokenizer: Build, tmp_path: Path) -> None:
    module = TokenizerModule(small_tokenizer(), discriminator(), loss_weights=LossWeights(lecam=0.1))
    ((real, fake),) = logged(module, tmp_path, 1, ["logits_real", "logits_fake"])
    assert module.lecam is not None
    assert module.lecam.real_average.item() == pytest.approx(0.001 * real, rel=1e-4)
    assert module.lecam.fake_average.item() == pytest.approx(0.001 * fake, rel=1e-4)


class Uncompiled(Callback):
    """Before training: what the sanity check compiled would be of its batches' size."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert pl_module.tokenizer.encoder._compiled_call_impl is None  # type: ignore[union-attr]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        compiled = pl_module.tokenizer.encoder._compiled_call_impl is not None  # type: ignore[union-attr]
        assert compiled == pl_module.compile_networks


def test_compiled_channels_last_training_gives_the_same_weights(tmp_path: Path) -> None:
    def trained(**settings: Any) -> tuple[dict[str, Tensor], list[str]]:
        torch.manual_seed(0)
        # of as few layers as can be: each takes a second to compile
        quantizer = GroupedSphericalQuantizer(4, 16)
        tokenizer = GSQTokenizer(quantizer, (1, 1), 8, encoder_blocks=1, decoder_blocks=1, norm_groups=4)
        # the adaptive weight, which goes through the decoder's graph several times, from the second step on
        late = {"adaptive_weight": True, "adversarial_start_step": 1}
        module = TokenizerModule(tokenizer, discriminator(), tokenizer_optimizer=sgd, **late, **settings)
        fit(module, tmp_path, max_steps=2, callbacks=[Uncompiled()])
        return weights(module.tokenizer), list(module.state_dict())

    plain, plain_names = trained()
    fast, fast_names = trained(compile_networks=True, channels_last=True)
    assert fast_names == plain_names
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("device", "notes"), [("cuda", 1), ("cpu", 0)])
def test_channels_last_alone_gets_a_note_on_a_gpu(
    device: str,
    notes: int,
    small_tokenizer: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(TokenizerModule, "device", torch.device(device))
    fit(TokenizerModule(small_tokenizer(), channels_last=True), tmp_path, max_steps=1)
    assert caplog.text.count("channels_last without compile_networks makes a GPU slower") == notes


def test_compiled_networks_are_a_graph_each_under_ddp(
    small_tokenizer: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo cuts at the ends of DDP's gradient buckets, here of 10 kB."""
    graphs: list[Any] = []

    def note(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def compiled(network: nn.Module) -> None:
        network._compiled_call_impl = torch.compile(network._call_impl, backend=note)

    monkeypatch.setattr(nn.Module, "compile", compiled)
    monkeypatch.setattr(torch._dynamo.config, "optimize_ddp", True)
    monkeypatch.setattr(torch._functorch.config, "donated_buffer", True)
    module = TokenizerModule(small_tokenizer(), compile_networks=True)
    strategy = DDPStrategy(process_group_backend="gloo", bucket_cap_mb=0.01)
    with mock.patch.dict(os.environ):  # Lightning leaves rank and address there
        fit(module, tmp_path, max_steps=1, strategy=strategy, devices=1)
    torch.distributed.destroy_process_group()
    torch._dynamo.reset()
    assert len(graphs) == 2


def test_a_run_that_diverges_leaves_a_checkpoint_with_finite_weights(small_tokenizer: Build, tmp_path: Path) -> None:
    module = TokenizerModule(small_tokenizer(), discriminator(), max_skipped_steps=2)
    keep = RunCheckpoint(every_n_train_steps=1000, dirpath=str(tmp_path))
    with pytest.raises(TrainingDiverged):
        fit(module, tmp_path, max_steps=8, enable_checkpointing=True, callbacks=[_Poison(set(range(3, 8))), keep])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert checkpoint["training_state"]["skipped"]["tokenizer"] == {"in_a_row": 3, "in_all": 3}
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_both_networks_train_with_every_discriminator(small_tokenizer: Build, tmp_path: Path, adversary: str) -> None:
    """The reconstruction gets better, the discriminator learns to separate images from reconstructions, and both
    stay finite."""
    module = TokenizerModule(
        small_tokenizer(),
        ADVERSARIES[adversary](),
        discriminator_start_step=10,
        adversarial_start_step=30,
        tokenizer_optimizer=lambda parameters: PaperAdamW(parameters, lr=2e-3),
        discriminator_optimizer=lambda parameters: PaperAdamW(parameters, lr=2e-3),
        ema_decay=None,
    )
    names = ["loss_reconstruction", "loss_discriminator", "logits_real", "logits_fake"]
    values = torch.tensor(logged(module, tmp_path, 50, names, batch_size=8))
    reconstruction, judged = values[:, 0], values[10:]
    assert reconstruction[-5:].mean() < 0.7 * reconstruction[:5].mean()
    assert reconstruction[30:].max() < reconstruction[0]  # no collapse when the adversarial loss starts
    learned = judged[10:20].mean(dim=0)  # the generator does not answer yet
    assert learned[1] < judged[:2, 1].mean()
    assert learned[2] > learned[3] + 0.1
    assert all(value.isfinite().all() for value in module.state_dict().values())


def break_down(network: nn.Module, images_of_a_batch: int) -> None:
    """From now on the network's output is NaN for the first images of each batch, outside of training."""

    def poison(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if module.training:
            return output
        output = output.clone()
        output[:images_of_a_batch] = float("nan")
        return output

    network.register_forward_hook(poison)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_validation_of_a_broken_model_ends_with_a_line(small_tokenizer: Build, tmp_path: Path, part: str) -> None:
    module = TokenizerModule(small_tokenizer(), metrics=ReconstructionMetrics(["psnr", "codebook"]))
    break_down(getattr(module.tokenizer, part), images_of_a_batch=1)
    with pytest.raises(ModelNotFinite, match="4 of 16 reconstructions have values that are NaN or infinite"):
        trainer(tmp_path).validate(module, DataLoader(images(), batch_size=5), verbose=False)  # type: ignore[arg-type]


def test_training_continues_when_a_validation_finds_a_broken_model(
    small_tokenizer: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = TokenizerModule(small_tokenizer(), metrics=ReconstructionMetrics(["psnr"]), ema_decay=None)
    break_down(module.tokenizer.decoder, images_of_a_batch=2)
    run = trainer(tmp_path, max_steps=3, num_sanity_val_steps=1, val_check_interval=1)
    loader = DataLoader(images(), batch_size=8)  # type: ignore[arg-type, var-annotated]
    run.fit(module, loader, loader)
    assert run.global_step == 3
    assert run.callback_metrics["val/psnr"].isnan()
    assert run.callback_metrics["val/nonfinite_images"] == 4
    assert "4 of 16 reconstructions have values that are not finite" in caplog.text


class _Fingerprinted(Dataset[Tensor]):
    fingerprint = "these images"

    def __len__(self) -> int:
        return 16

    def __getitem__(self, item: int) -> Tensor:
        return images()[item]


def test_originals_of_the_sanity_check_and_of_limited_runs_are_not_kept(
    small_tokenizer: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSQ_CACHE", str(tmp_path))
    module = TokenizerModule(small_tokenizer(), metrics=ReconstructionMetrics(["rfd_random"]))
    loader = DataLoader(_Fingerprinted(), batch_size=4)
    for limit in (1, 2, 0.5):
        trainer(tmp_path, limit_val_batches=limit).validate(module, loader, verbose=False)
        assert module.metrics is not None
        assert not [note for note in module.metrics.notes if "could not be read" in note]
    trainer(tmp_path, max_steps=1, num_sanity_val_steps=2, limit_val_batches=3).fit(module, loader, loader)
    assert not (tmp_path / "statistics").exists()
    # the sanity check sees two batches; the validation after an epoch all four, and those alone
    run = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=2)
    run.fit(module, loader, loader)
    (path,) = (tmp_path / "statistics").iterdir()
    content = read_cached(path, "file of statistics")
    assert content is not None
    assert int(load(content)["images"]) == 16
    (again,) = trainer(tmp_path).validate(module, loader, verbose=False)
    assert module.metrics is not None
    assert module.metrics.reused == ["rfd_random"]
    assert again["val/rfd_random"] == run.callback_metrics["val/rfd_random"]
    (fresh,) = trainer(tmp_path).validate(module, DataLoader(images(), batch_size=4), verbose=False)  # type: ignore[arg-type]
    assert again["val/rfd_random"] == pytest.approx(fresh["val/rfd_random"], rel=1e-6)


def test_a_subclass_adds_a_loss_term(small_tokenizer: Build, tmp_path: Path) -> None:
    """As in docs/own-project.md."""

    class WithBorders(TokenizerModule):
        def generator_loss_terms(self, image: Tensor, output: QuantizerOutput, reconstruction: Tensor) -> Loss:
            loss = super().generator_loss_terms(image, output, reconstruction)
            border = (reconstruction - image)[..., 0].abs().mean()
            loss.add("border", border, weight=0.5)
            return loss

    values = {}
    for kind in (TokenizerModule, WithBorders):
        torch.manual_seed(0)
        module = kind(small_tokenizer(), tokenizer_optimizer=sgd, tokenizer_clip_norm=None)
        run = fit(module, tmp_path, max_steps=1)
        values[kind] = {name: float(value) for name, value in run.callback_metrics.items()}
    border = values[WithBorders]["train/loss_border"]
    assert border > 0
    total = {kind: values[kind]["train/loss_tokenizer"] for kind in values}
    assert total[WithBorders] == pytest.approx(total[TokenizerModule] + 0.5 * border)


def test_options_given_on_a_resume_beat_the_checkpoint(
    small_tokenizer: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def module(lr: float, scheduler: Any = None, **options: Any) -> TokenizerModule:
        return TokenizerModule(
            small_tokenizer(),
            discriminator(),
            tokenizer_optimizer=lambda parameters: PaperAdamW(parameters, lr=lr),
            tokenizer_scheduler=scheduler,
            **options,
        )

    def resumed(resumed_module: TokenizerModule) -> Trainer:
        run = trainer(tmp_path, max_steps=4)
        run.fit(resumed_module, DataLoader(images(), batch_size=2), ckpt_path=tmp_path / "3.ckpt")  # type: ignore[arg-type]
        return run

    fit(module(1e-3), tmp_path, max_steps=3).save_checkpoint(tmp_path / "3.ckpt")
    assert resumed(module(1e-3)).optimizers[0].param_groups[0]["lr"] == 1e-3
    assert "options given now" not in caplog.text
    assert resumed(module(1e-6)).optimizers[0].param_groups[0]["lr"] == 1e-6
    assert "lr 0.001 → 1e-06" in caplog.text
    schedule: Any = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=4)  # noqa: E731
    assert resumed(module(1e-3, schedule)).optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)
    other_decay = module(1e-3, ema_decay=0.5, ema_warmup=False)
    resumed(other_decay)
    assert other_decay.ema is not None
    assert (other_decay.ema.updates, other_decay.ema.decay) == (4, 0.5)


def test_a_resume_may_change_the_layout(small_tokenizer: Build, tmp_path: Path) -> None:
    """Fused steps pair weights and their moments by their places in memory."""

    def module(channels_last: bool) -> TokenizerModule:
        torch.manual_seed(0)
        fused: Any = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True)  # noqa: E731
        return TokenizerModule(small_tokenizer(), tokenizer_optimizer=fused, channels_last=channels_last)

    first = module(channels_last=False)
    fit(first, tmp_path, max_steps=2).save_checkpoint(tmp_path / "2.ckpt")
    moved: list[dict[str, Tensor]] = []
    for channels_last in (False, True):
        resumed = module(channels_last)
        run = trainer(tmp_path, max_steps=3)
        run.fit(resumed, DataLoader(images(), batch_size=2), ckpt_path=tmp_path / "2.ckpt")  # type: ignore[arg-type]
        moved.append(weights(resumed.tokenizer))
    for name, value in moved[0].items():
        torch.testing.assert_close(moved[1][name], value, rtol=1e-3, atol=1e-4)


def test_averages_that_only_options_decide_on_come_and_go_on_a_resume(
    small_tokenizer: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def module(lecam: float, ema_decay: float | None) -> TokenizerModule:
        return TokenizerModule(
            small_tokenizer(), discriminator(), loss_weights=LossWeights(lecam=lecam), ema_decay=ema_decay
        )

    data = DataLoader(images(), batch_size=2)  # type: ignore[arg-type, var-annotated]
    fit(module(0.0, None), tmp_path, max_steps=2).save_checkpoint(tmp_path / "without.ckpt")
    fit(module(0.1, 0.5), tmp_path, max_steps=2).save_checkpoint(tmp_path / "with.ckpt")
    added = module(0.1, 0.5)
    trainer(tmp_path, max_steps=3).fit(added, data, ckpt_path=tmp_path / "without.ckpt")
    assert added.ema is not None
    assert added.ema.updates == 1
    trainer(tmp_path, max_steps=3).fit(module(0.0, None), data, ckpt_path=tmp_path / "with.ckpt")
    assert "the lecam of the checkpoint is left out" in caplog.text
    assert "the ema of the checkpoint is left out" in caplog.text


def test_a_checkpoint_is_validated_without_the_discriminator(
    small_tokenizer: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is needed is the tokenizer of its config, and nothing of the training."""
    trained = TokenizerModule(small_tokenizer(), discriminator(), loss_weights=LossWeights(lecam=0.1))
    fit(trained, tmp_path, max_steps=2).save_checkpoint(tmp_path / "2.ckpt")
    config = torch.load(tmp_path / "2.ckpt", weights_only=True)["tokenizer_config"]
    module = TokenizerModule(GSQTokenizer.from_config(config), metrics=ReconstructionMetrics(["psnr"]))
    data = DataLoader(images(), batch_size=8)  # type: ignore[arg-type, var-annotated]
    trainer(tmp_path).validate(module, data, ckpt_path=tmp_path / "2.ckpt", verbose=False)
    assert module.evaluated_tokenizer is not module.tokenizer
    for name, value in trained.evaluated_tokenizer.state_dict().items():
        assert torch.equal(module.evaluated_tokenizer.state_dict()[name], value)
    assert "left out" not in caplog.text


def test_validation_and_prediction_compute_no_quantizer_losses(
    small_tokenizer: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the entropy loss they would be 27 times the forward pass."""
    module = TokenizerModule(small_tokenizer(), metrics=ReconstructionMetrics(["psnr"]))

    def forward(self: Any, latent: Tensor) -> None:
        raise AssertionError("computes losses")

    monkeypatch.setattr(type(module.tokenizer.quantizer), "forward", forward)
    data = DataLoader(images(), batch_size=8)  # type: ignore[arg-type, var-annotated]
    trainer(tmp_path).validate(module, data, verbose=False)
    trainer(tmp_path).predict(module, data)


def test_a_checkpoint_of_weights_alone_says_how_they_were_validated(small_tokenizer: Build, tmp_path: Path) -> None:
    """`gsq validate` does likewise; ModelCheckpoint writes such files with `save_weights_only`."""
    metrics = ReconstructionMetrics(["psnr", "rfd_random"], antialias=False, statistics_folder=None)
    run = fit(TokenizerModule(small_tokenizer(), metrics=metrics), tmp_path, max_steps=1)
    run.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    source = read_source(tmp_path / "weights.ckpt", "ema")
    assert source.metrics == ["psnr", "rfd_random"]
    assert source.metric_settings == metrics.options.settings
    assert source.step == 1


def test_strategies_that_shard_a_network_are_refused(
    small_tokenizer: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = TokenizerModule(small_tokenizer())
    module.trainer = trainer(tmp_path)
    monkeypatch.setattr(Trainer, "strategy", FSDPStrategy())
    with pytest.raises(InputError, match=r"trainer.strategy FSDPStrategy is not supported for two networks with an"):
        module.configure_callbacks()


def test_a_module_travels_to_spawned_processes(small_tokenizer: Build) -> None:
    """As ddp_spawn needs it."""
    module = TokenizerModule(small_tokenizer(), discriminator(), loss_weights=LossWeights(lecam=0.1))
    copied = pickle.loads(pickle.dumps(module))
    assert copied.objective.discriminator is copied.discriminator
    assert copied.stepper.networks["tokenizer"] is copied.tokenizer
    assert copied.objective.lecam is copied.lecam
