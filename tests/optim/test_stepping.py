"""From gradients of several batches to one step: means over what came, clipping, steps that are skipped."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gsq_lightning import InputError
from gsq_lightning.errors import TrainingDiverged
from gsq_lightning.optim import PaperAdamW, stepping
from gsq_lightning.optim.stepping import OptimizerStep, SkippedSteps, Stepper


class Bench:
    """A network w ↦ mean of w·x, trained by SGD, and the stepper that does it."""

    def __init__(
        self,
        clip_norm: float | None = None,
        accumulate: int = 1,
        max_skipped_steps: int = 3,
        fused: bool = False,
    ) -> None:
        self.network = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.network.weight)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1.0, fused=fused)
        self.stepper = Stepper({"net": self.network}, {"net": clip_norm}, accumulate, max_skipped_steps)

    def batch(self, x: Sequence[Sequence[float]], is_last: bool = False) -> dict[str, Tensor] | None:
        inputs = torch.tensor(x)
        self.stepper.start_batch(len(inputs), is_last)
        loss = self.network(inputs).mean()
        self.stepper.add("net", loss, {"mean_x": inputs[:, 0].mean()}, lambda total: total.backward())
        if not self.stepper.completes:
            return None
        return self.stepper.step({"net": OptimizerStep(self.optimizer, self.optimizer.step)})

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
    *before, means = [bench.batch(part.tolist()) for part in parts]
    assert before == [None] * (len(cuts) - 1)
    assert means is not None
    assert bench.weight == pytest.approx([-MEAN[0], -MEAN[1]])
    assert means["mean_x"].item() == pytest.approx(3.0)
    assert means["gradient_norm_net"].item() == pytest.approx(math.hypot(*MEAN))
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
    means = bench.batch([[3.0, 4.0]])
    assert means is not None
    assert means["gradient_norm_net"].item() == pytest.approx(5.0)
    assert bench.weight == pytest.approx([-2 * 3 / 5, -2 * 4 / 5], rel=1e-5)
    bench = Bench(clip_norm=6.0)
    bench.batch([[3.0, 4.0]])
    assert bench.weight == pytest.approx([-3.0, -4.0])


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_are_not_finite_are_skipped_and_counted(fused: bool) -> None:
    bench = Bench(fused=fused)
    bench.batch([[1.0, 1.0]])
    bench.batch([[math.inf, 1.0]])
    assert bench.stepper.skipped_steps() == {"net": SkippedSteps(in_a_row=1, in_all=1)}
    assert bench.weight == [-1.0, -1.0]
    assert bench.network.weight.grad is None
    bench.batch([[1.0, 1.0]])
    assert bench.weight == [-2.0, -2.0]
    assert bench.stepper.skipped_steps() == {"net": SkippedSteps(in_a_row=0, in_all=1)}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_a_skipped_step_leaves_weights_and_state_of_the_optimizer_alone(
    kind: type[torch.optim.Optimizer], fused: bool
) -> None:
    """Neither momentum, nor weight decay, nor the count of steps: what follows is as if it had not been."""
    weights = []
    for gradients in ([1.0, 2.0, 3.0], [1.0, math.nan, 2.0, math.inf, 3.0]):
        bench = Bench(fused=fused)
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        bench.optimizer = kind(bench.network.parameters(), lr=0.1, weight_decay=0.1, fused=fused, **options)  # type: ignore[call-arg]
        nn.init.ones_(bench.network.weight)
        for gradient in gradients:
            bench.batch([[gradient, 1.0]])
        weights.append(bench.weight)
    assert weights[0] == weights[1]


def test_so_does_an_optimizer_that_is_fused_in_part() -> None:
    bench = Bench()
    groups: list[dict[str, Any]] = [
        {"params": bench.network.parameters(), "fused": False},
        {"params": [nn.Parameter(torch.zeros(1))]},
    ]
    bench.optimizer = PaperAdamW(groups)
    nn.init.ones_(bench.network.weight)
    bench.batch([[math.nan, 1.0]])
    assert bench.weight == [1.0, 1.0]
    assert bench.stepper.skipped_steps() == {"net": SkippedSteps(in_a_row=1, in_all=1)}


class Sum:
    """The sum over three ranks with equal tensors, there once it is waited for."""

    def __init__(self, tensor: Tensor, async_op: bool = False) -> None:
        self.tensor = tensor
        if not async_op:
            self.wait()

    def wait(self) -> None:
        self.tensor *= 3


def test_ranks_with_the_same_images_step_like_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where weights and their gradients lie in memory in another order."""

    def stepped() -> list[Tensor]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        stepper = Stepper({"net": network}, {"net": None}, 1, 1)
        stepper.start_batch(5, is_last=False)
        loss = network(torch.rand(5, 3, 4, 4)).square().mean()
        stepper.add("net", loss, {"loss": loss}, Tensor.backward)
        means = stepper.step({"net": OptimizerStep(optimizer, optimizer.step)})
        return [*means.values(), *(parameter.detach() for parameter in network.parameters())]

    alone = stepped()
    monkeypatch.setattr(stepping, "world_size", lambda: 3)
    monkeypatch.setattr(stepping.distributed, "all_reduce", Sum)
    torch.testing.assert_close(stepped(), alone)


def test_too_many_in_a_row_end_the_run_also_over_a_resume() -> None:
    bench = Bench(max_skipped_steps=3)
    for _ in range(2):
        bench.batch([[math.nan, 1.0]])
    bench.stepper.stop_if_diverged(2)
    resumed = Bench(max_skipped_steps=3)
    resumed.stepper.load_state_dict(bench.stepper.state_dict())
    resumed.batch([[math.nan, 1.0]])
    with pytest.raises(TrainingDiverged, match="gradients of the net were not finite 3 times in a row, last at step 3"):
        resumed.stepper.stop_if_diverged(3)
    assert resumed.weight == [0.0, 0.0]


def test_networks_step_each_by_itself() -> None:
    networks = {"one": nn.Linear(1, 1, bias=False), "other": nn.Linear(1, 1, bias=False)}
    for network in networks.values():
        nn.init.zeros_(network.weight)
    stepper = Stepper(networks, dict.fromkeys(networks), 1, 5)
    optimizers = {name: torch.optim.SGD(network.parameters(), lr=1.0) for name, network in networks.items()}
    steps = {name: OptimizerStep(optimizer, optimizer.step) for name, optimizer in optimizers.items()}

    def batch(inputs: dict[str, float]) -> None:
        stepper.start_batch(1, is_last=False)
        for name, x in inputs.items():
            loss = networks[name](torch.tensor([[x]])).mean()
            stepper.add(name, loss, {f"loss_{name}": loss}, Tensor.backward)
        stepper.step(steps)

    batch({"one": 2.0})  # the other is not trained yet
    batch({"one": 1.0, "other": math.nan})
    assert stepper.skipped_steps() == {"one": SkippedSteps(0, 0), "other": SkippedSteps(1, 1)}
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


def test_counters_lie_on_the_device_of_their_network() -> None:
    """So that no step copies them there, after a resume or going back neither."""
    network = nn.Sequential()
    stepper = Stepper({"tokenizer": network}, {}, 1, 1)
    network.append(nn.Linear(2, 2, device="meta"))
    stepper.reset()
    assert stepper._skipped["tokenizer"].is_meta
    stepper.load_state_dict({"tokenizer": {"in_a_row": 1, "in_all": 2}})
    assert stepper._skipped["tokenizer"].is_meta
