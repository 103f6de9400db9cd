"""Triton's kernels on a CPU: its interpreter takes all kernels of a process or none, hence processes of their own."""

import importlib.util

import pytest

from tests.conftest import run_tests_alone

LOOKUP = ["shapes", "tiles or sorted", "scores"]
PARTS = {
    "quantizers/in_interpreter.py": [*LOOKUP, f"not ({' or '.join(LOOKUP)})"],
    "networks/in_interpreter.py": ["test"],
}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(("file", "part"), [(file, part) for file, parts in PARTS.items() for part in parts])
def test_kernels_in_the_interpreter(file: str, part: str) -> None:
    run_tests_alone(file, part, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
