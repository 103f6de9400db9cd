"""The exceptions of this library, checks that raise them, and causes of errors."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

Value = TypeVar("Value")


class InputError(ValueError):
    """Something given by the user cannot work.

    The message is one paragraph: what was given, what is allowed, what to do. The command line prints it
    without a traceback and exits with code 2; from Python it is an ordinary `ValueError`.
    """


def require(condition: bool, message: str) -> None:
    """Raises InputError with `message` unless the condition holds."""
    if not condition:
        raise InputError(message)


def require_at_least(minimum: float, **values: float) -> None:
    """Raises InputError for the first of several named values that is below a minimum, or NaN."""
    for name, value in values.items():
        require(value >= minimum, f"{name} is {value}; it must be at least {minimum}")


def look_up(name: str, word: Any, table: Mapping[Any, Value]) -> Value:
    """The value of one of several words. Raises InputError, which lists them, for any other.

    Args:
        name: of the argument, for the message.
        word: what was given.
        table: what is allowed, such as a dict keyed by the words of a `Literal`.
    """
    if not isinstance(word, str) or word not in table:
        raise InputError(f"{name} is {word!r}; it must be one of: {', '.join(table)}")
    return table[word]


def one_of(name: str, word: Value, kinds: Any) -> Value:
    """A word that a `Literal` type allows. Raises InputError, which lists them, for any other.

    Args:
        name: of the argument, for the message.
        word: what was given.
        kinds: the type.
    """
    look_up(name, word, dict.fromkeys(get_args(kinds)))
    return word


class WeightsMissing(InputError):
    """A network's published weights are not cached, and cannot be downloaded.

    Args:
        network: its stable key, such as "vgg16".
        file: name of the file of weights.
        url: where it is published.
        folder: where it was looked for.
        command: line for a shell that fetches it to that place.
        reason: why the download failed; by default the server does not answer.
    """

    def __init__(
        self, network: str, file: str, url: str, folder: Path, command: str, reason: str = "its server does not answer"
    ) -> None:
        super().__init__(
            f"the weights of {network} are missing: {file} is not in {folder} and could not be downloaded ({reason}). "
            f"On a machine with network: {command}"
        )
        self.network = network
        self.file = file
        self.url = url
        self.folder = folder
        self.command = command


def whole_number(name: str, value: Any, least: int) -> int:
    """A whole number, numpy's too, as a Python int, which checkpoints need.

    Raises InputError for what is none, or is below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}; it must be a whole number") from None
    require(number >= least, f"{name} is {number}; it must be at least {least}")
    return number


class TrainingDiverged(RuntimeError):
    """Training produced non-finite gradients too many times in a row. The weights are those of the last good step."""


class ModelNotFinite(RuntimeError):
    """A validation found reconstructions that are NaN or infinite, so that there is no metric to report."""


class CheckpointNotWritten(RuntimeError):
    """Training ended, and its last checkpoint could not be written. The one before it is whole."""


class RunStopped(RuntimeError):
    """A signal asked the run to stop. Training does after a step, with a checkpoint.

    Attributes:
        signal: number of the signal, or None in a process that did not receive it.
        agreed: whether all processes stop at the same place.
    """

    def __init__(self, message: str, signal: int | None = None, agreed: bool = True) -> None:
        super().__init__(message)
        self.signal = signal
        self.agreed = agreed


def first_few(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first names in one text, with a mark where there are more."""
    return separator.join(names[:most]) + (f"{separator}…" if len(names) > most else "")


def how_many(number: int, one: str, several: str | None = None) -> str:
    """A number with its noun: 1 image, 2 images; with `one` "file is" and `several` "files are" also the verb."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it, the last one first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
