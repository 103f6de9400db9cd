"""Triton's kernels on a CPU: its interpreter takes all kernels of a process or none, hence processes of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOOKUP = ["shapes", "tiles or sorted", "scores"]
PARTS = {
    "quantizers/in_interpreter.py": [*LOOKUP, f"not ({' or '.join(LOOKUP)})"],
    "networks/in_interpreter.py": ["test"],
}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(("file", "part"), [(file, part) for file, parts in PARTS.items() for part in parts])
def test_kernels_in_the_interpreter(file: str, part: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", part]
    result = subprocess.run(
        [*command, str(Path(__file__).parent / file)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:]
