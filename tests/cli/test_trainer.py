"""The command's Trainer."""

import platform
import subprocess
import sys

import pytest

from gsq_lightning.cli import trainer

# page faults of eight tensors of 64 MiB, one after the other
COUNT = """
import resource
import torch
from gsq_lightning.cli.trainer import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_memory()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_freed_is_used_again() -> None:
    answer = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    before, after = map(int, answer.stdout.split())
    assert after < before / 3  # the first of the eight tensors alone


def test_the_command_keeps_freed_memory_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(trainer, "keep_freed_memory", lambda: calls.append(True))
    options = dict.fromkeys(["check_val_every_n_epoch", "val_check_interval", "precision"])
    trainer.make_trainer({**options, "accelerator": "cpu", "strategy": "auto", "logger": False}, [])
    assert calls == [True]
