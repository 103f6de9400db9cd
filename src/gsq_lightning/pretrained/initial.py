"""Weights that a training starts from: all or some tensors of another model, and which of them were loaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from gsq_lightning.errors import InputError, first_few, how_many, require
from gsq_lightning.pretrained.export import Weights, local_copy, read_tokenizer, tokenizer_in
from gsq_lightning.pretrained.saved import read_plain, weight_differences

DISCRIMINATOR = "discriminator."
SHOWN = 3  # names in a message


class InitialWeights(NamedTuple):
    """The content of a file to start from.

    Attributes:
        place: path of the file on this machine.
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
    """Which tensors were loaded.

    Attributes:
        place: path of the file.
        loaded: names of the tensors that were loaded from it.
        fresh: names of the networks' other tensors, which keep their initialization.
        left_out: names of tensors in the file that the networks do not have.
        settings: those in which the tokenizers differ, in words.
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
    """Loads weights into networks. All that the patterns choose must be there and fit; the others stay as they are.

    Args:
        initial: the weights.
        tokenizer, discriminator: what they are put into. Without a discriminator that of `initial` is left out.
        config: of `tokenizer`.
        include, exclude: shell patterns of names, such as "encoder.*", "quantizer.codebook" or "discriminator.*":
            they choose the tensors whose names one of `include` and none of `exclude` matches.

    Raises:
        InputError: where a pattern matches nothing, or a chosen tensor is missing or has another shape.
    """
    own = dict(tokenizer.state_dict())
    if discriminator is not None:
        own |= {DISCRIMINATOR + name: value for name, value in discriminator.state_dict().items()}
    given = initial.tensors
    parts = dict.fromkeys(f"{name.partition('.')[0]}.*" for name in (*own, *given))
    for pattern in (*include, *exclude):
        require(
            any(fnmatchcase(name, pattern) for name in (*own, *given)),
            f"the pattern {pattern!r} matches no tensor; there are {', '.join(parts)}",
        )
    wanted = _chosen(own, include, exclude)
    offered = _chosen(given, include, exclude)
    if discriminator is None:
        offered = {name: value for name, value in offered.items() if not name.startswith(DISCRIMINATOR)}
    settings = list(_settings(initial.config, config))
    if differences := weight_differences(wanted, offered):
        raise InputError(
            f"the weights of {initial.place} do not fit in {how_many(len(differences), 'tensor')}: "
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
        loaded=list(wanted),
        fresh=[name for name in own if name not in wanted],
        left_out=[name for name in given if name not in own],
        settings=settings,
    )


def _chosen(tensors: Mapping[str, Tensor], include: Sequence[str], exclude: Sequence[str]) -> dict[str, Tensor]:
    """Those whose names one of `include` and none of `exclude` matches."""

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return {name: x for name, x in tensors.items() if matches(name, include) and not matches(name, exclude)}


def _settings(theirs: Mapping[str, Any], ours: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        there, here = theirs.get(name), ours.get(name)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from _settings(there, here, f"{before}{name}.")
        elif name in theirs and there != here:
            yield f"{before}{name} {there} → {here}"
