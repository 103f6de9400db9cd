"""Readers of configs and weights under random damage: a result or one clear line; whatever else they do fails.

A few examples, always the same; `python benchmarks/fuzz.py` tries many others.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing import damaged, damaged_yaml, read_checkpoint_file, read_config_file, read_export, seeds

FEW = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    seeds(folder)
    return folder


@FEW
@given(data=st.data())
def test_damaged_checkpoints_are_read_or_refused(folder: Path, data: st.DataObject) -> None:
    read_checkpoint_file(folder, data.draw(damaged((folder / "seed.ckpt").read_bytes())))


@FEW
@given(data=st.data())
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_exports_are_read_or_refused(folder: Path, name: str, data: st.DataObject) -> None:
    content = data.draw(damaged((folder / "export" / name).read_bytes()))
    read_export(folder, name, content)


@settings(FEW, max_examples=40)
@given(text=damaged_yaml())
def test_damaged_recipes_are_read_or_refused(folder: Path, text: str) -> None:
    read_config_file(folder, text)
