"""Writes the table of docs/reproducing.md from configs/paper.csv and the overlays.

    python docs/reproducing.py

A test compares the page with what this makes. GPU-hours come from the arithmetic of a training step, see the page.
"""

import csv
import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer
from gsq_lightning.cli.costs import DEVICES
from gsq_lightning.cli.plan import MEASURED_MFU
from gsq_lightning.discriminators import PatchDiscriminator, StyleGANDiscriminator

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PAGE = ROOT / "docs" / "reproducing.md"
START, END = "<!-- written by docs/reproducing.py: begin -->\n", "<!-- end -->\n"

PEAK = DEVICES["h200"].bfloat16 * MEASURED_MFU[False]  # operations per second: no row compiles
LPIPS_PER_PIXEL = 40e9 / 256**2  # VGG16, operations of a forward pass
FROZEN = {("DINO", 518): 94e9, ("DINO", 224): 12.5e9, ("ResNet", 224): 8.2e9, ("VGG", 224): 31e9}
SHAPE = ("channel_multipliers", "encoder_blocks", "decoder_blocks", "middle_attention")  # what decides the arithmetic
NO_EFFECT = "-"  # a setting that does not concern a row


class Row(NamedTuple):
    """A row of one of the paper's tables or figures.

    Attributes:
        table, name: where it stands.
        configs: recipe and overlays, in order.
        figure: what the paper measured, or empty.
        differs: what this row's command does otherwise, and why, or empty.
        settings: by path in the config, without `init_args`; an object stands for its class's name.
    """

    table: str
    name: str
    configs: tuple[str, ...]
    figure: str
    differs: str
    settings: dict[str, Any]


def read_rows() -> list[Row]:
    """All rows of configs/paper.csv. Its table and row may be shell patterns; later lines win over earlier ones."""
    lines = list(csv.DictReader((CONFIGS / "paper.csv").read_text("utf-8").splitlines()))
    rows = []
    for table, name in ((line["table"], line["row"]) for line in lines if line["setting"] == "configs"):
        settings = {
            line["setting"]: line["value"]
            for line in lines
            if fnmatchcase(table, line["table"]) and (line["row"] == name or fnmatchcase(name, line["row"]))
        }
        configs, figure, differs = (settings.pop(key, "") for key in ("configs", "figure", "differs"))
        values = {path: yaml.safe_load(value) for path, value in settings.items() if value != NO_EFFECT}
        rows.append(Row(table, name, tuple(configs.split()), figure, differs, values))
    return rows


def merged(configs: Sequence[str]) -> dict[str, Any]:
    """What several config files say together, later ones over earlier ones."""
    content: dict[str, Any] = {}
    for name in configs:
        content = lay_over(content, read_config(name))
    return content


@cache
def read_config(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / name).read_text("utf-8"))


def lay_over(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if above.get("class_path", below.get("class_path")) != below.get("class_path"):
        return above  # another class, whose arguments are others
    return below | {name: lay_over(below.get(name), value) for name, value in above.items()}


def gpu_hours(config: dict[str, Any]) -> float:
    """Hours of one H200 for a run, at the share of its peak that was measured."""
    data = config["data"]["init_args"]
    operations = operations_per_image(config["model"], data["image_size"])
    images = data["global_batch_size"] * config["trainer"]["max_steps"]
    return images * operations / PEAK / 3600


def operations_per_image(model: dict[str, Any], size: int) -> float:
    """Multiplications and additions of a training step for one image."""
    shape = {name: model["tokenizer"]["init_args"].get(name) for name in SHAPE}
    forward = tokenizer_operations(size, **{k: tuple(v) if isinstance(v, list) else v for k, v in shape.items() if v})
    return 3 * forward + 3 * perceptual_operations(model["perceptual_loss"], size) + judging(model, size)


@cache
def tokenizer_operations(size: int, **shape: Any) -> float:
    """Of one forward pass of encoder and decoder, for a latent of 8 channels; more make no difference that counts."""
    with torch.device("meta"):
        tokenizer = GSQTokenizer(GroupedSphericalQuantizer(8, 2), **shape)
        side = size // tokenizer.downsample_factor
        return counted(tokenizer.encoder, (1, 3, size, size)) + counted(tokenizer.decoder, (1, 8, side, side))


def perceptual_operations(loss: dict[str, Any], size: int) -> float:
    """Of one forward pass of a perceptual loss's network over one image."""
    name = loss["class_path"].rsplit(".", 1)[1].removesuffix("Loss")
    if name == "LPIPS":
        return LPIPS_PER_PIXEL * size**2
    return FROZEN[name, loss.get("init_args", {}).get("input_size", 224)]


def judging(model: dict[str, Any], size: int) -> float:
    """Of all the discriminator's work in a step.

    For the tokenizer: one image forward, and backward to its pixels. For the discriminator: two images forward, and
    back through what is trained, weights and inputs.
    """
    discriminator = model["discriminator"]
    if discriminator is None:
        return 0.0
    name, options = discriminator["class_path"].rsplit(".", 1)[1], discriminator.get("init_args", {})
    if name == "DINODiscriminator":
        side = options["input_size"]
        heads = 2 * ((side // 14) ** 2 + 5) * 5 * (10 * 384**2 + 384)  # five taps, all tokens
        return 4 * FROZEN["DINO", side] + 8 * heads
    network = {"PatchDiscriminator": PatchDiscriminator, "StyleGANDiscriminator": StyleGANDiscriminator}[name]
    return 8 * discriminator_operations(network, size, **options)


@cache
def discriminator_operations(network: Callable[..., torch.nn.Module], size: int, **options: Any) -> float:
    with torch.device("meta"):
        return counted(network(**options), (1, 3, size, size))


def counted(network: Callable[[Tensor], Any], shape: tuple[int, ...]) -> float:
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(shape, device="meta"))
    return counter.get_total_flops()


def table() -> str:
    lines = [
        "| the paper's | row | `gsq fit --data.root …` and | the paper's result | GPU-hours | difference here |",
        "|---|---|---|---|---|---|",
    ]
    for row in read_rows():
        command = " ".join(f"--config {name}" for name in row.configs)
        cells = [row.table, row.name, f"`{command}`", row.figure or "–", rounded(gpu_hours(merged(row.configs)))]
        lines.append(f"| {' | '.join(cells)} | {row.differs} |")
    return "\n".join(lines) + "\n"


def rounded(hours: float) -> str:
    """To two digits."""
    digits = 1 - math.floor(math.log10(hours))
    return f"{round(hours, digits):.{max(digits, 0)}f}"


def page() -> str:
    """The page with the table as it is now."""
    before, rest = PAGE.read_text("utf-8").split(START)
    return before + START + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
