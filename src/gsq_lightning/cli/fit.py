"""The `gsq` command: Lightning's CLI over the LightningModule and the data modules.

Precedence: flags > config files, later ones over earlier > checkpoint.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ActionConfigFile, set_parsing_settings
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

import gsq_lightning
from gsq_lightning.callbacks import LossProgressBar, ReconstructionGrid, Report, TokenWriter
from gsq_lightning.cli.carried import is_exported, report_folder
from gsq_lightning.cli.recipes import LAST, check_yaml, find_recipe, is_inline, ordered, recipe_name
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.distributed import settle_threads
from gsq_lightning.errors import CheckpointNotWritten, InputError, ModelNotFinite, RunStopped, TrainingDiverged, causes
from gsq_lightning.files import disk_error, left_out_on_disk_errors
from gsq_lightning.pretrained.saved import check_weights
from gsq_lightning.pretrained.weights import recorded_files
from gsq_lightning.runs import RunCheckpoint
from gsq_lightning.runs.checkpoint import is_locked
from gsq_lightning.runs.resume import decide, mark_finished, newest_of_all_runs
from gsq_lightning.tokenizer import GSQTokenizer
from gsq_lightning.training import TokenizerModule

LOGGED_REFRESH = 100  # batches between two lines of progress in a log file
EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 1
EXIT_SIGNAL = 128  # and the number of the signal, as shells have it
PROCESS_TIMEOUT = timedelta(minutes=15)  # that processes wait for each other before they give up
OUT_OF_MEMORY = (
    "The last checkpoint is whole. Fewer images at a time need less memory: raise model.accumulate_batches, "
    "which leaves data.global_batch_size as it is, or lower data.val_batch_size where it happened in validation"
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line and an exit code for what the user can mend, and for models that diverged."""
    try:
        yield
    except (ValueError, MisconfigurationException) as error:
        known = input_error(error)
        if known is None:
            raise
        fail(str(known), EXIT_BAD_INPUT)
    except (CheckpointNotWritten, ModelNotFinite, TrainingDiverged) as error:
        fail(str(error), EXIT_DIVERGED)
    except RunStopped as stop:
        # the first process tells; a code of another would count as its death
        if getattr(rank_zero_only, "rank", 0) and stop.agreed:
            raise SystemExit(0) from stop
        fail(str(stop), EXIT_SIGNAL + (stop.signal or signal.SIGTERM))
    except KeyboardInterrupt:
        fail("interrupted", EXIT_SIGNAL + signal.SIGINT)
    except OSError as error:
        found = disk_error(error)
        if found is None:
            raise
        place = f"{found.filename}: " if found.filename else ""
        fail(f"{place}{found.strerror or found}; checkpoints and other files written before are whole", EXIT_DIVERGED)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fail(f"{str(error).splitlines()[0]} {OUT_OF_MEMORY}", EXIT_DIVERGED)


def main(args: ArgsType = None) -> None:
    """Runs the command; what the user can mend ends in one line and exit code 2.

    Args:
        args: as on the command line, without the program's name; by default those of this process.

    Raises:
        SystemExit: with code 2 for bad input, 1 where training diverged or a model's output is not finite.
    """
    arguments = sys.argv[1:] if args is None else list(args)
    prepare_process()
    with one_line_errors():
        GSQCommand(
            TokenizerModule,
            LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_class=OneLineErrors,
            parser_kwargs={"prog": "gsq"},
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            args=ordered(arguments),
        )


def fetch_weights(arguments: list[str]) -> None:
    """`gsq weights`: gets the pretrained networks of a recipe into the caches, and prints where their files lie.

    Args:
        arguments: as of `gsq fit`, without that word; what does not concern the model is ignored.

    Raises:
        SystemExit: with code 2 for bad input, and where a file is not to be had.
    """
    prepare_process()
    with one_line_errors():
        parser = OneLineErrors(prog="gsq weights", description="Fetches all pretrained weights that a recipe needs.")
        parser.add_argument("-c", "--config", action=RecipeFile, help="A recipe; repeatable.")
        parser.add_lightning_class_args(TokenizerModule, "model")
        parser.add_argument("--seed_everything", type=bool | int, help="ignored")
        parser.add_argument("--auto_resume", type=bool, help="ignored")
        for section in ("data", "trainer", "checkpoint", "reconstructions", "tokens"):
            parser.add_argument(f"--{section}", type=dict, help="ignored")
        config = parser.parse_args(ordered(["weights", *arguments])[1:])
        model = parser.instantiate_classes(config).model
        with recorded_files() as files:
            model.load_training_networks()
            model.load_metrics()
        for network, path in files:
            print(f"  {network:<24}  {path}")
        if not files:
            print("  this recipe needs no pretrained weights")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device's or the machine's memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def input_error(error: BaseException | None) -> BaseException | None:
    """What the user can mend, within an error and those that led to it: jsonargparse wraps what constructors raise."""
    return next((one for one in causes(error) if isinstance(one, (InputError, MisconfigurationException))), None)


def prepare_process() -> None:
    """Sets what holds for the whole process: which imports a config may not name, what is not said, how threads end."""
    set_parsing_settings(import_path_denylist=[])  # the parser's own list, os and subprocess among it, is obeyed
    leave_out_noise()
    settle_threads()


def leave_out_noise() -> None:
    """Drops Lightning's advertisements and warnings that do not hold here."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage() and "litmodels" not in record.getMessage()
    )
    # metrics are equal on all processes when they are logged
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # our sampler resumes in the middle of an epoch; what the callbacks of training knew, validation does without
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
    threading.excepthook = leave_out_disk_errors


def leave_out_disk_errors(arguments: threading.ExceptHookArgs) -> None:
    """For threads that write logs, as TensorBoard's: who asked for the writing gets the same error, and tells it."""
    if disk_error(arguments.exc_value) is None:
        threading.__excepthook__(arguments)


def fail(message: str, code: int) -> NoReturn:
    """Ends the process with one line."""
    # an error of a loading process arrives with that process's traceback before it
    line = " ".join(message.rsplit("InputError: ", 1)[-1].split())
    print(f"gsq: error: {line}", file=sys.stderr)
    raise SystemExit(code)


class RecipeFile(ActionConfigFile):
    """`--config`: a file here, or the name of a recipe that comes with the package."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        if not is_inline(values):
            values = find_recipe(values)
            check_yaml(Path(values))
        super().__call__(parser, cfg, values, option_string)


class OneLineErrors(LightningArgumentParser):
    """Says what is wrong with an option in one line, without the usage of hundreds of options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(plain_message(message), EXIT_BAD_INPUT)


class GSQCommand(LightningCLI):
    """Lightning's CLI with recipes by name, our callbacks, and the checkpoint as the lowest layer of config."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs["dump_header"] = [f"gsq-lightning {gsq_lightning.__version__}"]
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=RecipeFile,
            help="A YAML file, or the name of a recipe such as f8.yaml; repeatable.",
        )
        return parser

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.set_defaults(verbose=False)  # our table instead of Lightning's
            parser.add_argument("--name", type=str | None, help="What the tokenizer is called in reports.")
            parser.add_argument(
                "--compare", nargs="+", default=[], help="Reports, checkpoints or folders to print beside the result."
            )
        if subcommand == "predict":
            parser.set_defaults(return_predictions=False)  # they go to disk; all tokens would not fit in memory
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(ReconstructionGrid, "reconstructions")
        parser.add_lightning_class_args(TokenWriter, "tokens")
        parser.add_argument(
            "--auto_resume",
            type=bool,
            default=False,
            help="fit: go on with the newest run of this recipe, if it has the same config and is not finished.",
        )
        parser.set_defaults({"data": {"class_path": f"{ImageNetDataModule.__module__}.{ImageNetDataModule.__name__}"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """As Lightning's, which warns that the process was started with arguments too."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]
        self.recipe = recipe_name(args) if isinstance(args, list) else None

    def before_instantiate_classes(self) -> None:
        trainer = self._get(self.config, "trainer")
        self._choose_checkpoint(trainer)
        self.report = Report(
            self._get(self.config, "name"), recipe=self.recipe, compare=self._get(self.config, "compare") or ()
        )
        callbacks: list[Callback] = [self.report]
        own_bar = any("ProgressBar" in callback.class_path for callback in trainer.callbacks or [])
        if trainer.enable_progress_bar is not False and not own_bar:
            # each refresh is a line of its own where a log is written
            callbacks.append(LossProgressBar(refresh_rate=1 if sys.stderr.isatty() else LOGGED_REFRESH))
        self.trainer_defaults = {"callbacks": callbacks}

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool) and not 0 <= (seed or 0) < 2**32:
            raise InputError(f"seed_everything is {seed}; it must be from 0 to {2**32 - 1}, true, or false")
        super()._set_seed()

    def _choose_checkpoint(self, trainer: Any) -> None:
        """Settles what `--ckpt_path last` and auto_resume mean, and that what the run writes can be written."""
        config = self.config.get(str(self.subcommand), self.config)
        runs = runs_folder(trainer)
        if config.get("ckpt_path") == LAST:
            if runs is None:
                raise InputError(
                    "--ckpt_path last is the newest checkpoint below trainer.logger.init_args.save_dir and name, which "
                    "this config lacks; give the path of a checkpoint"
                )
            found = newest_of_all_runs(runs)
            config.ckpt_path = str(found)
            if self.subcommand != "fit":
                trainer.logger = False
                trainer.default_root_dir = str(report_folder(found, str(self.subcommand)))
        if self.subcommand != "fit":
            if trainer.logger is False and trainer.default_root_dir is not None:
                check_writable(Path(trainer.default_root_dir), "--trainer.default_root_dir")
            return
        if runs is None:
            return
        check_writable(runs, "trainer.logger.init_args.save_dir")
        if SLURMEnvironment.detect() and trainer.default_root_dir is None:
            # what Lightning's plugin leaves for a requeued job, where no other job looks for it
            trainer.default_root_dir = str(runs / f"slurm_{os.environ.get('SLURM_JOB_ID', '')}")
        if config.auto_resume and config.ckpt_path is None:
            plain = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_none=False))
            decision = decide(runs, plain, trainer.max_steps, trainer.max_epochs, is_locked)
            rank_zero_info(f"auto_resume: {decision.reason}" + ("" if decision.run else "; starting anew"))
            if decision.run is not None:
                config.ckpt_path = str(decision.run.checkpoint)
                trainer.logger.init_args.version = decision.run.version

    def after_fit(self) -> None:
        """Validates the last weights where training ended between two validations; then the run is finished."""
        trainer = self.trainer
        if self.report.validated_step != trainer.global_step and trainer.limit_val_batches and not trainer.interrupted:
            trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        folder = trainer.log_dir  # asks all processes, so that all must ask
        if folder is not None and trainer.is_global_zero and not trainer.interrupted:
            with left_out_on_disk_errors(folder):
                mark_finished(Path(folder), trainer.global_step)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """With several processes and no strategy named, data parallel as two networks in one module need it."""
        trainer = self._get(self.config_init, "trainer")
        if trainer.strategy == "auto" and world_size(trainer) > 1:
            # in the step of one network the other gets no gradient; validation batches differ in number between
            # processes, so that buffers must not be exchanged in each forward pass
            kwargs["strategy"] = DDPStrategy(
                find_unused_parameters=True, broadcast_buffers=False, timeout=PROCESS_TIMEOUT
            )
        return super().instantiate_trainer(**kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """As Lightning's, but the weights of an exported tokenizer, no checkpoint to Lightning, are loaded here."""
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        folder = Path(arguments.get("ckpt_path") or "")
        if arguments.get("ckpt_path") and is_exported(folder):
            weights = GSQTokenizer.from_pretrained(folder).state_dict()
            check_weights(self.model.tokenizer, weights, str(folder))
            self.model.tokenizer.load_state_dict(weights)
            self.report.source = folder
            arguments["ckpt_path"] = None
        return arguments

    def _parse_ckpt_path(self) -> None:
        """Nothing: `ordered` has put the checkpoint's hyperparameters below the config files already."""


def runs_folder(trainer: Any) -> Path | None:
    """Where the logger puts the runs of a recipe, one folder for each; None where it has no such place."""
    places = getattr(trainer.logger, "init_args", None)
    save_dir, name = getattr(places, "save_dir", None), getattr(places, "name", None)
    return Path(save_dir) / name if save_dir and name and getattr(places, "version", None) is None else None


def check_writable(folder: Path, option: str) -> None:
    """Raises InputError where nothing can be written to a folder, before hours of work find out.

    Args:
        folder: what is missing of it is not made.
        option: by which the user can name another.
    """
    try:
        existing = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
    except OSError as error:
        raise InputError(
            f"nothing can be written to {folder}: {error.strerror}; name another place with {option}"
        ) from error


def world_size(trainer: Any) -> int:
    """Processes that a Trainer with this config would run."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.ERROR)  # the Trainer to come says it all
    try:
        return Trainer(
            accelerator=trainer.accelerator, devices=trainer.devices, num_nodes=trainer.num_nodes, logger=False
        ).world_size
    except (TypeError, ValueError) as error:
        raise InputError(f"trainer.devices {trainer.devices} cannot be had: {error}") from error
    finally:
        log.setLevel(level)


def plain_message(message: str) -> str:
    """The core of a parser's message, which may quote every type that an option could have had."""
    if message.endswith("arguments are required: root"):
        return "data.root is missing: --data.root FOLDER, which holds train and val"
    return " ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))
