"""Training on several processes: what one would do with the same global batches. Real processes, connected by gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed, multiprocessing

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, TokenizerModule
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.discriminators import PatchDiscriminator
from gsq_lightning.errors import TrainingDiverged
from gsq_lightning.losses import LossWeights
from gsq_lightning.run_folders import RunFolder
from gsq_lightning.runs import RunCheckpoint
from gsq_lightning.runs.divergence import Divergence
from tests.conftest import WITHOUT_WEIGHTS, write_images
from tests.test_two_ranks import free_port

GLOBAL_BATCH = 6
STEPS = 30


class Poison(Callback):
    """Puts NaN into one image of one process, in some training batches."""

    def __init__(self, rank: int, batches: range) -> None:
        self.rank = rank
        self.batches = batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and trainer.fit_loop.epoch_loop.total_batch_idx + 1 in self.batches:
            batch.image[0, 0, 0, 0] = float("nan")


def make_module(**options: Any) -> TokenizerModule:
    torch.manual_seed(1)
    quantizer = GroupedSphericalQuantizer(8, 32, 2)
    tokenizer = GSQTokenizer(quantizer, (1, 2), 8, encoder_blocks=1, decoder_blocks=1, norm_groups=4)
    return TokenizerModule(
        tokenizer,
        PatchDiscriminator(channels=4, num_layers=1, norm="none"),  # batch norm would see other batches
        loss_weights=LossWeights(lecam=0.1),
        adaptive_weight=True,
        ema_decay=0.9,
        **options,
    )


def fit(module: TokenizerModule, root: str, world: int, steps: int, callbacks: list[Callback], **options: Any) -> None:
    strategy: Any = "auto"
    if world > 1:
        strategy = DDPStrategy(process_group_backend="gloo")  # as `strategy: ddp`, with its defaults
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy=strategy,
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=callbacks,
        **{"enable_checkpointing": False, **options},
    )
    trainer.fit(module, ImageNetDataModule(root, 16, GLOBAL_BATCH, flip=True, num_workers=0))


def plain_steps(parameters: Any) -> torch.optim.Optimizer:
    """Steps that show the gradients as they are."""
    return torch.optim.SGD(parameters, lr=1.0)


def train(root: str, world: int) -> dict[str, Any]:
    """What a process has after each of five trainings."""
    found: dict[str, Any] = {}
    # D is trained from the second step on
    module = make_module(
        tokenizer_optimizer=plain_steps,
        discriminator_optimizer=plain_steps,
        tokenizer_clip_norm=None,
        discriminator_clip_norm=None,
        discriminator_start_step=1,
    )
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, root, world, 2, [])
    found["gradients"] = {name: before[name] - value for name, value in module.state_dict().items()}

    module = make_module(discriminator_start_step=5)
    fit(module, root, world, STEPS, [])
    found["many steps"] = module.state_dict()

    module = make_module()
    fit(module, root, world, 6, [Poison(rank=world - 1, batches=range(2, 4))])
    found["one process poisoned"] = module.state_dict()
    found["skipped"] = {name: skipped.in_all for name, skipped in module.stepper.skipped_steps().items()}

    module = make_module(trained="decoder")
    fit(module, root, world, 4, [])
    found["decoder alone"] = module.state_dict()

    module = make_module(max_skipped_steps=3)
    try:
        fit(module, root, world, 20, [Poison(rank=world - 1, batches=range(4, 100))])
    except TrainingDiverged as error:
        found["diverged"] = str(error)
    found["weights after divergence"] = module.tokenizer.state_dict()
    return found


def _train(rank: int, ports: dict[int, int], folder: str) -> None:
    """As each of three ranks, and then the first two of them as each of two: a process takes seconds to import."""
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1")
    for world, port in ports.items():
        if rank < world:
            os.environ.update(WORLD_SIZE=str(world), MASTER_PORT=str(port))
            torch.save(train(f"{folder}/images", world), f"{folder}/{world}-{rank}.pt")
            distributed.destroy_process_group()


def test_two_and_three_processes_train_like_one(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "train", 20)
    write_images(tmp_path / "images" / "val", 1)
    alone = train(str(tmp_path / "images"), 1)
    multiprocessing.spawn(_train, args=({3: free_port(), 2: free_port()}, str(tmp_path)), nprocs=3)
    for world in (2, 3):
        processes = [torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
        for rank, process in enumerate(processes):
            for name, gradient in alone["gradients"].items():
                # float32 sums over images in another order: 1e-7 of the largest term, and terms nearly cancel
                torch.testing.assert_close(
                    process["gradients"][name],
                    gradient,
                    rtol=1e-3,
                    atol=2e-5,
                    msg=lambda text, name=name: f"{name}: {text}",
                )
            for name, value in make_module().tokenizer.state_dict().items():
                for network in ("tokenizer", "ema.module"):
                    after = process["decoder alone"][f"{network}.{name}"]
                    assert torch.equal(after, value) == name.startswith(("encoder.", "quantizer.")), name
            for training in ("many steps", "decoder alone", "one process poisoned", "weights after divergence"):
                for name, value in processes[0][training].items():
                    assert torch.equal(process[training][name], value), f"{training}, rank {rank}: {name}"
                    assert value.isfinite().all(), name
            assert process["skipped"] == alone["skipped"] == {"tokenizer": 2, "discriminator": 2}
            assert "were not finite 3 times in a row, last at step 6" in process["diverged"]


def go_back(folder: Path, world: int) -> dict[str, Any]:
    """What a process has after a training that went back from two steps with NaN in the images of the last process."""
    module = make_module(max_skipped_steps=2)
    run = RunFolder(folder / f"run-{world}")
    keep = RunCheckpoint(every_n_train_steps=2, dirpath=str(run.checkpoints))
    poison = Poison(rank=world - 1, batches=range(3, 5))  # steps 3 and 4
    callbacks: list[Callback] = [poison, Divergence("rollback", run), keep]
    fit(module, str(folder / "images"), world, 5, callbacks, enable_checkpointing=True)
    return module.state_dict()


def _go_back(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.save(go_back(Path(folder), world), f"{folder}/{rank}.pt")


def test_two_processes_go_back_together_and_name_the_images_of_both(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "train", 20)
    write_images(tmp_path / "images" / "val", 1)
    alone = go_back(tmp_path, 1)
    multiprocessing.spawn(_go_back, args=(2, free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)
    (report,) = (tmp_path / "run-2" / "nonfinite").iterdir()
    found = json.loads(report.read_text())["ranks"]
    assert [batch["first_not_finite"] for (batch,) in found] == [None, "image"]
    assert [len(batch["images"]) for (batch,) in found] == [GLOBAL_BATCH // 2] * 2


def children_of(process: int) -> list[int]:
    listing = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in listing.split()]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("victim", ["first", "second"])
def test_when_a_process_dies_the_others_end(tmp_path: Path, victim: str) -> None:
    write_images(tmp_path / "images" / "train", 8)
    write_images(tmp_path / "images" / "val", 1)
    command = [
        *(sys.executable, "-m", "gsq_lightning", "fit", "--config", "quickstart.yaml", "--data=ImageNetDataModule"),
        *("--data.root=images", "--data.image_size=16", "--data.global_batch_size=4", "--data.num_workers=0"),
        *("--trainer.devices=2", "--trainer.max_steps=100000", "--trainer.limit_val_batches=0"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *("--checkpoint.every_n_train_steps=5", "--model.tokenizer.base_channels=8", *WITHOUT_WEIGHTS),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    first = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        checkpoint = tmp_path / "runs" / "quickstart" / "version_0" / "checkpoints" / "last.ckpt"
        wait_for(checkpoint.is_file, seconds=120)
        second = next(child for child in children_of(first.pid))
        os.kill(first.pid if victim == "first" else second, signal.SIGKILL)
        first.wait(timeout=60)
        wait_for(lambda: not is_alive(second), seconds=60)
        assert first.returncode != 0
        assert torch.load(checkpoint, weights_only=True)["global_step"] >= 5
    finally:
        first.kill()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.1)
