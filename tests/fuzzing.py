"""What is damaged, how, and what readers make of it; for test_fuzz.py and benchmarks/fuzz.py."""

import contextlib
import enum
import io
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, InputError
from gsq_lightning.cli.fit import main
from gsq_lightning.cli.messages import EXIT_BAD_INPUT
from gsq_lightning.cli.source import parser_defaults, read_source

ROOT = Path(__file__).parents[1]
RECIPE = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
LONGEST_LINE = 4000


class Outcome(enum.Enum):
    READ = "read"
    REFUSED = "refused in one line"


def seeds(folder: Path) -> None:
    """Writes a small checkpoint, `seed.ckpt`, and a small export, `export/`."""
    tokenizer = GSQTokenizer(GroupedSphericalQuantizer(4, 8, 2), (1, 2), 4, 1, 1, norm_groups=2)
    tokenizer.save_pretrained(folder / "export")
    checkpoint = {
        "tokenizer_config": tokenizer.config,
        "state_dict": {f"tokenizer.{name}": value for name, value in tokenizer.state_dict().items()},
        "data_settings": {"class": "PhotographsDataModule", **RECIPE["data"]["init_args"]},
        "metrics": RECIPE["model"]["metrics"]["init_args"]["names"],
        "global_step": 3,
    }
    torch.save(checkpoint, folder / "seed.ckpt")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with some bytes changed, cut out, put in, or cut off at the end."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(changed) - 1)))
        kind = draw(st.sampled_from(["change", "cut", "insert", "truncate"]))
        if kind == "change" and changed:
            changed[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del changed[place : place + draw(st.integers(1, 64))]
        elif kind == "insert":
            changed[place:place] = draw(st.binary(max_size=64))
        else:
            del changed[place:]
    return bytes(changed)


def values() -> st.SearchStrategy[Any]:
    """What somebody might write in a config, and what nobody would."""
    plain = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**13), 10**13),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(["null", "os.mkdir", "torch.optim.SGD", "psnr", "[1,2", "1e999", "-0", "~", "🐍", ""]),
    )
    return st.recursive(
        plain,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
        max_leaves=6,
    )


def places(config: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values of a nested config."""
    found: list[tuple[Any, ...]] = []
    if isinstance(config, dict):
        for name, value in config.items():
            found += [(*before, name), *places(value, (*before, name))]
    return found


@st.composite
def damaged_yaml(draw: st.DrawFn) -> str:
    """The quickstart recipe with some values replaced, sections renamed or dropped, or its text damaged."""
    if draw(st.integers(0, 3)) == 0:
        content: bytes = draw(damaged(yaml.safe_dump(RECIPE).encode()))
        return content.decode("utf-8", "replace")
    config = yaml.safe_load(yaml.safe_dump(RECIPE))
    for _ in range(draw(st.integers(1, 3))):
        *way, name = draw(st.sampled_from(places(config)))
        section = config
        for step in way:
            section = section.get(step) if isinstance(section, dict) else None
        if not isinstance(section, dict) or name not in section:
            continue
        kind = draw(st.sampled_from(["replace", "replace", "drop", "rename"]))
        value = section.pop(name)
        if kind == "replace":
            section[name] = draw(values())
        elif kind == "rename":
            section[draw(st.text(max_size=12))] = value
    return yaml.safe_dump(config, allow_unicode=True)


def refused(messages: list[str]) -> Outcome:
    """Checks that there is one message, of a length that can be read."""
    assert len(messages) == 1, messages
    assert len(messages[0]) < LONGEST_LINE, messages
    return Outcome.REFUSED


def read_checkpoint_file(folder: Path, content: bytes) -> Outcome:
    """By the command, and by `from_pretrained`."""
    path = folder / "damaged.ckpt"
    path.write_bytes(content)
    outcomes = []
    for read in (
        lambda: GSQTokenizer.from_pretrained(path),
        lambda: parser_defaults(read_source(path, "ema"), with_places=True),
    ):
        try:
            read()
            outcomes.append(Outcome.READ)
        except InputError as error:
            outcomes.append(refused([str(error)]))
    return max(outcomes, key=lambda outcome: outcome.value)


def read_export(folder: Path, name: str, content: bytes) -> Outcome:
    damaged_folder = folder / "damaged"
    shutil.copytree(folder / "export", damaged_folder, dirs_exist_ok=True)
    (damaged_folder / name).write_bytes(content)
    try:
        GSQTokenizer.from_pretrained(damaged_folder)
    except InputError as error:
        return refused([str(error)])
    return Outcome.READ


def read_config_file(folder: Path, text: str) -> Outcome:
    """As far as the command reads it before it makes anything."""
    path = folder / "damaged.yaml"
    path.write_text(text)
    printed, complaints = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaints):
            main(["fit", "--config", str(path), "--print_config"])
    except SystemExit as stop:
        if not stop.code:
            return Outcome.READ
        if stop.code != EXIT_BAD_INPUT:
            raise AssertionError(complaints.getvalue()) from stop
        return refused([line for line in complaints.getvalue().splitlines() if line.startswith("gsq: error: ")])
    raise AssertionError("--print_config ends the command")
