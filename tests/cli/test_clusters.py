"""Launchers of clusters, played on one machine: torchrun, and the SLURM script with an `srun` of ours."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from gsq_lightning import GSQTokenizer, ImageNetDataModule, TokenizerModule
from tests.callbacks.test_tokens import contents, write
from tests.conftest import WITHOUT_WEIGHTS, write_images
from tests.test_two_ranks import free_port

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = DOCS / "slurm.sh"

# starts the job's tasks as SLURM would, each as if it were alone on its machine; without the option each has one core
SRUN = """#!/bin/bash
[ "$1 $2" = "--cpus-per-task $SLURM_CPUS_PER_TASK" ] || exit 1
shift 2
tasks=()
for node in $(seq 0 $((SLURM_NNODES - 1))); do
  SLURM_PROCID=$node SLURM_NODEID=$node SLURM_LOCALID=0 "$@" &
  tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || exit 1; done
"""

ARGUMENTS = (
    *("--data=ImageNetDataModule", "--data.root=images", "--data.image_size=16", "--data.global_batch_size=4"),
    *("--model.tokenizer.base_channels=8", "--model.tokenizer.channel_multipliers=[1,2]"),
    *("--model.tokenizer.encoder_blocks=1", "--model.tokenizer.decoder_blocks=1"),
    *(
        "--model.tokenizer.norm_groups=4",
        *WITHOUT_WEIGHTS,
        "--model.discriminator=null",
        "--model.discriminator_start_step=0",
        "--model.metrics.names=[psnr]",
    ),
    *("--trainer.max_steps=2", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
)


def run(command: list[str], folder: Path, **environment: str) -> None:
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    whole = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port()), "PATH": path, **environment}
    result = subprocess.run(command, cwd=folder, env=whole, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "runs" / name / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    assert next(iter(value for key, value in state.items() if "DataModule" in key))["images_consumed"] == 8
    return state["state_dict"]


def test_the_slurm_script_and_torchrun_train_alike_on_two_machines(tmp_path: Path) -> None:
    """Two tasks on two machines, of which this one plays both; then the same by torchrun."""
    write_images(tmp_path / "images" / "train", 8)
    write_images(tmp_path / "images" / "val", 3, seed=1)
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("gsq", f'#!/bin/bash\nexec "{sys.executable}" -m gsq_lightning "$@"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    job = {"SLURM_NNODES": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_CPUS_PER_TASK": "2"}
    job |= {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "gsq", "SLURM_NODELIST": "localhost", "CONFIG": "quickstart.yaml"}
    run(["bash", str(SCRIPT), *ARGUMENTS, "--trainer.logger.name=slurm"], tmp_path, **job)

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    command = ["-m", "gsq_lightning", "fit", "--config", "quickstart.yaml", *ARGUMENTS, "--trainer.devices=2"]
    run([*torchrun, *command, "--trainer.logger.name=torchrun", "--data.num_workers=1"], tmp_path)

    by_slurm, by_torchrun = weights(tmp_path, "slurm"), weights(tmp_path, "torchrun")
    assert by_slurm.keys() == by_torchrun.keys()
    assert all(torch.equal(by_slurm[name], by_torchrun[name]) for name in by_slurm)


def test_jobs_of_an_array_write_tokens_without_knowing_of_each_other(
    small_tokenizer: Callable[..., GSQTokenizer], image_root: Path, tmp_path: Path
) -> None:
    tokenizer = small_tokenizer().eval()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gsq").write_text(f'#!/bin/bash\nexec "{sys.executable}" -m gsq_lightning "$@"\n')
    (tmp_path / "bin" / "gsq").chmod(0o755)
    options = [f"--data.root={image_root}", "--data.image_size=16", "--tokens.images_per_shard=4"]
    job = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1", "CKPT": str(tmp_path / "tokenizer")}
    command = ["bash", str(DOCS / "tokens.sh"), *options, "--trainer.accelerator=cpu"]
    with ThreadPoolExecutor() as jobs:
        list(jobs.map(lambda number: run(command, tmp_path, **job, SLURM_ARRAY_TASK_ID=number), ("0", "1")))
    data = ImageNetDataModule(str(image_root), 16, num_workers=0)
    write(tmp_path / "whole", TokenizerModule(tokenizer), data, split="train", images_per_shard=4)
    assert contents(tmp_path / "tokens") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("slurm.sh", {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--requeue"}),
        ("tokens.sh", {"--array", "--gpus", "--requeue"}),
    ],
)
def test_the_slurm_scripts_are_sound(name: str, needed: set[str]) -> None:
    subprocess.run(["bash", "-n", str(DOCS / name)], check=True)
    lines = (DOCS / name).read_text().splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH")]
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    # SLURM reads no directive after the first command
    assert all(number < first_command for number, line in enumerate(lines) if line in directives)
    assert needed <= {directive.split()[1].partition("=")[0] for directive in directives}
