"""How `--help all` and the help of classes look: what an option does, in words of this project."""

import argparse
import re
from typing import Any

from jsonargparse import DefaultHelpFormatter

# of Lightning's Trainer, whose own text is about its classes; what has no use here is not shown
TRAINER = {
    "accelerator": "Kind of device: cpu, cuda or mps; auto takes a GPU if there is one.",
    "strategy": "How several devices work together: auto or ddp.",
    "devices": "Devices of this machine: a number, a list of their indices such as [0,2], or -1 or auto for all.",
    "num_nodes": "Number of machines.",
    "precision": "Arithmetic: bf16-mixed or 32-true, the default.",
    "logger": "Where scalars and pictures go: a class, a list of classes, or false.",
    "callbacks": "More callbacks: a class, or a list of classes.",
    "fast_dev_run": "Run this many batches of training and validation, write nothing, and end: a check of a config.",
    "max_epochs": "Epochs after which training ends.",
    "min_epochs": "Epochs before which nothing else ends training.",
    "max_steps": "Generator steps after which training ends; -1 for no limit.",
    "min_steps": "Generator steps before which nothing else ends training.",
    "max_time": "Time after which training ends: DD:HH:MM:SS.",
    "check_val_every_n_epoch": "Epochs between two validations; null: val_check_interval counts over epochs.",
    "num_sanity_val_steps": "Validation batches that are tried before training; 0 for none.",
    "log_every_n_steps": "Generator steps between two entries in the logs.",
    "enable_checkpointing": "Whether checkpoints are written.",
    "enable_progress_bar": "Whether progress is shown.",
    "enable_model_summary": "Whether the numbers of parameters are shown.",
    "deterministic": "Whether torch uses deterministic algorithms only; warn: a warning where there is none.",
    "benchmark": "Whether cuDNN tries several algorithms first and takes the fastest.",
    "profiler": "One of simple, advanced or pytorch: measure what takes time.",
    "detect_anomaly": "Whether autograd reports which operation made a NaN; slow.",
    "plugins": "Lightning's plugins.",
    "sync_batchnorm": "Whether batch norm of the discriminator is over all devices.",
    "reload_dataloaders_every_n_epochs": "Epochs after which DataLoaders are made again; 0 for never.",
    "default_root_dir": "Folder of a run without a logger, and of the report of a validation.",
}
NOT_SHOWN = ("barebones", "enable_autolog_hparams", "inference_mode", "model_registry", "use_distributed_sampler")
# of sections, by the option that they begin with
TITLES = {
    "trainer": "trainer: how long, on what",
    "model": "model: what is trained, and how",
    "model.loss_weights": "model.loss_weights: factors of the loss terms",
    "data": "data: a data module; gsq fit --data.help ImageNetDataModule lists its options",
    "checkpoint": "checkpoint: when checkpoints are written",
    "reconstructions": "reconstructions: what the pictures of a validation show",
    "tokens": "tokens: where gsq predict writes",
    "init": "init: what is taken of --init_from",
}
# classes that are not meant for a config; any torch module may serve as a discriminator, and all would fill pages
HIDDEN = re.compile(r"(?!gsq_lightning\.)|.*(\.(missing|start|divergence|lightning_output|checkpoint_io)\.|Resumable)")


class PlainHelp(DefaultHelpFormatter):
    """Leaves out types that say nothing to a user, classes that are not meant, and marks of a documentation tool."""

    def _expand_help(self, action: argparse.Action) -> str:
        if action.dest.endswith(".help"):
            return "Show the options of a class."
        text, _, rest = (
            super()._expand_help(action).replace("(required, type: ", "(type: required, ").partition("(type: ")
        )
        found = re.search(r"default: (.*?)(?:, known subclasses: |\)$)", rest, flags=re.DOTALL)
        default = found[1] if found else "null"
        known = re.findall(r"[\w.]+", rest.partition("known subclasses: ")[2])
        classes = [name for name in known if not HIDDEN.match(name)]
        if "torch.nn.Module" in known:
            classes = [name for name in classes if name.endswith("Discriminator")]
        parts = [plain(text)] if text.strip() else []
        parts += [f"Classes: {', '.join(classes)}."] if classes else []
        parts += ["(required)"] if rest.startswith("required") else []
        parts += [f"(default: {default_text(default)})"] if default not in ("null", "") else []
        return " ".join(parts)


def plain(text: str) -> str:
    """A text that begins with a capital letter, without marks of a documentation tool."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([^`]*)`", r"\1", text).replace("``", "").strip()
    return text if text.startswith(("fit:", "λ")) else text[:1].upper() + text[1:]


def default_text(value: str) -> str:
    """A default, of a class its name alone."""
    found = re.fullmatch(r"\{'class_path': '([^']*)'.*\}", value, flags=re.DOTALL)
    return found[1] if found else value


def explain(parser: Any) -> None:
    """Gives a parser of this command our titles, and our texts for the Trainer's options."""
    for name, title in TITLES.items():
        if name in (parser.groups or {}):
            parser.groups[name].title = title
    for action in parser._actions:
        section, _, name = action.dest.partition(".")
        if section == "trainer" and name in NOT_SHOWN:
            action.help = argparse.SUPPRESS
        elif section == "trainer" and name in TRAINER:
            action.help = TRAINER[name]
