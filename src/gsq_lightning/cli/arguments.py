"""The layers of a command line: checkpoint, config files, flags."""

import argparse
import os
from itertools import zip_longest
from typing import Any, NamedTuple

from gsq_lightning.cli.messages import fail
from gsq_lightning.errors import require

EVALUATIONS = ("validate", "test", "predict")
# commands in which an option or section has an effect, where not in all; a config.yaml of a run has them all
WORKS_IN = {
    "auto_resume": ("fit",),
    "checkpoint": ("fit",),
    "init": ("fit",),
    "init_from": ("fit",),
    "on_divergence": ("fit",),
    "reconstructions": ("fit", "validate", "test"),
    "tokens": ("predict",),
}
PLACES = ("root", "train", "val")  # options of data modules that say where images lie


class Arguments(NamedTuple):
    """A command line, by layer.

    Attributes:
        configs: names and paths of config files.
        checkpoint: what to validate, to resume or to turn images into tokens with; "null" for nothing, whatever the
            configs say.
        weights: of a checkpoint: "ema" or "raw".
        flags: the rest.
    """

    configs: list[str]
    checkpoint: str | None
    weights: Any
    flags: list[str]

    @classmethod
    def split(cls, arguments: list[str], command: str) -> "Arguments":
        scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        scan.add_argument("-c", "--config", action="append", default=[])
        scan.add_argument("--ckpt_path")
        if command in EVALUATIONS:
            scan.add_argument("--weights")
        try:
            found, flags = scan.parse_known_args(arguments)
        except argparse.ArgumentError as error:
            fail(str(error))
        return cls(found.config, found.ckpt_path, getattr(found, "weights", None), flags)

    def completed(self, contents: list[dict[str, Any]]) -> "Arguments":
        """With checkpoint and weights of the config files where no flag gives them; weights are "ema" by default."""
        checkpoint, weights = self.checkpoint, self.weights
        for content in reversed(contents):
            checkpoint = content.get("ckpt_path") if checkpoint is None else checkpoint
            weights = content.get("weights") if weights is None else weights
        return self._replace(
            checkpoint=None if checkpoint in (None, "null", "") else str(checkpoint), weights=weights or "ema"
        )

    @property
    def asks_for_help(self) -> bool:
        return any(flag in ("-h", "--help") or flag.partition("=")[0].endswith(".help") for flag in self.flags)


def what_is_missing(command: str) -> str:
    """The message for a command without a config."""
    recipe = "--config, such as f8.yaml"
    needed = recipe if command in ("fit", "weights", "plan") else f"--ckpt_path, the checkpoint, or {recipe}"
    return f"gsq {command} needs {needed}"


def recipe_name(given: Arguments) -> str | None:
    """What reports call a recipe: its configs, and how many flags change model, data or initial weights."""
    names = list(given.configs)
    changes = ("--model", "--data.", "--init")
    flags = [name for name in given.flags if name.startswith(changes) and "--data.root" not in name]
    if names and flags:
        names.append("1 flag" if len(flags) == 1 else f"{len(flags)} flags")
    return " + ".join(names) or None


def names_places(configs: list[dict[str, Any]], flags: list[str], known: dict[str, Any]) -> bool:
    """Whether config files or flags name other images than the checkpoint's; then none of its places are taken over.

    Args:
        configs: contents of config files.
        flags: of the command.
        known: settings of the data that the checkpoint was trained on. Giving its own root again changes nothing, so
            that images which training held out are still the ones that are validated.
    """
    given: dict[str, Any] = {}
    for config in configs:
        section = config.get("data")
        options = section.get("init_args", section) if isinstance(section, dict) else None
        given |= options if isinstance(options, dict) else {}
    for flag, following in zip_longest(flags, flags[1:], fillvalue=""):
        name, equals, value = flag.partition("=")
        if name.startswith("--data."):
            given[name.rpartition(".")[2]] = value if equals else following
    named = {place: given[place] for place in PLACES if given.get(place) is not None}
    return any(os.path.abspath(os.path.expanduser(str(value))) != known.get(place) for place, value in named.items())


def config_names(contents: list[dict[str, Any]]) -> list[str]:
    """Names of all options in the contents of config files, in order."""
    return [name.replace(".init_args", "") for content in contents for name in names_within(content)]


def flag_names(flags: list[str]) -> list[str]:
    """Names of the options that flags give, in order."""
    names = [flag.removeprefix("--").partition("=")[0] for flag in flags if flag.startswith("--")]
    return [name.replace(".init_args", "") for name in names]


def require_effect(flags: list[str], command: str) -> None:
    """Raises InputError for a flag without effect in a command.

    Args:
        flags: names of the options that flags give.
        command: of Lightning's four; others take all options of a config.
    """
    for flag in flags:
        works = WORKS_IN.get(flag.partition(".")[0], (command,))
        require(
            command in works or command not in ("fit", *EVALUATIONS),
            f"--{flag} has no effect in gsq {command}; it is an option of gsq {', gsq '.join(works)}",
        )


def names_within(config: dict[str, Any], before: str = "") -> list[str]:
    """Names of the options in a nested config, joined by dots."""
    names: list[str] = []
    for name, value in config.items():
        names += [f"{before}{name}", *(names_within(value, f"{before}{name}.") if isinstance(value, dict) else [])]
    return names
