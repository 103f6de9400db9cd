"""Finds where NaN or infinite values of a training step came from, by running the step again."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Finding(NamedTuple):
    """Where values that are not finite came from.

    Attributes:
        module: "image", or the first module, in the order of computation, with an output that is not finite; or None.
        gradients: names of parameters whose gradients are not finite, where all outputs are finite.
        terms: losses and what else is logged of them.
    """

    module: str | None
    gradients: list[str]
    terms: dict[str, float]


def find_nonfinite(
    root: nn.Module, image: Tensor, losses: Callable[[], Iterable[tuple[Tensor, Mapping[str, Tensor]]]]
) -> Finding:
    """Runs a step's losses again, and checks the output of every module. Gradients of `root` stay as they are.

    Args:
        root: holds all networks.
        image: of the step.
        losses: gives loss and terms of each network.
    """
    found: list[str] = [] if _is_finite(image) else ["image"]
    handles = [module.register_forward_hook(_note(name, found)) for name, module in root.named_modules() if name]
    parameters = {name: value for name, value in root.named_parameters() if value.requires_grad}
    gradients: list[str] = []
    terms: dict[str, float] = {}
    try:
        for loss, log in losses():
            terms |= {name: float(value) for name, value in log.items()}
            with torch.autocast(loss.device.type, enabled=False):  # as the backward pass of the step
                got = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            gradients += [name for name, one in zip(parameters, got, strict=True) if not _is_finite(one)]
    finally:
        for handle in handles:
            handle.remove()
    return Finding(found[0] if found else None, [] if found else gradients, terms)


def _note(name: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and not _is_finite(output):  # an inner module is through before the one around it
            found.append(name)

    return hook


def _is_finite(value: Any) -> bool:
    """Of a tensor, or of all within tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return all(_is_finite(one) for one in inner)
