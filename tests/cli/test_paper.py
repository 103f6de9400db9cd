"""Each row of the paper's tables: the overlay sets what the paper says, and the page about them is in step."""

import importlib.util
import inspect
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from gsq_lightning import TokenizerModule
from gsq_lightning.losses import LossWeights
from gsq_lightning.optim import WarmupDecay

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
NO_ROWS = {"ablations/normalization_l2.yaml", "ablations/normalization_none.yaml"}

spec = importlib.util.spec_from_file_location("reproducing", ROOT / "docs" / "reproducing.py")
assert spec is not None
assert spec.loader is not None
reproducing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reproducing)

ROWS = reproducing.read_rows()


def in_effect(config: dict[str, Any], path: str) -> Any:
    """What a path stands for: a value of the config, or else the default of the argument; of an object its class."""
    section, *names = path.split(".")
    found = config[section]
    kinds = {"model": TokenizerModule, "loss_weights": LossWeights}
    for owner, name in pairwise([section, *names]):
        options = found.get("init_args", {}) if "class_path" in found else found
        if name in options:
            found = options[name]
        else:
            kind = class_of(found) if "class_path" in found else kinds[owner]
            found = inspect.signature(kind).parameters[name].default
    return class_of(found).__name__ if isinstance(found, dict) and "class_path" in found else found


def class_of(node: dict[str, Any]) -> Any:
    module, _, name = node["class_path"].rpartition(".")
    return getattr(import_module(module), name)


def comparable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    # YAML takes 1e-4 for a word
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e[-+]?\d+", value) else value


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}, {row.name}")
def test_an_overlay_on_its_recipe_has_the_papers_settings(row: Any) -> None:
    config = reproducing.merged(row.configs)
    got = {path: comparable(in_effect(config, path)) for path in row.settings}
    assert got == {path: comparable(value) for path, value in row.settings.items()}
    assert len(row.settings) > 20


def test_rows_differ_where_the_paper_has_them_differ() -> None:
    """Two rows with equal settings would be one run under two names; the paper has three of those."""
    seen: dict[str, list[str]] = {}
    for row in ROWS:
        seen.setdefault(repr(reproducing.merged(row.configs)), []).append(f"{row.table}, {row.name}")
    again = [names for names in seen.values() if len(names) > 1 and len({name.split(",")[0] for name in names}) == 1]
    assert not again


def test_every_overlay_of_a_row_is_in_the_table() -> None:
    named = {name for row in ROWS for name in row.configs}
    files = {f"ablations/{path.name}" for path in (CONFIGS / "ablations").glob("*.yaml")}
    assert files - named == NO_ROWS
    assert all((CONFIGS / name).is_file() for name in named)


@pytest.mark.parametrize("row", [row for row in ROWS if len(row.configs) == 2], ids=lambda row: row.configs[1])
def test_an_overlay_opens_with_its_row_its_figure_and_its_command(row: Any) -> None:
    recipe, overlay = row.configs
    text = (CONFIGS / overlay).read_text("utf-8")
    assert text.startswith(f"# {row.table}, ")
    opening = re.sub(r"\n# |\s+", " ", text.split("\nmodel:")[0].split("\ndata:")[0]).replace(",", "")
    for figure in re.findall(r"[\d.]+", row.figure.replace(",", "")):
        assert figure.rstrip(".") in opening
    assert f"gsq fit --config {recipe} --config {overlay} " in opening


def test_table_6s_step_schedule_falls_to_a_tenth_at_once() -> None:
    """Rates after so many steps: up over 5,000, 1e-4, and from 75,000 on 1e-5."""
    model = reproducing.merged(["f8.yaml", "ablations/t6_step.yaml"])["model"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
    scheduler = WarmupDecay(optimizer, **model["tokenizer_scheduler"]["init_args"])
    rates = []
    for scheduler.last_epoch in (2_500, 5_000, 74_999, 75_001, 99_999):
        rates += scheduler.get_lr()
    assert rates == pytest.approx([0.5e-4, 1e-4, 1e-4, 1e-5, 1e-5], rel=1e-3)


def test_the_page_is_in_step_with_the_overlays() -> None:
    assert reproducing.page() == reproducing.PAGE.read_text("utf-8"), "run: python docs/reproducing.py"


def test_gpu_hours_are_those_of_the_formula() -> None:
    """f8 at 256²: 669 GFLOP forward, LPIPS 40, DINOv2 94, its heads 20.3; 512 images and 50,000 steps."""
    operations = 3 * (262 + 407) + 3 * 40 + 4 * 94 + 8 * 20.3
    expected = 512 * 50_000 * operations / (0.172 * 989_400) / 3600
    assert reproducing.gpu_hours(reproducing.merged(["f8.yaml"])) == pytest.approx(expected, rel=0.005)
