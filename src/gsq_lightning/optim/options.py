"""Makes optimizers and schedulers, and lets a resumed run change their options.

The state of an optimizer or scheduler includes its options, so restoring a checkpoint would undo a changed learning
rate. Therefore a checkpoint also keeps the options as they were given. If those given now are the same, everything is
restored. If they differ, the new ones take effect from the step at which the run resumes.
"""

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from gsq_lightning.errors import InputError, first_line, require

logger = logging.getLogger(__name__)

REFUSALS = (ArithmeticError, TypeError, ValueError)  # by which optimizers and schedulers reject their options
DERIVED = ("base_lrs", "_last_lr")  # of a scheduler's state: from the optimizer's lr
INNER = "_schedulers"  # in the state of SequentialLR and ChainedScheduler, a list of states


class Optimization(NamedTuple):
    """Optimizer and scheduler of a network.

    Attributes:
        optimizer, scheduler: new ones; the scheduler is stepped once per generator step.
        options: of both, as they were given, as plain data.
    """

    optimizer: Optimizer
    scheduler: LRScheduler | None
    options: dict[str, Any]


def make_optimization(
    network: str,
    parameters: Iterable[nn.Parameter],
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    make_scheduler: Callable[[Optimizer], Any] | None,
) -> Optimization:
    """Makes the optimizer and the scheduler of a network, whose name is for messages.

    Raises:
        InputError: where they refuse their options, the optimizer needs a closure, or the scheduler a metric.
    """
    try:
        optimizer = make_optimizer(parameters)
        groups = [_without_parameters(group) for group in optimizer.param_groups]  # before a scheduler changes them
        scheduler = None if make_scheduler is None else make_scheduler(optimizer)
    except REFUSALS as error:
        raise InputError(f"an optimizer or scheduler of the {network} rejects its options: {error}") from error
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    require(
        closure is None or closure.default is not closure.empty,
        f"{network}_optimizer is {type(optimizer).__name__}, whose step computes the loss several times; take one that "
        "steps by gradients, such as torch.optim.AdamW",
    )
    if isinstance(scheduler, ReduceLROnPlateau):
        raise InputError(
            f"{network}_scheduler is ReduceLROnPlateau, which waits for a metric; schedulers here are stepped once per "
            "generator step: take gsq_lightning.optim.WarmupDecay, or another of torch.optim.lr_scheduler"
        )
    options: dict[str, Any] = {"optimizer": groups, "scheduler": None}
    if scheduler is not None:
        options["scheduler"] = {"class": type(scheduler).__name__, **copy.deepcopy(scheduler.state_dict())}
    return Optimization(optimizer, scheduler, options)


def check_lengths(made: Mapping[str, Optimization], steps: int) -> None:
    """Raises InputError for a OneCycleLR that ends before a run of so many steps: torch's error comes when it does."""
    for name, one in made.items():
        if isinstance(one.scheduler, OneCycleLR):
            total = one.scheduler.total_steps
            require(
                steps <= total,
                f"{name}_scheduler OneCycleLR ends after its total_steps {total}, and the run has {steps} steps; "
                "change its options",
            )


def restore_options(made: Mapping[str, Optimization], checkpoint: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Changes the states in a checkpoint where options have changed since it was written.

    Args:
        made: of each network.
        checkpoint: with "optimizer_states" and "lr_schedulers", in the order of the networks, and "global_step".
        before: `Optimization.options` of each network when the checkpoint was written.

    Raises:
        InputError: where a scheduler cannot be brought to the checkpoint's step.
    """
    schedulers = iter(checkpoint["lr_schedulers"])
    restored = {name: next(schedulers) if old["scheduler"] is not None else None for name, old in before.items()}
    for number, (name, new) in enumerate(made.items()):
        old = before.get(name)
        if old is None or old == new.options:
            continue
        logger.warning(
            "the optimizer of the %s has the options given now, not the checkpoint's: %s",
            name,
            _changes(old, new.options),
        )
        if new.scheduler is not None:
            _advance(name, new.scheduler, checkpoint["global_step"])
            restored[name] = new.scheduler.state_dict()
        states = checkpoint["optimizer_states"]
        states[number] = _with_options(name, new, old, states[number])
    checkpoint["lr_schedulers"] = [restored[name] for name, new in made.items() if new.scheduler is not None]


def step_scheduler(network: str, scheduler: LRScheduler) -> None:
    """Steps the scheduler of a network. Raises InputError, which names the option, where it cannot go on."""
    try:
        scheduler.step()
    except REFUSALS as error:
        raise InputError(
            f"{network}_scheduler {type(scheduler).__name__} cannot go beyond step {scheduler.last_epoch - 1}: "
            f"{first_line(error)}; change its options"
        ) from error


def _with_options(name: str, new: Optimization, old: Mapping[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """A saved state of an optimizer with the options of a new one."""
    state = new.optimizer.state_dict()
    if [group.keys() for group in old["optimizer"]] != [group.keys() for group in new.options["optimizer"]]:
        logger.warning("the %s's optimizer is of another kind than the checkpoint's: its moments start from zero", name)
        return state
    for group, other in zip(state["param_groups"], saved["param_groups"], strict=True):
        group["params"] = other["params"]
    return {**saved, "param_groups": state["param_groups"]}


def _advance(name: str, scheduler: LRScheduler, steps: int) -> None:
    """Steps a new scheduler as often as the run has."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer has not been stepped
            for _ in range(steps):
                scheduler.step()
    except REFUSALS as error:
        raise InputError(
            f"{name}_scheduler has changed since the checkpoint, and cannot be brought to its step {steps}: "
            f"{first_line(error)}"
        ) from error


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In words, what differs between two `Optimization.options`."""
    changes = []
    if len(old["optimizer"]) != len(new["optimizer"]):
        changes.append(f"{len(old['optimizer'])} → {len(new['optimizer'])} groups of parameters")
    for before, now in zip(old["optimizer"], new["optimizer"], strict=False):
        changes += _differences(before, now)
    before, now = old["scheduler"], new["scheduler"]
    if before is None or now is None or before["class"] != now["class"]:
        names = ["none" if one is None else one["class"] for one in (before, now)]
        changes.append(f"scheduler {names[0]} → {names[1]}")
    else:
        changes += _differences(before, now)
    return "; ".join(changes)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if old == new or name in DERIVED:
            continue
        if name == INNER and isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for one, other in zip(old, new, strict=True):
                found += _differences(one, other)
        else:
            found.append(f"{name} {old} → {new}")
    return found


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "param_names")}


def as_parameters_lie(optimizer: Optimizer) -> None:
    """Lays out what a checkpoint brought like the parameters: fused steps take both in the order of memory."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
