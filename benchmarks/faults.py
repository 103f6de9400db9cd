"""Kills a real training at random moments, starts it again with the same command, and compares what it ends with.

    python benchmarks/faults.py --kills 30

A small GSQ-GAN on made images; a checkpoint after every second step, written through a slowed disk so that kills fall
within writes too. After each SIGKILL the same command resumes by itself (auto_resume). At the end weights, averages,
optimizers and counters must equal those of an undisturbed run, bit-exact.
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

STEPS = 120
COMPARED = ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "training_state")

# runs `gsq` with every write of a checkpoint drawn out, and prints a line of the log where each phase begins
DRIVER = """
import os, sys, time
from gsq_lightning import files
from gsq_lightning.training import TokenizerModule
sync = os.fsync
def slow(descriptor):
    print("PHASE writing", flush=True)
    time.sleep({delay})
    sync(descriptor)
    print("PHASE step", flush=True)
files.os.fsync = slow
for name, phase in (("on_train_batch_start", "step"), ("on_validation_epoch_start", "validation")):
    def told(self, *arguments, before=getattr(TokenizerModule, name), phase=phase):
        print("PHASE", phase, flush=True)
        return before(self, *arguments)
    setattr(TokenizerModule, name, told)
from gsq_lightning.__main__ import main
main(sys.argv[1:])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_images(folder)
        whole = run_undisturbed(folder, arguments.steps)
        phases, starts = run_under_fire(folder, arguments.steps, arguments.kills, random.Random(arguments.seed))
        killed = load(folder / "runs" / "killed")
        for part in COMPARED:
            compare(whole[part], killed[part], part)
    print("| killed during | times |\n|---|---|")
    for phase, times in sorted(phases.items()):
        print(f"| {phase} | {times} |")
    print(f"\n{sum(phases.values())} kills, {starts} starts of the same command.")
    print("What it ends with equals the undisturbed run, bit-exact.")


def write_images(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        (folder / "images" / split).mkdir(parents=True)
        for number in range(count):
            coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            coarse.resize((40, 36), Image.Resampling.BICUBIC).save(folder / "images" / split / f"{number}.png")


def start(folder: Path, name: str, steps: int, delay: float) -> subprocess.Popen[str]:
    options = {
        "data": "ImageNetDataModule",
        "data.root": "images",
        "data.image_size": 16,
        "data.global_batch_size": 4,
        "data.num_workers": 0,
        "data.crop": "random",
        "data.flip": "true",
        "model.tokenizer.base_channels": 8,
        "model.tokenizer.channel_multipliers": "[1,2]",
        "model.tokenizer.encoder_blocks": "1",
        "model.tokenizer.decoder_blocks": "1",
        "model.tokenizer.norm_groups": 4,
        "model.discriminator.channels": 4,
        "model.discriminator.num_layers": 1,
        "model.discriminator_start_step": 10,
        "model.accumulate_batches": 2,
        "model.metrics.names": "[psnr,codebook]",
        "checkpoint.every_n_train_steps": 2,
        "trainer.max_steps": steps,
        "trainer.check_val_every_n_epoch": 3,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.num_sanity_val_steps": 0,
        "trainer.logger.name": name,
    }
    command = [sys.executable, "-c", DRIVER.format(delay=delay), "fit", "--config", "quickstart.yaml"]
    command += [f"--{option}={value}" for option, value in options.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def run_undisturbed(folder: Path, steps: int) -> dict[str, Any]:
    process = start(folder, "whole", steps, delay=0.0)
    output, _ = process.communicate()
    assert process.returncode == 0, output[-2000:]
    return load(folder / "runs" / "whole")


def run_under_fire(
    folder: Path, steps: int, kills: int, generator: random.Random
) -> tuple[collections.Counter[str], int]:
    """Kills so many times, then lets the run end; in which phases kills fell, and how often the command was started."""
    phases: collections.Counter[str] = collections.Counter()
    starts = 0
    while True:
        fire = sum(phases.values()) < kills
        process = start(folder, "killed", steps, delay=0.05 if fire else 0.0)
        starts += 1
        assert process.stdout is not None
        phase, output, deadline = "start", [], None
        patience, target = generator.uniform(0.0, 0.8), generator.choice(["step", "writing", "validation"])
        for line in process.stdout:
            output.append(line)
            if line.startswith("PHASE"):
                phase = line.split()[1]
                deadline = deadline or time.monotonic() + patience
            if fire and deadline is not None and time.monotonic() > deadline and phase == target:
                time.sleep(generator.uniform(0.0, 0.01))
                os.kill(process.pid, signal.SIGKILL)
                break
        process.wait()
        if process.returncode == -signal.SIGKILL:
            phases[phase] += 1
            continue
        assert process.returncode == 0, "".join(output)[-3000:]
        if fire:
            raise SystemExit(f"the run ended after {sum(phases.values())} kills; give it more --steps")
        return phases, starts


def load(runs: Path) -> dict[str, Any]:
    versions = sorted(runs.glob("version_*/checkpoints/last.ckpt"))
    assert len(versions) == 1, f"{len(versions)} runs where there should be one: {versions}"
    leftover = list(versions[0].parent.glob("*.part")) + list(versions[0].parent.glob(".*.part"))
    assert not leftover, leftover
    state: dict[str, Any] = torch.load(versions[0], weights_only=True)
    return state


def compare(one: Any, other: Any, place: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), f"{place} differs"
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), f"{place} differs"
        for name in one:
            compare(one[name], other[name], f"{place}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), f"{place} differs"
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            compare(left, right, f"{place}[{number}]")
    else:
        assert one == other, f"{place} differs: {one}, {other}"


if __name__ == "__main__":
    main()
