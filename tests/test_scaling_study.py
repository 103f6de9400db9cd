"""The grid of the paper's comparisons: every case is one that `gsq fit` takes, and nothing is trained twice."""

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gsq_lightning.cli.weights import Objects

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling_study", ROOT / "benchmarks" / "scaling_study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["initialization", "perceptual", "adversary", "groups", "groups_at_equal_bits", "codebook"]
)
def test_gsq_fit_takes_every_case_of_the_miniature(study: ModuleType, name: str) -> None:
    built = []
    for case in study.STUDIES[name]:
        with torch.device("meta"):
            built.append(Objects("weights", ["--config", "tiny_imagenet.yaml", *case.options]).config.model)
    assert len({str(model) for model in built}) == len(built)  # no two cases are the same training


def test_the_papers_figures_are_those_of_the_overlays(study: ModuleType) -> None:
    """The overlays' comments state the paper's rFIDs; f16.yaml's row is Table 13's 8×2."""
    for case in (case for cases in study.STUDIES.values() for case in cases if len(case.configs) == 2):
        text = (ROOT / "configs" / case.configs[1]).read_text("utf-8")
        assert f"rFID {case.rfid:g}" in text or f"rFID {case.rfid:.2f}" in text, case
        assert f"--config {case.configs[0]} --config {case.configs[1]}" in text, case


def run_with(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, values: dict[tuple[str, int], float]
) -> list[str]:
    """Trains a study with `values` (by case and seed) in place of trainings; what was trained."""
    trained = []

    def run(_: str, case: Any, seed: int, __: object) -> dict[str, float]:
        trained.append(f"{case.name}, {seed}")
        value = values[case.name, seed]
        return {**dict.fromkeys(study.METRICS, value), "rfid": "", "bits_per_pixel": 1.125}

    monkeypatch.setattr(study, "run", run)
    arguments = argparse.Namespace(studies=["perceptual"], cases=None, seeds=[0, 1], steps=9, full=False, folder=folder)
    study.train(arguments, folder / "study.csv")
    return trained


def test_resumes_where_it_stopped_and_keeps_the_papers_order(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = {
        ("perceptual 0.1", 0): 3.0, ("perceptual 1", 0): 1.0, ("perceptual 10", 0): 2.0,  # the paper's order: 3, 1, 2
        ("perceptual 0.1", 1): 5.0, ("perceptual 1", 1): 3.0, ("perceptual 10", 1): 2.0,
    }  # fmt: skip
    assert len(run_with(study, monkeypatch, tmp_path, values)) == 6
    lines = (tmp_path / "study.csv").read_text().splitlines()
    (tmp_path / "study.csv").write_text("\n".join([*lines[:3], *lines[4:]]) + "\n")
    assert run_with(study, monkeypatch, tmp_path, values) == ["perceptual 10, 0"]

    text = study.summary(study.rows_of(tmp_path / "study.csv"))
    assert "| perceptual 0.1 | 1.125 | 2 | 4 ± 1.4 |" in text
    # means 4, 2, 2: ranks 3, 1.5, 1.5 against 3, 1, 2; Pearson of the ranks by hand: 1.5 / √(1.5 · 2)
    assert f"| perceptual | 3 | 2 | rfd_efficientnet | {1.5 / 3**0.5:.2f} | 1.00, 0.50 |" in text
    assert f"| perceptual | 3 | 2 | psnr | {-1.5 / 3**0.5:.2f} | -1.00, -0.50 |" in text
    study.plot(study.rows_of(tmp_path / "study.csv"), tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000
