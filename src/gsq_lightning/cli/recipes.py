"""Config files of the command: recipes by name, configs that checkpoints carry, and the order that gives precedence."""

import itertools
import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from gsq_lightning.cli.carried import checkpoint_config, exported_config, is_exported, trusted
from gsq_lightning.errors import InputError

MAX_CONFIG_BYTES = 2**20
MAX_CONFIG_VALUES = 100_000
MAX_CONFIG_DEPTH = 50
LAST = "last"  # --ckpt_path of the newest checkpoint of a recipe


def ordered(arguments: list[str]) -> list[str]:
    """Orders the arguments by precedence: checkpoint, then config files, then flags.

    jsonargparse lets whatever comes later win; Lightning's own reading of a checkpoint would beat flags.
    """
    command, rest = arguments[:1], arguments[1:]
    configs: list[str] = []
    flags: list[str] = []
    checkpoint: str | None = None
    position = 0
    while position < len(rest):
        name, equals, value = rest[position].partition("=")
        if name in ("--config", "-c", "--ckpt_path") and not equals and position + 1 < len(rest):
            position += 1
            value = rest[position]
        if name in ("--config", "-c"):
            configs += ["--config", value]
        elif name == "--ckpt_path":
            checkpoint = value
            flags += ["--ckpt_path", value]
        else:
            flags.append(rest[position])
        position += 1
    asks = bool(configs) or "--help" in flags or "-h" in flags
    if checkpoint is None and not asks:
        recipe = "--config, such as f8.yaml"
        needed = recipe if command[0] in ("fit", "weights") else f"--ckpt_path, the checkpoint, or {recipe}"
        raise InputError(f"gsq {command[0]} needs {needed}")
    if checkpoint is not None and checkpoint not in (LAST, "null"):
        read = exported_config if is_exported(Path(checkpoint)) else checkpoint_config
        carried = read(Path(checkpoint), command[0])
        leave_out_given(carried, configs[1::2], flags)
        carried = trusted(carried, checkpoint, has_config=bool(configs))
        if "tokenizer" not in carried.get("model", {}) and not configs:
            raise InputError(
                f"{checkpoint} carries no config, as its module was made in Python; give the one that fits with "
                "--config, or validate it in Python"
            )
        configs = ["--config", json.dumps(carried), *configs]
    return command + configs + flags


def leave_out_given(carried: dict[str, Any], configs: list[str], flags: list[str]) -> None:
    """Drops the places of images that the user gives anew; with another root also those of its splits."""
    given = given_places(configs, flags)
    options = carried.get("data", {}).get("init_args", {})
    if "root" in given and given["root"] != options.get("root"):
        given |= dict.fromkeys(("root", "train", "val", "train_images", "val_share"))
    for name in given:
        options.pop(name, None)


def given_places(configs: list[str], flags: list[str]) -> dict[str, Any]:
    """What config files and flags say of data.root, data.train and data.val."""
    given: dict[str, Any] = {}
    for config in configs:
        content = parsed(config, "--config") if is_inline(config) else check_yaml(Path(find_recipe(config)))
        data = content.get("data")
        options = data.get("init_args", data) if isinstance(data, dict) else None
        given |= options if isinstance(options, dict) else {}
    for flag, following in itertools.zip_longest(flags, flags[1:], fillvalue=""):
        name, equals, value = flag.partition("=")
        if name.startswith("--data."):
            given[name.removeprefix("--data.").removeprefix("init_args.")] = value if equals else following
    return {name: value for name, value in given.items() if name in ("root", "train", "val") and value is not None}


def recipe_name(arguments: list[str]) -> str | None:
    """The configs of a command that `ordered` has put in order, and how many flags change model or data."""
    values = [value for name, value in itertools.pairwise(arguments) if name == "--config"]
    names = [value for value in values if not is_inline(value)]
    flags = [name for name in arguments if name.startswith(("--model", "--data.")) and "--data.root" not in name]
    if names and flags:
        names.append("1 flag" if len(flags) == 1 else f"{len(flags)} flags")
    return " + ".join(names) or None


def is_inline(config: str) -> bool:
    """Whether a `--config` is the config itself, as `ordered` passes that of a checkpoint."""
    return config.lstrip().startswith("{")


def find_recipe(name: str) -> str:
    """Path of a config: the file itself, or the recipe of that name in the package.

    Raises:
        InputError: where there is neither; lists the recipes.
    """
    if Path(name).is_file():
        return name
    for folder in recipe_folders():
        if (folder / name).is_file():
            return str(folder / name)
    known = sorted({str(path.relative_to(folder)) for folder in recipe_folders() for path in folder.rglob("*.yaml")})
    near = get_close_matches(name, known, n=3)
    plain = [recipe for recipe in known if "/" not in recipe]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise InputError(
        f"there is no config file {name}, here or among the recipes {', '.join(plain)} and the overlays in "
        f"ablations/ and quantizers/{hint}"
    )


def check_yaml(path: Path) -> dict[str, Any]:
    """What a config file says. Raises InputError, with name and place, for one that is no YAML mapping of sane size."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError(f"{path} has {path.stat().st_size} bytes; a config has at most {MAX_CONFIG_BYTES}")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from error
    return parsed(text, str(path))


def parsed(text: str, name: str) -> dict[str, Any]:
    """What the text of a config says. Raises InputError, with its name, for what is no YAML mapping of sane size."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{name} cannot be read as YAML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{name} is nested too deeply for a config") from error
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{name} holds no config: it must be a mapping with keys such as model, data and trainer")
    # aliases may stand for far more than the file has
    if len(list(itertools.islice(values_within(content, MAX_CONFIG_DEPTH), MAX_CONFIG_VALUES + 1))) > MAX_CONFIG_VALUES:
        raise InputError(f"{name} stands for more than {MAX_CONFIG_VALUES} values, too many for a config")
    return content or {}


def values_within(content: Any, depth: int) -> Iterator[Any]:
    """All values of a nested config, each as often as it is referred to. Raises InputError below a depth."""
    if depth == 0:
        raise InputError(f"a config is nested more than {MAX_CONFIG_DEPTH} levels deep")
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    for value in inner:
        yield value
        yield from values_within(value, depth - 1)


def recipe_folders() -> list[Path]:
    """Where recipes lie: in the installed package, or beside the sources of a checkout."""
    package = Path(__file__).parents[1]
    return [folder for folder in (package / "configs", package.parents[1] / "configs") if folder.is_dir()]
