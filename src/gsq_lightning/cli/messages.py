"""Messages and exit codes of the command: the one place that knows options. Imports no torch."""

import argparse
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from gsq_lightning.errors import (
    CheckpointNotWritten,
    InputError,
    ModelNotFinite,
    RunStopped,
    TrainingDiverged,
    WeightsMissing,
    causes,
)
from gsq_lightning.files import disk_error

Made = TypeVar("Made")

EXIT_BAD_INPUT = 2
EXIT_FAILED = 1
EXIT_SIGNAL = 128  # and the number of the signal, as shells have it
CLEAR_LINE = "\r\x1b[K"  # in a terminal

# options that take the path of a network's weights, by the key of the network
WEIGHTS_OPTIONS = {
    "alexnet": ("model.perceptual_loss.weights", "model.metrics.alexnet_weights"),
    "dinov2": ("model.discriminator.weights", "model.perceptual_loss.weights", "model.metrics.dinov2_weights"),
    "efficientnet_lite0": (
        "model.perceptual_loss.weights",
        "model.discriminator.weights",
        "model.metrics.efficientnet_weights",
    ),
    "inception": ("model.metrics.inception_weights",),
    "resnet50": ("model.perceptual_loss.weights",),
    "vgg16": ("model.perceptual_loss.weights", "model.metrics.vgg16_weights"),
}
# options that users of other Lightning projects know, and what there is here
INSTEAD = {
    "trainer.accumulate_grad_batches": "the networks step in turn; set model.accumulate_batches",
    "trainer.gradient_clip_val": "set model.tokenizer_clip_norm and model.discriminator_clip_norm, 2.0 each by default",
    "trainer.gradient_clip_algorithm": "gradients are clipped by norm: model.tokenizer_clip_norm",
    "model.learning_rate": "set model.tokenizer_optimizer.lr and model.discriminator_optimizer.lr",
    "model.lr": "set model.tokenizer_optimizer.lr and model.discriminator_optimizer.lr",
    "data.batch_size": "set data.global_batch_size, over all devices, or data.val_batch_size, on each",
    "trainer.overfit_batches": "set trainer.limit_train_batches and a learning rate that suits it",
}
# how types are called, by the names that Python has for them
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word or text",
    "collections.abc.Sequence": "a list, such as [a,b]",
    "list": "a list, such as [a,b]",
    "NoneType": "null",
}
LIBRARIES = ("gsq_lightning", "lightning", "torch")  # whose constructors are right, so that the arguments are not
OUT_OF_MEMORY = (
    "The last checkpoint is whole. Fewer images at a time need less memory: raise model.accumulate_batches, "
    "which leaves data.global_batch_size as it is, or lower data.val_batch_size where it happened in validation"
)


class OwnClassFailed(BaseException):
    """Carries the error of a constructor of the user's past the parser, which would make text of it."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def make(class_type: type[Made], *arguments: Any, **options: Any) -> Made:
    """Makes an object of a config.

    Raises:
        OwnClassFailed: where a class of the user's fails other than by a ValueError, which is about arguments.
    """
    try:
        return class_type(*arguments, **options)
    except ValueError:
        raise
    except Exception as error:
        if class_type.__module__.partition(".")[0] in LIBRARIES:
            raise
        raise OwnClassFailed(error) from error


def fail(message: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    """Ends the process with one line."""
    # an error of a worker arrives with that process's traceback before it
    line = " ".join(message.rsplit("InputError: ", 1)[-1].split())
    clear = CLEAR_LINE if sys.stderr.isatty() else ""  # of a progress bar
    print(f"{clear}gsq: error: {line}", file=sys.stderr)
    raise SystemExit(code)


class OneLineParser(argparse.ArgumentParser):
    """Prints errors of options in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; {self.prog} --help lists the options")


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Within it, errors that a user can mend end the process with one line and an exit code."""
    try:
        yield
    except (CheckpointNotWritten, ModelNotFinite, TrainingDiverged) as error:
        fail(str(error), EXIT_FAILED)
    except RunStopped as stop:
        # rank 0 says so; an exit code of another rank would count as its death
        if stop.agreed and _rank() > 0:
            raise SystemExit(0) from stop
        fail(str(stop), EXIT_SIGNAL + (stop.signal or signal.SIGTERM))
    except OwnClassFailed as failed:
        raise failed.error from None  # with its traceback, as Python does
    except KeyboardInterrupt:
        fail("interrupted", EXIT_SIGNAL + signal.SIGINT)
    except Exception as error:
        known = input_error(error)
        if known is not None:
            fail(missing_text([known], command) if isinstance(known, WeightsMissing) else str(known))
        if is_out_of_memory(error):
            fail(f"{str(error).splitlines()[0]} {OUT_OF_MEMORY}", EXIT_FAILED)
        found = disk_error(error) if isinstance(error, OSError) else None
        if found is None:
            raise
        place = f"{found.filename}: " if found.filename else ""
        text = f"{place}{found.strerror or found}; checkpoints and other files written before are whole"
        fail(text, EXIT_FAILED)


def input_error(error: BaseException) -> BaseException | None:
    """The error that the user can mend, among an error and its causes: jsonargparse wraps errors of constructors."""
    kinds = (InputError, *_lightning_errors())
    found = (one for one in causes(error) if isinstance(one, kinds) or "`val_check_interval`" in str(one))
    return next(found, error if is_refusal_of_callback(error) else None)


def is_refusal_of_callback(error: BaseException) -> bool:
    """Whether a callback of Lightning's raised it in words of its own, as EarlyStopping does without its metric."""
    if not isinstance(error, RuntimeError | ValueError | ModuleNotFoundError) or error.__traceback__ is None:
        return False
    place = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return "lightning/pytorch/callbacks" in place.parent.as_posix()


def constructor_error(error: BaseException) -> InputError | None:
    """What the constructor of a class in a config raised, in a line, or None if the error is of something else.

    Args:
        error: of jsonargparse, which repeats the class and its message in each error of a long chain.
    """
    found = None
    for wrapper, cause in pairwise(causes(error)):
        if named := re.search(r"Problem with given class_path '([^']+)'", str(wrapper)):
            found = named[1], cause
    if found is None:  # of several types, the chain has the error of the first alone, the message those of all
        given = re.search(r"Given value: Namespace\(class_path='([^']+)'", str(error))
        reasons = re.findall(r"^\s*- (?!Import path|Expected)(.+)", str(error), re.MULTILINE)
        return InputError(f"{given[1]} cannot be made: {reasons[0]}") if given and reasons else None
    path, cause = found
    place = traceback.extract_tb(cause.__traceback__)[-1]
    return InputError(f"{path} cannot be made: {type(cause).__name__}: {cause} ({place.filename}, line {place.lineno})")


def missing_text(errors: list[WeightsMissing], command: str) -> str:
    """The line for missing weights: where they are looked for, how to fetch them, what works without."""
    metrics = "model.metrics."
    parts = []
    for error in errors:
        options: Sequence[str] = WEIGHTS_OPTIONS.get(error.network, ())
        if command in ("validate", "test", "evaluate"):
            options = [name for name in options if name.startswith(metrics)]
        if command == "evaluate":
            options = [name.removeprefix(metrics) for name in options]
        paths = f"; or give its path with {' or '.join(f'--{name}' for name in options)}" if options else ""
        parts.append(f"{error}{paths}")
    if command == "evaluate":
        return " | ".join([*parts, "--metrics [psnr,ssim] needs none"])
    fetch = "All that a recipe needs: gsq weights --config RECIPE, on a machine with network"
    without = (
        "--config offline.yaml after the recipe trains and measures without, --model.metrics.names [psnr,ssim] measures"
    )
    return " | ".join([*parts, fetch, without])


def plain_message(message: str, options: Sequence[str] = (), given: Sequence[str] = ()) -> str:
    """An error of the parser in one line, in the user's words.

    Args:
        message: of jsonargparse, which quotes every type that an option could have had.
        options: names of all options, for suggestions.
        given: names of the options that flags and config files have, to find the one that is meant.
    """
    text = " ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))
    if text.endswith("arguments are required: root"):
        return "data.root is missing: --data.root FOLDER, which holds train and val"
    if text.endswith("Option 'root' is not accepted"):
        return "these data have no root; --data ImageNetDataModule before --data.root FOLDER takes images from a folder"
    if found := re.match(r"unrecognized arguments: (.*)", text):
        word = found[1].split()[0].partition("=")[0]
        if word.lstrip("-") in INSTEAD:
            return f"there is no {word}: {INSTEAD[word.lstrip('-')]}"
        return text + (
            "; a list is written [a,b]" if not word.startswith("-") else suggestion(word.lstrip("-"), options)
        )
    if found := re.search(r"(?:Option|option) '([^']+)' is not accepted|does not accept option '([^']+)'", text):
        name = found[1] or found[2]
        key = full_key(name, given)
        if key in INSTEAD:
            return f"there is no option {key}: {INSTEAD[key]}"
        return f"there is no option {key}{suggestion(name, options, '--' + key.removesuffix(name))}"
    if found := re.match(r'Parser key "([^"]+)"', text):
        return wrong_value(text, full_key(found[1], given)) or text
    return text


def wrong_value(text: str, key: str) -> str | None:
    """The line for a value that an option does not take, or None where the parser does not say what it takes.

    Args:
        text: the parser's message, in one line.
        key: the option.
    """
    value = re.split(r"(?:Got|Given) value: ", text)[-1]
    if unknown := re.search(r"Expected a dot import path string: (\w+)", text):
        return f"{key} is {unknown[1]}, and there is no such class{suggestion(unknown[1], class_names(), '')}"
    if reason := why_no_class(text, value):
        return f"{key} is {reason}"
    types = re.search(r"Subtypes: (.*?) Errors:", text) or re.search(r"Expected an? (.*?)\. Got value", text)
    kinds, words = expected_kinds(types[1]) if types else ([], [])
    if not kinds and not words:
        return None
    others = [word for word in re.findall(r"\w+", value) if word not in words]
    near = [match for word in others for match in get_close_matches(word, words, n=1)]
    wanted = " or ".join([*kinds, *([f"one of: {', '.join(words)}"] if words else [])])
    hint = f"; did you mean {near[0]}?" if near else ""
    if words and "," in value and not value.startswith("["):
        hint = f"; a list is written [{value}]"
    return f"{key} is {value}; it must be {wanted}{hint}"


def why_no_class(text: str, value: str) -> str | None:
    """The path of a class that cannot be used, and why, of a parser's message in one line; None if it is about values.

    Args:
        text: the message.
        value: of the option.
    """
    if found := re.search(r"Import path (?:(\S+) )?does not correspond to a subclass of (\w+)", text):
        return f"{found[1] or value}; it must be a subclass of {found[2]}"
    if found := re.search(r"Unexpected import path format: (\S+)", text):
        return f"{found[1]}; a class is written module.Class, such as mine.Loss for the one in mine.py"
    if found := re.search(r"class_path '([^']+)': No module named '([^']+)'", text):
        return f"{found[1]}, and there is no module {found[2]}, here or installed"
    if found := re.search(r"class_path '([^']+)': module '([^']+)' has no attribute '([^']+)'", text):
        return f"{found[1]}, and there is no {found[3]} in {found[2]}"
    return None


def full_key(key: str, given: Sequence[str]) -> str:
    """The option that a parser names by its last part, as it was given."""
    if "." in key:
        return key.replace(".init_args", "")
    return next((name for name in reversed(given) if name.rpartition(".")[2] == key), key)


def suggestion(word: str, known: Sequence[str], mark: str = "--") -> str:
    """A clause with the likely spelling, or nothing."""
    near = get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; did you mean {mark}{near[0]}?" if near else ""


def class_names() -> list[str]:
    """Of the classes of this library that configs name, as far as they are imported."""
    modules = [module for name, module in sys.modules.items() if name.startswith("gsq_lightning")]
    return [name for module in modules for name in getattr(module, "__all__", ()) if name[:1].isupper()]


def expected_kinds(text: str) -> tuple[list[str], list[str]]:
    """The types that a parser's message names, in words, and the words that it allows."""
    words = [word for found in re.findall(r"Literal\[([^\]]*)\]", text) for word in re.findall(r"'(\w+)'", found)]
    kinds = [kind for name, kind in KINDS.items() if f"<class '{name}'>" in text]
    return list(dict.fromkeys(kinds)), list(dict.fromkeys(words))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's or the machine's memory did not suffice."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def _lightning_errors() -> tuple[Any, ...]:
    """Lightning's word for bad input, where Lightning is imported."""
    module = sys.modules.get("lightning.pytorch.utilities.exceptions")
    return () if module is None else (module.MisconfigurationException,)


def _rank() -> int:
    module = sys.modules.get("lightning.pytorch.utilities.rank_zero")
    return 0 if module is None else getattr(module.rank_zero_only, "rank", None) or 0
