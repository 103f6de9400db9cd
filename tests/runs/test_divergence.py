"""Steps whose gradients are not finite are explained, and a training that diverges may go back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from gsq_lightning import InputError, TokenizerModule
from gsq_lightning.__main__ import main
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.errors import TrainingDiverged
from gsq_lightning.pixels import image_of
from gsq_lightning.run_folders import RunFolder
from gsq_lightning.runs import RunCheckpoint
from gsq_lightning.runs.divergence import Divergence
from tests.cli.test_fit import TINY
from tests.cli.test_fit import images as image_options
from tests.conftest import write_images
from tests.test_training import Build, discriminator, trainer

BATCHES = torch.rand(16, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Poison(Callback):
    """Puts NaN into the second image of some batches of a run."""

    def __init__(self, *batches: int) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        image = image_of(batch)
        if pl_module.batches_seen in self.batches:
            image[1, 0, 0, 0] = torch.nan


class Interrupt(Callback):
    """Dies at the first batch after training has gone back."""

    def __init__(self) -> None:
        self.step = 0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step < self.step:
            raise RuntimeError("the machine is gone")
        self.step = trainer.global_step


def make_module(build: Build) -> TokenizerModule:
    torch.manual_seed(0)
    return TokenizerModule(build(), discriminator(), ema_decay=0.9, max_skipped_steps=3)


def fit(module: TokenizerModule, folder: Path, batches: Tensor, callbacks: list[Callback], steps: int) -> Trainer:
    run = trainer(folder, max_steps=steps, callbacks=callbacks, enable_checkpointing=True)
    run.fit(module, DataLoader(batches.clone(), batch_size=None))  # type: ignore[arg-type]
    return run


def watched(folder: Path, *batches: int, on_divergence: Any = "stop", every: int = 2) -> list[Callback]:
    keep = RunCheckpoint(every_n_train_steps=every, dirpath=str(folder / "checkpoints"))
    return [Poison(*batches), Divergence(on_divergence, RunFolder(folder)), keep]


def report(folder: Path) -> dict[str, Any]:
    (found,) = (folder / "nonfinite").iterdir()
    content: dict[str, Any] = json.loads(found.read_text())
    return content


def same(module: TokenizerModule, other: TokenizerModule) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_a_batch_with_nan_is_named_and_explaining_it_changes_nothing(
    small_tokenizer: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, other = make_module(small_tokenizer), make_module(small_tokenizer)
    fit(module, tmp_path, BATCHES, watched(tmp_path, 4), steps=7)
    fit(other, tmp_path, BATCHES, [Poison(4), RunCheckpoint(dirpath=str(tmp_path / "other"))], steps=7)
    found = report(tmp_path)
    assert found["step"] == 5
    assert found["networks"] == ["tokenizer", "discriminator"]
    assert found["means"]["loss_reconstruction"] == "nan"
    assert found["ranks"][0][0]["images"] == ["epoch 0, image 8", "epoch 0, image 9"]
    assert found["ranks"][0][0]["first_not_finite"] == "image"
    assert found["ranks"][0][0]["terms"]["loss_quantizer"] == "nan"
    assert "step 5 was skipped: the gradients of the tokenizer and the discriminator were not finite" in caplog.text
    assert "first image (rank 0, epoch 0, image 8, epoch 0, image 9)" in caplog.text
    assert same(module, other)


def test_images_of_few_bytes_are_kept(small_tokenizer: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the batch at hand and of three before it, where that many are few bytes, of a step of eight."""
    monkeypatch.setattr("gsq_lightning.runs.divergence.KEPT_BYTES", 4 * BATCHES[0].nbytes)
    module, most = make_module(small_tokenizer), 0
    module.stepper.accumulate_batches = 8
    divergence = Divergence()

    class Count(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            nonlocal most
            batches = [batch for step in divergence._steps for batch in step.batches] + divergence._batches
            most = max(most, sum(batch.image is not None for batch in batches))

    fit(module, tmp_path, BATCHES, [divergence, Count()], steps=2)
    assert most == 4


def test_batches_that_are_dicts_are_explained_too(small_tokenizer: Build, tmp_path: Path) -> None:
    module = make_module(small_tokenizer)
    run = trainer(tmp_path, max_steps=4, callbacks=watched(tmp_path, 2), enable_checkpointing=True)
    run.fit(module, DataLoader([{"image": image} for image in BATCHES.clone()], batch_size=None))  # type: ignore[arg-type]
    assert report(tmp_path)["ranks"][0][0]["images"] == ["epoch 0, image 4", "epoch 0, image 5"]


def test_the_first_module_that_overflows_is_named(small_tokenizer: Build, tmp_path: Path) -> None:
    module = make_module(small_tokenizer)
    marked = BATCHES.clone()
    marked[2, 0] = 1.0  # white, as no other image is
    seen = []

    def overflow(_: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output / 0 if seen[-1] else output

    module.tokenizer.encoder.conv_in.register_forward_pre_hook(lambda _, x: seen.append(bool((x[0][0] == 1.0).all())))
    module.tokenizer.decoder.blocks[1].register_forward_hook(overflow)
    fit(module, tmp_path, marked, watched(tmp_path), steps=3)
    batch = report(tmp_path)["ranks"][0][0]
    assert batch["first_not_finite"] == "tokenizer.decoder.blocks.1"
    assert batch["gradients_not_finite"] == []


def test_gradients_that_overflow_name_their_parameter(small_tokenizer: Build, tmp_path: Path) -> None:
    module = make_module(small_tokenizer)
    bias = module.tokenizer.encoder.conv_in.bias
    assert bias is not None
    bias.register_hook(lambda gradient: gradient / 0)
    fit(module, tmp_path, BATCHES, watched(tmp_path), steps=1)
    content = report(tmp_path)
    assert content["networks"] == ["tokenizer"]
    assert content["ranks"][0][0]["first_not_finite"] is None
    assert content["ranks"][0][0]["gradients_not_finite"] == ["tokenizer.encoder.conv_in.bias"]


def test_rollback_is_a_training_without_those_batches(small_tokenizer: Build, tmp_path: Path) -> None:
    """The checkpoint of step 4, then batches 8 to 11: with those of 4 to 7 it diverges, and writes no checkpoint."""
    module, other = make_module(small_tokenizer), make_module(small_tokenizer)
    run = fit(module, tmp_path, BATCHES, watched(tmp_path, *range(4, 8), on_divergence="rollback"), steps=8)
    assert run.global_step == 8
    fit(other, tmp_path, torch.cat([BATCHES[:4], BATCHES[8:12]]), [RunCheckpoint(dirpath=str(tmp_path))], steps=8)
    assert same(module, other)
    for optimizer, expected in zip(run.optimizers, other.trainer.optimizers, strict=True):
        torch.testing.assert_close(optimizer.state_dict(), expected.state_dict(), rtol=0, atol=0)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["Divergence"] == {"returned_to": 4}
    assert report(tmp_path)["step"] == 5


def test_a_resume_may_change_the_layout_and_go_back_to_its_start(small_tokenizer: Build, tmp_path: Path) -> None:
    """Fused steps pair weights and their moments by their places in memory."""
    fused: Any = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True)  # noqa: E731

    def module(channels_last: bool) -> TokenizerModule:
        torch.manual_seed(0)
        return TokenizerModule(
            small_tokenizer(), tokenizer_optimizer=fused, max_skipped_steps=2, channels_last=channels_last
        )

    fit(module(False), tmp_path, BATCHES, [RunCheckpoint(dirpath=str(tmp_path))], steps=2)
    moved: list[dict[str, Tensor]] = []
    for channels_last in (False, True):
        resumed = module(channels_last)
        callbacks = watched(tmp_path / str(channels_last), 2, 3, on_divergence="rollback", every=100)
        run = trainer(tmp_path, max_steps=5, callbacks=callbacks, enable_checkpointing=True)
        data = DataLoader(BATCHES.clone(), batch_size=None)  # type: ignore[arg-type, var-annotated]
        run.fit(resumed, data, ckpt_path=tmp_path / "last.ckpt")
        moved.append(resumed.tokenizer.state_dict())
    for name, value in moved[0].items():
        torch.testing.assert_close(moved[1][name], value, rtol=1e-3, atol=1e-4)


def test_steps_before_a_discriminator_that_diverged_are_not_taken_for_divergent(
    small_tokenizer: Build, tmp_path: Path
) -> None:
    """It starts at step 6, diverges at once, and training goes back to the checkpoint of step 5."""
    module = TokenizerModule(small_tokenizer(), discriminator(), discriminator_start_step=6, max_skipped_steps=3)
    run = fit(module, tmp_path, BATCHES, watched(tmp_path, 6, 7, 8, on_divergence="rollback", every=5), steps=10)
    assert run.global_step == 10
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["Divergence"] == {
        "returned_to": 5
    }
    assert report(tmp_path)["step"] == 7


def test_a_rollback_to_the_start_averages_from_the_weights_that_were_loaded(
    small_tokenizer: Build, tmp_path: Path
) -> None:
    """As --init_from loads them: not from the random ones that the module was made with."""

    def make() -> TokenizerModule:
        torch.manual_seed(0)
        module = TokenizerModule(small_tokenizer(), ema_decay=0.9, ema_warmup=False, max_skipped_steps=3)
        module.tokenizer.load_state_dict(small_tokenizer().state_dict())
        return module

    module, other = make(), make()
    fit(module, tmp_path, BATCHES, watched(tmp_path, 0, 1, 2, on_divergence="rollback"), steps=4)
    fit(other, tmp_path, BATCHES[3:], [RunCheckpoint(dirpath=str(tmp_path / "other"))], steps=4)
    assert same(module, other)


def test_at_the_same_place_again_it_stops(small_tokenizer: Build, tmp_path: Path) -> None:
    module = make_module(small_tokenizer)
    callbacks = watched(tmp_path, *range(4, 16), on_divergence="rollback")
    with pytest.raises(
        TrainingDiverged, match="diverged at step 9, and it had gone back to the checkpoint, of step 4,"
    ):
        fit(module, tmp_path, BATCHES, callbacks, steps=16)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert checkpoint["training_state"]["batches"] == 9
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_a_run_that_dies_after_it_went_back_is_resumed_behind_those_batches(
    small_tokenizer: Build, tmp_path: Path
) -> None:
    write_images(tmp_path / "train", 8)
    write_images(tmp_path / "val", 1)

    def run(folder: Path, *others: Callback, checkpoint: Path | None = None) -> TokenizerModule:
        module = make_module(small_tokenizer)
        callbacks = [*watched(folder, *range(4, 7), on_divergence="rollback"), *others]
        data = ImageNetDataModule(str(tmp_path), 16, global_batch_size=2, num_workers=0)
        options: dict[str, Any] = {"enable_checkpointing": True, "limit_val_batches": 0, "max_steps": 7}
        trainer(folder, callbacks=callbacks, **options).fit(
            module, data, ckpt_path=checkpoint and str(checkpoint), weights_only=True
        )
        return module

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="the machine is gone"):
        run(tmp_path / "dies", Interrupt())
    again = run(tmp_path / "again", checkpoint=tmp_path / "dies" / "checkpoints" / "last.ckpt")
    assert same(again, whole)
    assert report(tmp_path / "whole")["ranks"][0][0]["images"][0].endswith(".png")
    assert not (tmp_path / "again" / "nonfinite").exists()


def test_the_command_goes_back_once_and_then_stops(
    image_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model.tokenizer_optimizer.lr=1e30", "--model.max_skipped_steps=2", "--on_divergence=rollback"]
    where = [f"--trainer.logger.save_dir={tmp_path / 'runs'}", "--trainer.limit_val_batches=0", "--model.metrics=null"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "quickstart.yaml", *TINY, *image_options(image_root), *where, *options])
    assert stop.value.code == 1
    assert "had gone back to the checkpoint, of step 0," in capsys.readouterr().err
    assert (tmp_path / "runs/quickstart/version_0/nonfinite/batch=1.json").is_file()


def test_other_words_are_refused_and_rollback_needs_checkpoints(small_tokenizer: Build, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="on_divergence is 'back'; it must be one of: stop, rollback"):
        Divergence("back")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rollback needs checkpoints"):
        trainer(tmp_path, max_steps=1, callbacks=[Divergence("rollback")]).fit(
            make_module(small_tokenizer),
            DataLoader(BATCHES, batch_size=None),  # type: ignore[arg-type]
        )
