import math
from typing import Any

import pytest
import torch

from gsq_lightning import InputError
from gsq_lightning.optim.schedules import WarmupDecay


def rates(steps: int, **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    scheduler = WarmupDecay(optimizer, **settings)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_linear_by_hand() -> None:
    got = rates(10, warmup_steps=3, decay_steps=4, floor=0.4, shape="linear")
    assert got == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.7, 0.6, 0.5, 0.4, 0.4, 0.4])


def test_cosine_by_hand() -> None:
    got = rates(7, decay_start=2, decay_steps=4, floor=0.0)
    fall = [0.4 * (1 + math.cos(math.pi * step / 4)) for step in range(5)]
    assert got == pytest.approx([0.8, 0.8, *fall])


def test_constant_without_arguments() -> None:
    assert rates(4) == [0.8] * 4


def test_it_resumes() -> None:
    def optimizer() -> torch.optim.SGD:
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)

    first = optimizer()
    scheduler = WarmupDecay(first, warmup_steps=2, decay_steps=5)
    for _ in range(4):
        first.step()
        scheduler.step()
    second = optimizer()
    resumed = WarmupDecay(second, warmup_steps=2, decay_steps=5)
    resumed.load_state_dict(scheduler.state_dict())
    second.load_state_dict(first.state_dict())
    for each in (first, second):
        each.step()
    scheduler.step()
    resumed.step()
    assert second.param_groups[0]["lr"] == first.param_groups[0]["lr"] < 0.8


def test_a_floor_above_the_rate_is_refused() -> None:
    """The rate would rise where a fall was asked for."""
    with pytest.raises(InputError, match=r"floor is 0.9, above the optimizer's lr 0.8: the rate would rise"):
        rates(1, decay_steps=5, floor=0.9)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.8, 0.2)]
    with pytest.raises(InputError, match=r"floor is 0.3, above the optimizer's lr 0.2"):
        WarmupDecay(torch.optim.SGD(groups), decay_steps=5, floor=0.3)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(InputError, match="shape is 'Cosine'; it must be one of: cosine, linear"):
        rates(1, decay_steps=5, shape="Cosine")


@pytest.mark.parametrize("settings", [{"decay_start": 10}, {"floor": 0.1}, {"shape": "linear"}])
def test_options_of_a_fall_that_never_comes_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="have no effect where decay_steps is 0; give it, or leave them out"):
        rates(1, **settings)


@pytest.mark.parametrize("settings", [{"warmup_steps": -1}, {"warmup_steps": 5, "decay_start": 3}, {"floor": -1.0}])
def test_wrong_arguments_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be at least 0, and decay_start not before the end of the warm-up"):
        rates(1, **settings)
