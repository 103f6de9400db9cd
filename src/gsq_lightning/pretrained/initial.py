"""Weights that a training starts from: all or some of those of another, and what became of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from gsq_lightning.errors import InputError, first_few, require
from gsq_lightning.pretrained.export import Weights, local_copy, read_tokenizer, tokenizer_in
from gsq_lightning.pretrained.saved import read_plain

DISCRIMINATOR = "discriminator."
SHOWN = 3  # names in a message


class InitialWeights(NamedTuple):
    """What a file has to start from.

    Attributes:
        place: where it lies on this machine.
        config: of the tokenizer, plain data.
        tensors: by name; those of a discriminator begin with "discriminator.".
    """

    place: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def has_discriminator(self) -> bool:
        return any(name.startswith(DISCRIMINATOR) for name in self.tensors)


@dataclass(frozen=True)
class Taken:
    """What became of the tensors.

    Attributes:
        place: of the file.
        loaded: names of those that were taken from it.
        fresh: of those that the networks have, and that start as they were made.
        left_out: of those that the file has and they have not.
        settings: in which the tokenizers differ, in words.
    """

    place: str
    loaded: list[str]
    fresh: list[str]
    left_out: list[str]
    settings: list[str]

    def __str__(self) -> str:
        """One line: counts, and first names of what was not taken."""
        text = f"{len(self.loaded)} tensors are those of {self.place}"
        for what, names in (("start fresh", self.fresh), ("of the file are left out", self.left_out)):
            text += f"; {len(names)} {what} ({first_few(names, SHOWN)})" if names else ""
        return text + (f"; settings differ: {', '.join(self.settings)}" if self.settings else "")


def read_initial(source: str | Path, weights: Weights = "ema") -> InitialWeights:
    """Reads weights to start from. Nothing that the source names is imported or run.

    Args:
        source: a checkpoint of training, or the folder of a run or of a recipe's runs for the newest one; the folder of
            an export; a file that GSQ's authors released; or a repository of the Hugging Face Hub with an export or a
            released file.
        weights: of a checkpoint: "ema" for the averaged ones where it has them, or "raw"; discriminators have one kind.

    Raises:
        InputError: where the source is none of these, or cannot be read.
    """
    place = local_copy(source)
    if place.is_dir():
        saved = read_tokenizer(place, weights=weights)
        return InitialWeights(place, saved.config, saved.weights)
    checkpoint = read_plain(place)
    saved = tokenizer_in(checkpoint, place, weights)
    state = checkpoint.get("state_dict", {})
    return InitialWeights(
        place, saved.config, saved.weights | {name: state[name] for name in state if name.startswith(DISCRIMINATOR)}
    )


def start_from(
    initial: InitialWeights,
    tokenizer: nn.Module,
    config: Mapping[str, Any],
    discriminator: nn.Module | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Taken:
    """Puts weights into networks. All that are asked for must be there and fit; the others stay as they are.

    Args:
        initial: the weights.
        tokenizer, discriminator: what they are put into. Without a discriminator that of `initial` is left out.
        config: of `tokenizer`.
        include, exclude: patterns of names, as of a shell: those that one of `include` and none of `exclude` matches
            are asked for. "encoder.*", "quantizer.codebook", "discriminator.*"

    Raises:
        InputError: where a pattern matches nothing, or a tensor that is asked for is missing or has another shape.
    """
    own = dict(tokenizer.state_dict())
    if discriminator is not None:
        own |= {DISCRIMINATOR + name: value for name, value in discriminator.state_dict().items()}
    given = initial.tensors
    for pattern in (*include, *exclude):
        require(
            any(fnmatchcase(name, pattern) for name in (*own, *given)),
            f"the pattern {pattern!r} matches no tensor; there are {', '.join(_parts([*own, *given]))}",
        )
    wanted = [name for name in own if _matches(name, include) and not _matches(name, exclude)]
    differences = [f"{name} is missing in it" for name in wanted if name not in given]
    differences += [
        f"{name} is {tuple(given[name].shape)} in it and {tuple(own[name].shape)} here"
        for name in wanted
        if name in given and given[name].shape != own[name].shape
    ]
    # what it has beside them is another network's, unless a pattern or the lack of a discriminator leaves it out
    asked = [name for name in given if _matches(name, include) and not _matches(name, exclude)]
    strangers = [name for name in asked if name not in own and (discriminator is not None or not _is_of_d(name))]
    differences += [f"{name} is unknown here" for name in strangers]
    settings = list(_settings(initial.config, config))
    if differences:
        raise InputError(
            f"the weights of {initial.place} do not fit in {len(differences)} tensors: "
            + first_few(differences, SHOWN, "; ")
            + (f". Settings differ: {', '.join(settings)}" if settings else "")
        )
    require(bool(wanted), f"the patterns leave nothing of {initial.place} to start from")
    for network, prefix in ((tokenizer, ""), (discriminator, DISCRIMINATOR)):
        if network is not None:
            chosen = {name: given[prefix + name] for name in network.state_dict() if prefix + name in wanted}
            network.load_state_dict(chosen, strict=False)
    return Taken(
        place=str(initial.place),
        loaded=wanted,
        fresh=[name for name in own if name not in wanted],
        left_out=[name for name in given if name not in own],
        settings=settings,
    )


def _is_of_d(name: str) -> bool:
    return name.startswith(DISCRIMINATOR)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _parts(names: Sequence[str]) -> list[str]:
    """encoder.*, …"""
    return list(dict.fromkeys(f"{name.partition('.')[0]}.*" for name in names))


def _settings(theirs: Mapping[str, Any], ours: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        there, here = theirs.get(name), ours.get(name)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from _settings(there, here, f"{before}{name}.")
        elif name in theirs and there != here:
            yield f"{before}{name} {there} → {here}"
