"""Where loggers write: their options decide where the runs of a recipe lie, and each writes into its run's folder."""

from pathlib import Path
from typing import Any

from gsq_lightning.run_folders import RunFolder, csv_folder, expanded

RUNS = "runs"  # where runs go whose config names no place


def configured_loggers(logger: Any) -> list[Any]:
    """Configs of the loggers in the value of `trainer.logger`: one, a list, true, false or None."""
    every = logger if isinstance(logger, list) else [logger]
    return [one for one in every if hasattr(one, "init_args")]


def share_place(loggers: list[Any], flags: list[str]) -> None:
    """Sets save_dir, name or version in all loggers where a flag gives it; the parser sets it in the last one alone.

    Args:
        loggers: their configs.
        flags: names of the options that flags give, in order. `trainer.logger` begins a new list, `trainer.logger+`
            appends to it, so that the last logger may be another one than when the flag was read.
    """
    for option in ("save_dir", "name", "version"):
        flag = f"trainer.logger.{option}"
        if flag not in flags:
            continue
        later = flags[max(place for place, name in enumerate(flags) if name == flag) + 1 :]
        if "trainer.logger" in later:
            continue
        named = loggers[-1 - later.count("trainer.logger+")].init_args[option]
        for logger in loggers:
            if option in logger.init_args:
                logger.init_args[option] = named


def runs_folder(loggers: list[Any], root: str | None, recipe: str | None) -> Path:
    """Where all runs of a recipe go: where the first logger with a place puts its own, else below `root`."""
    for logger in loggers:
        save_dir = logger.init_args.get("save_dir")
        if save_dir:
            return expanded(save_dir) / (logger.init_args.get("name") or "")
    return expanded(root or RUNS) / (Path(recipe.split(" + ")[0]).stem if recipe else "unnamed")


def keep_within(run: RunFolder, logger: Any) -> None:
    """Has a logger write into the folder of the run."""
    options = logger.init_args
    if "save_dir" not in options:
        return
    options["save_dir"] = str(run.path)
    kind = logger.class_path.rpartition(".")[2]
    if kind in ("RunLogger", "TensorBoardLogger", "CSVLogger"):
        options["name"], options["version"] = "", csv_folder(run) if kind == "CSVLogger" else ""
