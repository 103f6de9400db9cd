"""Every recipe and overlay parses, builds, and what it sets arrives at the object that it is meant for."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from gsq_lightning import GSQTokenizer
from gsq_lightning.cli.weights import Objects
from gsq_lightning.metrics import ReconstructionMetrics
from gsq_lightning.training import TokenizerModule

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = ["f8.yaml", "f16.yaml", "f32.yaml", "photos.yaml", "quickstart.yaml", "tiny_imagenet.yaml", "demo_g1.yaml"]
OVERLAYS = [
    "demo_g3.yaml",
    "demo_large.yaml",
    "fast.yaml",
    "offline.yaml",
    "paper_evaluation.yaml",
    *sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*/*.yaml")),
]


def build(*configs: str) -> Objects:
    """The objects of a config, without memory for their weights where the quantizer allows it."""
    arguments = [argument for config in configs for argument in ("--config", config)]
    on_cpu = configs[-1].startswith("quantizers/")  # vector-quantize-pytorch computes tables when it is made
    if on_cpu:
        arguments.append("--model.tokenizer.init_args.base_channels=32")
    with torch.device("cpu" if on_cpu else "meta"):
        return Objects("weights", arguments)


def recipe_of(overlay: str) -> str:
    """The recipe that an overlay's opening comment puts it on."""
    match = re.search(r"gsq fit --config (\S+) --config " + re.escape(overlay), (CONFIGS / overlay).read_text())
    assert match, f"{overlay} does not open with its command"
    return match.group(1)


def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        inner = path if name == "init_args" else (*path, name)
        if isinstance(value, dict):
            yield from leaves(value, inner)
        else:
            yield inner, value


def value_in_effect(command: Objects, path: tuple[str, ...]) -> Any:
    """What the built objects have at a path of the config."""
    top, *names = path
    if not names:
        return command.config[top]
    if top == "trainer":
        return command.config.trainer[names[0]]
    found: Any = {"model": command.model, "data": command.datamodule}[top]
    for name in names:
        if name == "class_path":
            return f"{type(found).__module__}.{type(found).__name__}"
        if name.endswith(("_optimizer", "_scheduler")):
            found = found_optimizer(command.model, name)
        elif isinstance(found, torch.optim.Optimizer):
            return found.param_groups[0][name]
        elif isinstance(found, torch.optim.lr_scheduler.LRScheduler):
            return command.config.model[names[0]]["init_args"][name]
        elif isinstance(found, TokenizerModule) and not hasattr(found, name):
            found = of_a_part(found, name)
        elif isinstance(found, GSQTokenizer) and name != "quantizer":
            found = getattr(found.shape, name)
        elif isinstance(found, ReconstructionMetrics) and name != "names":
            found = getattr(found.options, name)
        else:
            found = getattr(found, name)
    return found


def of_a_part(module: TokenizerModule, name: str) -> Any:
    """What the module has passed on to the part that needs it."""
    if name.endswith("_clip_norm"):
        return module.stepper.clip_norms[name.removesuffix("_clip_norm")]
    if name.startswith("ema_"):
        return getattr(module.ema, name.removeprefix("ema_"))
    if name == "max_skipped_steps":
        return module.stepper.max_skipped_steps
    return getattr(module.objective, "weights" if name == "loss_weights" else name)


def found_optimizer(model: Any, name: str) -> Any:
    parameters = [nn.Parameter(torch.zeros(1))]
    network = name.rsplit("_", 1)[0]
    optimizer = model.optimizers_of[network](parameters)
    if name.endswith("_optimizer"):
        return optimizer
    make = model.schedulers_of[network]
    return None if make is None else make(optimizer)


def comparable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value) else value


def same_class(got: str, wanted: str) -> bool:
    """Classes are named by the package that exports them, and know the file they are in."""
    return got.rsplit(".", 1)[1] == wanted.rsplit(".", 1)[1] and got.startswith(wanted.rsplit(".", 1)[0].split(".")[0])


@pytest.mark.parametrize(
    "names", [(recipe,) for recipe in RECIPES] + [(None, overlay) for overlay in OVERLAYS], ids=lambda names: names[-1]
)
def test_every_value_of_a_config_reaches_its_object(names: tuple[str | None, ...]) -> None:
    configs = [name or recipe_of(names[-1] or "") for name in names]
    command = build(*configs)
    checked = 0
    for path, wanted in leaves(yaml.safe_load((CONFIGS / configs[-1]).read_text())):
        if path[0] in ("seed_everything", "checkpoint") or path[:2] == ("trainer", "logger"):
            continue
        got = value_in_effect(command, path)
        if path[-1] == "class_path":
            assert same_class(got, wanted), path
        else:
            assert comparable(got) == comparable(wanted), path
        checked += 1
    assert checked > 0


def test_the_paper_recipes_are_those_of_its_tables() -> None:
    expected = {
        "f8.yaml": (8, 8, 8192, 1, "l2"),
        "f16.yaml": (16, 16, 262144, 8, "none"),
        "f32.yaml": (32, 128, 262144, 8, "l2"),
    }
    for name, (factor, channels, codes, groups, normalization) in expected.items():
        command = build(name)
        tokenizer = command.model.tokenizer
        quantizer = tokenizer.quantizer
        assert tokenizer.downsample_factor == factor
        assert (quantizer.latent_channels, quantizer.codebook_size, quantizer.num_groups) == (channels, codes, groups)
        assert quantizer.normalization == normalization
        assert command.model.ema.decay == 0.999
        assert command.config.trainer.max_steps == 50_000
        assert command.datamodule.global_batch_size == 512
