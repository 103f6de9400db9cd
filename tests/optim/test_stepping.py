"""From gradients of several batches to one step: means over what came, clipping, steps that are skipped."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gsq_lightning import InputError
from gsq_lightning.errors import TrainingDiverged
from gsq_lightning.optim.stepping import StepOutcome, Stepper


class Bench:
    """A network w ↦ mean of w·x, trained by SGD, and the stepper that does it."""

    def __init__(self, clip_norm: float | None = None, accumulate: int = 1, max_skipped_steps: int = 3) -> None:
        self.network = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.network.weight)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1.0)
        self.stepper = Stepper({"net": self.network}, {"net": clip_norm}, accumulate, max_skipped_steps)

    def batch(self, x: Sequence[Sequence[float]], is_last: bool = False) -> StepOutcome | None:
        inputs = torch.tensor(x)
        self.stepper.start_batch(len(inputs), is_last)
        loss = self.network(inputs).mean()
        self.stepper.add("net", loss, {"mean_x": inputs[:, 0].mean()}, lambda total: total.backward())
        return self.stepper.step({"net": self.optimizer.step}, at_step=7) if self.stepper.completes else None

    @property
    def weight(self) -> list[float]:
        (row,) = self.network.weight.tolist()
        return row  # type: ignore[no-any-return]


IMAGES = [[1.0, 0.0], [3.0, 2.0], [5.0, -8.0], [0.0, 4.0], [6.0, 4.0]]
MEAN = [3.0, 0.4]


@pytest.mark.parametrize("cuts", [[5], [2, 3], [1, 1, 3], [4, 1]], ids=str)
def test_a_step_takes_the_mean_over_all_images_of_the_group(cuts: list[int]) -> None:
    """However they are cut into batches, of whatever sizes."""
    bench = Bench(accumulate=len(cuts))
    parts = torch.tensor(IMAGES).split(cuts)
    outcomes = [bench.batch(part.tolist()) for part in parts]
    assert outcomes[:-1] == [None] * (len(cuts) - 1)
    outcome = outcomes[-1]
    assert outcome is not None
    assert bench.weight == pytest.approx([-MEAN[0], -MEAN[1]])
    assert outcome.means["mean_x"].item() == pytest.approx(3.0)
    assert outcome.means["gradient_norm_net"].item() == pytest.approx(math.hypot(*MEAN))
    assert outcome.stepped == {"net": True}
    assert bench.stepper.batches == 0


def test_a_group_that_an_epoch_cuts_short_is_divided_by_what_came() -> None:
    """Not by the full count, which would make the last step of each epoch smaller."""
    bench = Bench(accumulate=4)
    assert bench.batch([[2.0, 0.0]]) is None
    assert bench.stepper.batches == 1
    assert bench.batch([[4.0, 0.0]], is_last=True) is not None
    assert bench.weight == pytest.approx([-3.0, 0.0])
    assert bench.stepper.batches == 0
    for _ in range(3):
        assert bench.batch([[1.0, 1.0]]) is None  # the next group is a whole one


def test_clipping_is_of_the_mean_gradient() -> None:
    bench = Bench(clip_norm=2.0, accumulate=2)
    bench.batch([[3.0, 4.0]])
    outcome = bench.batch([[3.0, 4.0]])
    assert outcome is not None
    assert outcome.means["gradient_norm_net"].item() == pytest.approx(5.0)
    assert bench.weight == pytest.approx([-2 * 3 / 5, -2 * 4 / 5], rel=1e-5)
    bench = Bench(clip_norm=6.0)
    bench.batch([[3.0, 4.0]])
    assert bench.weight == pytest.approx([-3.0, -4.0])


def test_steps_that_are_not_finite_are_skipped_and_counted() -> None:
    bench = Bench()
    bench.batch([[1.0, 1.0]])
    outcome = bench.batch([[math.inf, 1.0]])
    assert outcome is not None
    assert outcome.stepped == {"net": False}
    assert outcome.means["skipped_steps_net"].item() == 1
    assert bench.weight == [-1.0, -1.0]
    assert bench.network.weight.grad is None
    bench.batch([[1.0, 1.0]])
    assert bench.weight == [-2.0, -2.0]
    assert (bench.stepper.skipped["net"].in_a_row, bench.stepper.skipped["net"].in_all) == (0, 1)


def test_too_many_in_a_row_end_the_run_also_over_a_resume() -> None:
    bench = Bench(max_skipped_steps=3)
    for _ in range(2):
        bench.batch([[math.nan, 1.0]])
    resumed = Bench(max_skipped_steps=3)
    resumed.stepper.load_state_dict(bench.stepper.state_dict())
    with pytest.raises(TrainingDiverged, match="the gradients of the net were not finite 3 times in a row, last at st"):
        resumed.batch([[math.nan, 1.0]])
    assert resumed.weight == [0.0, 0.0]


def test_networks_step_each_by_itself() -> None:
    networks = {"one": nn.Linear(1, 1, bias=False), "other": nn.Linear(1, 1, bias=False)}
    for network in networks.values():
        nn.init.zeros_(network.weight)
    stepper = Stepper(networks, dict.fromkeys(networks), 1, 5)
    take: dict[str, Callable[[], Any]] = {
        name: torch.optim.SGD(network.parameters(), lr=1.0).step for name, network in networks.items()
    }

    def batch(inputs: dict[str, float]) -> StepOutcome:
        stepper.start_batch(1, is_last=False)
        for name, x in inputs.items():
            loss = networks[name](torch.tensor([[x]])).mean()
            stepper.add(name, loss, {f"loss_{name}": loss}, Tensor.backward)
        return stepper.step(take, 0)

    assert batch({"one": 2.0}).stepped == {"one": True}  # the other is not trained yet
    assert batch({"one": 1.0, "other": math.nan}).stepped == {"one": True, "other": False}
    assert [network.weight.item() for network in networks.values()] == [-3.0, 0.0]


def test_a_group_can_be_given_up() -> None:
    bench = Bench(accumulate=2)
    bench.batch([[9.0, 9.0]])
    bench.stepper.reset()
    bench.batch([[1.0, 0.0]])
    bench.batch([[1.0, 0.0]])
    assert bench.weight == [-1.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate_batches is 0; it must be at least 1"),
        ({"max_skipped_steps": 0}, "max_skipped_steps is 0; it must be at least 1"),
        ({"clip_norm": 0.0}, "net_clip_norm is 0.0; it must be above 0"),
        ({"clip_norm": math.nan}, "net_clip_norm is nan; it must be above 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Bench(**options)
