"""Where values that are not finite came from."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gsq_lightning.optim.nonfinite import Finding, find_nonfinite


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 1))


def searched(root: nn.Module, image: Tensor, compute: Callable[[Any], Tensor] = torch.mean) -> Finding:
    def losses() -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        loss = compute(root(image))
        yield loss, {"loss_net": loss.detach()}

    return find_nonfinite(root, image, losses)


def test_the_innermost_module_that_was_first_is_named() -> None:
    root = network()
    nn.init.constant_(root.get_parameter("1.0.bias"), math.inf)
    found = searched(root, torch.ones(4, 2))
    assert found.module == "1.0"
    assert found.gradients == []  # what follows from it would only distract
    assert not math.isfinite(found.terms["loss_net"])


def test_an_image_comes_before_all_modules() -> None:
    assert searched(network(), torch.tensor([[1.0, math.nan]])).module == "image"


def test_nothing_is_found_where_all_is_finite() -> None:
    root = network()
    found = searched(root, torch.ones(4, 2))
    assert found[:2] == (None, [])
    assert found.terms == {"loss_net": pytest.approx(root(torch.ones(4, 2)).mean().item())}


class Wrapped(nn.Module):
    """Gives what a module computes within tuples, lists and dicts, beside indices."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"indices": torch.arange(3), "made": [(x, self.inner.weight.sum() * x / 0.0)]}


def test_outputs_within_tuples_lists_and_dicts_are_looked_at() -> None:
    root = nn.Sequential(Wrapped())
    assert searched(root, torch.ones(4, 2), lambda output: output["made"][0][0].sum() + root[0].inner.bias.sum()) == (
        "0",
        [],
        {"loss_net": pytest.approx(8 + root[0].inner.bias.item())},
    )


def test_gradients_that_are_not_finite_are_named_where_outputs_are() -> None:
    """A root at 0 has a value and no slope."""
    root = network()
    nn.init.zeros_(root.get_parameter("2.weight"))
    nn.init.zeros_(root.get_parameter("2.bias"))
    root.get_parameter("0.weight").requires_grad_(False)
    root.register_parameter("unused", nn.Parameter(torch.ones(1)))
    found = searched(root, torch.ones(4, 2), lambda output: output.sqrt().mean())
    assert found.module is None
    assert "2.bias" in found.gradients
    assert not {"0.weight", "unused"} & set(found.gradients)
    assert found.terms == {"loss_net": 0.0}


def test_gradients_and_modules_stay_as_they_were() -> None:
    root = network()
    for parameter in root.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)

    def fails(output: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    searched(root, torch.ones(4, 2))
    with pytest.raises(RuntimeError, match="out of memory"):
        searched(root, torch.ones(4, 2), fails)
    for parameter in root.parameters():
        assert torch.equal(parameter.grad, torch.full_like(parameter, 7.0))  # type: ignore[arg-type]
    assert not any(module._forward_hooks for module in root.modules())
