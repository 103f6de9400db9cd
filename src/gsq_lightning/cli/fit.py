"""`gsq fit`, `validate`, `test`, `predict`, `weights`: Lightning's CLI over the LightningModule and the data modules.

Precedence: flags > config files, later ones over earlier > what a checkpoint brings.
"""

import json
import os
import sys
import tempfile
import threading
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_info

import gsq_lightning
from gsq_lightning.callbacks import Evaluated, ReconstructionGrid, Report, TokenProgress, TokenWriter
from gsq_lightning.cli.arguments import (
    EVALUATIONS,
    Arguments,
    config_names,
    flag_names,
    names_places,
    recipe_name,
    require_effect,
    what_is_missing,
)
from gsq_lightning.cli.initial import InitOptions, check_options, initialize
from gsq_lightning.cli.loggers import RUNS, configured_loggers, keep_within, runs_folder, share_place
from gsq_lightning.cli.messages import constructor_error, fail, input_error, make, one_line_errors, plain_message
from gsq_lightning.cli.missing import WeightsAtHand
from gsq_lightning.cli.option_help import PlainHelp, explain
from gsq_lightning.cli.recipes import check_completeness, find_recipe, read_config
from gsq_lightning.cli.source import Source, find_tokenizer, is_export, parser_defaults, read_source
from gsq_lightning.cli.trainer import add_trainer_options, make_trainer
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.data.batch import per_device_batch_size
from gsq_lightning.data.datamodule import ResumableDataModule
from gsq_lightning.distributed import settle_threads
from gsq_lightning.errors import InputError, require
from gsq_lightning.files import disk_error, left_out_on_disk_errors
from gsq_lightning.pretrained.export import DEMOS
from gsq_lightning.pretrained.saved import check_weights
from gsq_lightning.reports import report_folder, sha256_of
from gsq_lightning.run_folders import (
    RunFolder,
    expanded,
    newest_checkpoint,
    next_run,
    run_folders,
    run_of,
)
from gsq_lightning.runs import RunCheckpoint
from gsq_lightning.runs.divergence import Divergence, OnDivergence
from gsq_lightning.runs.resume import check_resumable, decide, mark_finished, newest_resumable
from gsq_lightning.runs.start import RunStart
from gsq_lightning.training import TokenizerModule

CommandName = Literal["fit", "validate", "test", "predict", "weights", "plan"]

LAST = "last"  # --ckpt_path of the newest checkpoint of a recipe


def main(arguments: list[str]) -> None:
    """Runs a command; errors that the user can mend end in one line and exit code 2.

    Args:
        arguments: as on the command line, without the program's name.

    Raises:
        SystemExit: with code 2 for bad input, 1 where training diverged or a model's output is not finite.
    """
    command: Any = arguments[0]
    prepare_process()
    with one_line_errors(command):
        GSQCommand(command, arguments[1:]).run()


def prepare_process() -> None:
    """Settings of the process: what a config may import and how it is written, how threads end."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # classes in files of the user's: last, so that they hide nothing installed
    # words of enumerations in a config that is written: Lightning's Timer has one as a default
    yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, word: dumper.represent_data(word.value))
    set_parsing_settings(import_path_denylist=[])  # the parser's own list, os and subprocess among it, is obeyed
    threading.excepthook = leave_out_disk_errors
    settle_threads()


def leave_out_disk_errors(arguments: threading.ExceptHookArgs) -> None:
    """Prints no traceback of a disk error in a thread, such as TensorBoard's: its caller gets the same error."""
    if disk_error(arguments.exc_value) is None:
        threading.__excepthook__(arguments)


class OneLineErrors(LightningArgumentParser):
    """Prints errors of options in one line, without the usage of hundreds of options."""

    given: ClassVar[list[str]] = []  # options on the command line: parsers of nested classes know their own alone

    def __init__(self, *args: Any, description: Any = None, **kwargs: Any) -> None:
        if description and description.startswith("Help for --"):  # of a class, a parser that jsonargparse makes
            option, _, name = description.removeprefix("Help for ").partition("=")
            description = f"Options of {name}"
            usage = f"gsq fit --config RECIPE {option.removesuffix('.help')}…"
            kwargs |= {"formatter_class": PlainHelp, "usage": usage}
        super().__init__(*args, description=description, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(plain_message(message, options_of(self), self.given))


class GSQCommand(LightningCLI):
    """One command: parses its layers, makes the objects, runs a Trainer.

    Args:
        command: its name.
        arguments: what follows it on the command line.

    Attributes:
        checkpoint: what training resumes from.
        source: the tokenizer that is evaluated.
        flags: names of the options that flags give.
        run_folder: of a training.
    """

    def __init__(self, command: CommandName, arguments: list[str]) -> None:
        self.command = command
        given = Arguments.split(arguments, command)
        configs = [find_recipe(name) for name in given.configs]
        contents = [read_config(config) for config in configs]
        given = given.completed(contents)
        self.flags = flag_names(given.flags)
        require_effect(self.flags, command)
        require(bool(configs or given.checkpoint) or given.asks_for_help, what_is_missing(command))
        self.weights = given.weights
        self.recipe = recipe_name(given)
        self.takes_last = given.checkpoint == LAST
        require(
            bool(configs) or not self.takes_last, "--ckpt_path last is that of a recipe; name the recipe with --config"
        )
        require(
            given.checkpoint is None or "init_from" not in self.flags,
            "--ckpt_path goes on with a run, --init_from starts a new one from weights; give one of the two",
        )
        self.checkpoint: Path | None = None
        self.source: Source | None = None
        self.run_folder: RunFolder | None = None
        if given.checkpoint is None:
            if contents and not given.asks_for_help:
                check_completeness(given.configs, configs, contents)
        elif command == "fit" and not self.takes_last:
            self.checkpoint = checkpoint_to_resume(expanded(given.checkpoint))
            if not configs:
                configs = [config_of_run(self.checkpoint)]
                contents = [read_config(configs[0])]
        elif not self.takes_last:
            path = find_tokenizer(given.checkpoint)
            if path is None:
                raise InputError(f"there is no checkpoint {given.checkpoint}")
            self.source = read_source(path, self.weights)
            own = self.source.own_quantizer
            require(
                own is None or bool(configs),
                f"the quantizer of {path} is {own}, which is none of this library's; give the configs of "
                "its training again, with --config",
            )
        options = [*(f"--config={config}" for config in configs), *given.flags]
        OneLineErrors.given = [*config_names(contents), *self.flags]
        self.names_places = names_places(contents, given.flags, self.source.data if self.source else {})
        super().__init__(
            TokenizerModule,
            LightningDataModule,
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={
                "prog": f"gsq {command}",
                "usage": f"gsq {command} [options]",
                "description": None,
                "allow_abbrev": False,
                "formatter_class": PlainHelp,
            },
            parser_class=OneLineErrors,
            subclass_mode_data=True,
            args=options,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # ------------------------------------------------------------------------------------------------- options

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return super().init_parser(dump_header=[f"gsq-lightning {gsq_lightning.__version__}"], **kwargs)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_trainer_options(parser)
        parser.add_lightning_class_args(TokenizerModule, "model")
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path", type=str | None, help="A checkpoint, the folder of a run, recipe or export, or demo."
        )
        parser.add_class_arguments(RunCheckpoint, "checkpoint", skip={"dirpath"})
        parser.add_class_arguments(ReconstructionGrid, "reconstructions", skip={"folder"})
        parser.add_class_arguments(TokenWriter, "tokens")
        parser.add_argument(
            "--auto_resume",
            type=bool,
            default=False,
            help="fit: resume the newest run of this recipe with the same config, if it is not finished.",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="fit: weights to start from, of a checkpoint, run, export, released file or repository of the Hub.",
        )
        parser.add_class_arguments(InitOptions, "init")
        parser.add_argument(
            "--on_divergence",
            type=OnDivergence,
            default="stop",
            help="fit: after model.max_skipped_steps in a row, stop, or rollback: go back to the last checkpoint, and "
            "on after the batches that were seen since.",
        )
        if self.command in EVALUATIONS:
            parser.add_argument(
                "--weights", choices=["ema", "raw"], default="ema", help="Averaged weights, or the last."
            )
        if self.command in ("validate", "test"):
            parser.add_argument("--name", type=str | None, help="What the tokenizer is called in reports.")
            parser.add_argument(
                "--compare", nargs="+", default=[], help="Reports, checkpoints or folders to print beside the result."
            )
        parser.set_defaults({"data": {"class_path": "gsq_lightning.data.ImageNetDataModule"}})
        explain(parser)
        if self.source is not None:
            parser.set_defaults(parser_defaults(self.source, with_places=not self.names_places))

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """As Lightning's, which warns that the process was started with arguments too."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]
        seed = self.config.seed_everything
        if not isinstance(seed, bool) and not 0 <= (seed or 0) < 2**32:
            raise InputError(f"seed_everything is {seed}; it must be from 0 to {2**32 - 1}, true, or false")

    # ------------------------------------------------------------------------------------------------- folders

    def before_instantiate_classes(self) -> None:
        loggers = configured_loggers(self.config.trainer.logger)
        share_place(loggers, self.flags)
        runs = runs_folder(loggers, self.config.trainer.default_root_dir, self.recipe)
        if self.command == "fit":
            self._place_training(loggers, runs)
        else:
            self._place_evaluation(runs)

    def _place_training(self, loggers: list[Any], runs: Path) -> None:
        """Chooses what training resumes from and the run's folder, and has all be written there."""
        trainer = self.config.trainer
        text = self.parser.dump(self.config, skip_unset=False)
        if self.takes_last:
            self.checkpoint = newest_resumable(runs)
        options = InitOptions(**self.config.init.as_dict())
        check_options(self.config.init_from, options, self.config.model.trained, self.checkpoint is not None)
        if trainer.fast_dev_run:
            return
        self.run_folder = self._choose_run(runs, loggers, yaml.safe_load(text))
        named = any(one.init_args.get("name") for one in loggers) or not loggers
        self.start = RunStart(self.run_folder, text, runs.parent if named else runs)
        trainer.default_root_dir = str(self.run_folder.path)
        if trainer.logger is None or trainer.logger is True:
            trainer.logger = Namespace(class_path="gsq_lightning.runs.RunLogger", init_args=Namespace(save_dir=RUNS))
        for logger in configured_loggers(trainer.logger):
            keep_within(self.run_folder, logger)

    def _place_evaluation(self, runs: Path) -> None:
        """Chooses the folder of the report, beside what is evaluated where no option names another."""
        trainer = self.config.trainer
        if self.takes_last:
            self.source = read_source(newest_checkpoint(runs), self.weights)
        trainer.logger = False
        self._say_size()
        if trainer.default_root_dir is not None:
            trainer.default_root_dir = str(expanded(trainer.default_root_dir))
        elif self.source is not None:
            trainer.default_root_dir = str(evaluation_folder(self.source, self.command))
        if trainer.default_root_dir is not None:
            check_writable(Path(trainer.default_root_dir), "--trainer.default_root_dir")

    def _say_size(self) -> None:
        """The size of images in a line, where neither the source nor an option says it."""
        size = self.config.data.get("init_args", {}).get("image_size")
        if size is None or self.source is None or "image_size" in self.source.data:
            return
        if not any(name.endswith(".image_size") for name in OneLineErrors.given):
            rank_zero_info(f"image size {size}: {self.source.path} does not say its own, --data.image_size does")

    def _choose_run(self, runs: Path, loggers: list[Any], config: dict[str, Any]) -> RunFolder:
        """The folder of the run that is resumed, or of a new one."""
        check_writable(runs, "--trainer.logger.save_dir")
        trainer = self.config.trainer
        version = next((one.init_args.version for one in loggers if one.init_args.get("version") is not None), None)
        named = None
        if version is not None:
            named = RunFolder(runs / (f"version_{version}" if isinstance(version, int) else version))
        if self.config.auto_resume and self.checkpoint is None:
            candidates = run_folders(runs) if named is None else [named]
            decision = decide(candidates, config, trainer.max_steps, trainer.max_epochs)
            rank_zero_info(f"auto_resume: {decision.reason}" + ("" if decision.run else "; starting a new one"))
            if decision.run is not None:
                self.checkpoint = decision.checkpoint
                return decision.run
        if named is not None and named.path.exists():
            raise InputError(f"{named.path} holds a run already; give another trainer.logger.version, or none")
        return named or next_run(runs)

    # ------------------------------------------------------------------------------------------------- objects

    def instantiate_classes(self) -> None:
        """As Lightning's, by the name that jsonargparse has for it now."""
        try:
            self.config_init = self.parser.instantiate(self.config, instantiators=[(make, object, True)])
        except Exception as error:
            wrong = None if input_error(error) else constructor_error(error)
            if wrong is None:
                raise
            raise wrong from error
        self.model, self.datamodule = self.config_init.model, self.config_init.data
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options, objects = dict(self.config_init.trainer), self.config_init
        given = options["callbacks"] or []
        source = self.source
        evaluated = source and Evaluated(source.path, source.sha256, source.kind, source.step, source.recipe)
        self.report = Report(objects.get("name"), self.recipe, objects.get("compare") or (), evaluated)
        callbacks: list[Callback] = [*(given if isinstance(given, list) else [given]), objects.reconstructions]
        callbacks += [objects.tokens, self.report, WeightsAtHand()]
        if self.command == "predict" and options["enable_progress_bar"] is not False:
            callbacks.append(TokenProgress(objects.tokens))
        if self.command == "fit":
            callbacks.append(Divergence(objects.on_divergence, self.run_folder))
        if self.run_folder is not None:
            callbacks.append(self.start)
            self.report.folder = objects.reconstructions.folder = str(self.run_folder.path)
            objects.checkpoint.dirpath = str(self.run_folder.checkpoints)
        if options["enable_checkpointing"] is not False:
            callbacks.append(objects.checkpoint)
        return make_trainer(options, callbacks)

    def run(self) -> None:
        """Runs the subcommand."""
        self._check_pair()
        if self.source is not None:
            check_weights(self.model.tokenizer, self.source.weights, str(self.source.path))
            self.model.tokenizer.load_state_dict(self.source.weights)
        elif self.command != "fit":
            rank_zero_info("no --ckpt_path given: the tokenizer has its initial, random weights")
        if self.command == "fit":
            self._fit()
        elif self.command == "predict":
            # tokens go to disk; all of them would not fit in memory
            self.trainer.predict(self.model, datamodule=self.datamodule, return_predictions=False, weights_only=True)
        else:
            # not verbose: our table instead of Lightning's
            getattr(self.trainer, self.command)(
                self.model, datamodule=self.datamodule, verbose=False, weights_only=True
            )

    def _check_pair(self) -> None:
        """Raises InputError for batch and image sizes that do not divide, before processes start and networks load."""
        data, trainer, fits = self.datamodule, self.trainer, self.command == "fit"
        if fits and isinstance(data, ResumableDataModule):
            devices = trainer.num_devices * trainer.num_nodes
            per_device_batch_size(data.global_batch_size, devices, self.model.accumulate_batches)
        if isinstance(data, ImageNetDataModule):
            for size in (data.image_size, data.predicted_size) if fits else (data.predicted_size,):
                self.model.tokenizer.tokens_per_image(size, size)

    def _fit(self) -> None:
        trainer = self.trainer
        if self.config.init_from is not None and self.checkpoint is None:  # a run that goes on has its own weights
            taken = initialize(self.model, self.config.init_from, self.config_init.init)
            if self.run_folder is not None and trainer.is_global_zero:
                record = {"sha256": sha256_of(Path(taken.place)), **vars(taken)}
                self.start.files["init_from.json"] = json.dumps(record, indent=2) + "\n"
        trainer.fit(
            self.model,
            datamodule=self.datamodule,
            ckpt_path=self.checkpoint and str(self.checkpoint),
            weights_only=True,
        )
        if self.run_folder is None or trainer.interrupted:
            return
        if self.report.validated_step != trainer.global_step and trainer.limit_val_batches:
            # training ended between two validations
            trainer.validate(self.model, datamodule=self.datamodule, verbose=False, weights_only=True)
        if trainer.is_global_zero:
            with left_out_on_disk_errors(str(self.run_folder.finished)):
                mark_finished(self.run_folder, trainer.global_step)


def options_of(parser: LightningArgumentParser) -> list[str]:
    """Names of the options of a parser, those of the classes that are its defaults included."""
    return [name.replace(".init_args", "") for name in dict(parser.get_defaults(skip_validation=True))]


def checkpoint_to_resume(path: Path) -> Path:
    """A checkpoint that a training goes on from: the path itself, or the newest of a run. Raises InputError."""
    require(
        not is_export(path),
        f"{path} is an exported tokenizer, which cannot be resumed; --init_from starts from its weights",
    )
    if path.is_dir():
        return newest_resumable(path)
    require(path.exists(), f"there is no checkpoint {path}")
    check_resumable(path)
    return path


def evaluation_folder(source: Source, command: str) -> Path:
    """Where an evaluation goes: beside what is evaluated, of a tokenizer within this package to the current folder."""
    if source.path.parent == DEMOS:
        return Path(f"{source.path.name}-report", command).absolute()
    return report_folder(source.path, command, source.kind)


def config_of_run(checkpoint: Path) -> Path:
    """The config of the run that a checkpoint lies in. Raises InputError where it lies in none."""
    run = run_of(checkpoint)
    if run is None or not run.config.is_file():
        raise InputError(f"{checkpoint} lies in no run with a config.yaml; give the one that fits with --config")
    rank_zero_info(f"config: {run.config}")
    return run.config


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
