"""Config files of the command: recipes by name, and checks of files that are given as configs."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from gsq_lightning.cli.arguments import config_names
from gsq_lightning.errors import InputError

MAX_CONFIG_BYTES = 2**20


def find_recipe(name: str) -> Path:
    """Path of a config: the file itself, or the recipe of that name in the package.

    Args:
        name: a path; or a recipe's name, where `.yaml` and an overlay's folder may be left out.

    Raises:
        InputError: where there is neither; lists the recipes.
    """
    if Path(name).is_file():
        return Path(name)
    wanted = name if name.endswith(".yaml") else f"{name}.yaml"
    known = {str(path.relative_to(folder)): path for folder in recipe_folders() for path in folder.rglob("*.yaml")}
    for recipe, path in known.items():
        if wanted in (recipe, path.name):
            return path
    near = get_close_matches(wanted, {*known, *(path.name for path in known.values())}, n=3)
    plain = sorted(recipe for recipe in known if "/" not in recipe)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise InputError(
        f"there is no config file {name}, here or among the recipes {', '.join(plain)} and the overlays in "
        f"ablations/, finetune/ and quantizers/{hint}"
    )


def read_config(path: Path) -> dict[str, Any]:
    """What a config file says. Raises InputError, with name and place, for one that is no YAML mapping of sane size."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError(f"{path} has {path.stat().st_size} bytes; a config has at most {MAX_CONFIG_BYTES}")
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, RecursionError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{path} holds no config: it must be a mapping with keys such as model, data and trainer")
    return content or {}


def check_completeness(names: list[str], paths: list[Path], contents: list[dict[str, Any]]) -> None:
    """Raises InputError where the first config is an overlay, which changes a recipe and is none.

    Args:
        names: as they were given.
        paths: where they lie.
        contents: what they say.
    """
    complete = ["model.tokenizer.class_path" in config_names([content]) for content in contents]
    found = None if complete[0] else re.search(r"gsq fit --config (\S+) --config", paths[0].read_text("utf-8"))
    if found:
        recipe = names[complete.index(True)] if any(complete) else found[1]
        order = " ".join(f"--config {name}" for name in [recipe, *(name for name in names if name != recipe)])
        raise InputError(f"{names[0]} changes a recipe, which goes before it: {order}")


def recipe_folders() -> list[Path]:
    """Where recipes lie: in the installed package, or beside the sources of a checkout."""
    package = Path(__file__).parents[1]
    return [folder for folder in (package / "configs", package.parents[1] / "configs") if folder.is_dir()]
