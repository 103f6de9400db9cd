"""Options given when a run is resumed beat those that the checkpoint restores; unchanged ones leave all as it was."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from gsq_lightning import InputError
from gsq_lightning.optim import WarmupDecay
from gsq_lightning.optim.options import Optimization, as_parameters_lie, make_optimization, restore_options

STEPS = 6

MakeOptimizer = Callable[[Any], Optimizer]
MakeScheduler = Callable[[Optimizer], Any]


def adamw(**options: Any) -> MakeOptimizer:
    return lambda parameters: AdamW(parameters, **{"lr": 0.1, **options})


class Run:
    """A network that is trained for some steps."""

    def __init__(self, make_optimizer: MakeOptimizer, make_scheduler: MakeScheduler | None = None) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(3, 2)
        self.made = make_optimization("tokenizer", self.network.parameters(), make_optimizer, make_scheduler)

    def train(self, steps: int) -> list[float]:
        """The rate of each step."""
        rates = []
        for _ in range(steps):
            rates.append(self.made.optimizer.param_groups[0]["lr"])
            self.network(torch.ones(1, 3)).square().mean().backward()
            self.made.optimizer.step()
            self.made.optimizer.zero_grad()
            if self.made.scheduler is not None:
                self.made.scheduler.step()
        return rates

    def checkpoint(self) -> dict[str, Any]:
        scheduler = self.made.scheduler
        return copy.deepcopy(
            {
                "network": self.network.state_dict(),
                "optimizer_states": [self.made.optimizer.state_dict()],
                "lr_schedulers": [] if scheduler is None else [scheduler.state_dict()],
                "global_step": STEPS,
                "options": {"tokenizer": self.made.options},
            }
        )

    def resume(self, checkpoint: dict[str, Any]) -> "Run":
        restore_options({"tokenizer": self.made}, checkpoint, checkpoint["options"])
        self.network.load_state_dict(checkpoint["network"])
        self.made.optimizer.load_state_dict(checkpoint["optimizer_states"][0])
        assert len(checkpoint["lr_schedulers"]) == (self.made.scheduler is not None)
        if self.made.scheduler is not None:
            self.made.scheduler.load_state_dict(checkpoint["lr_schedulers"][0])
        return self


def trained(make_optimizer: MakeOptimizer, make_scheduler: MakeScheduler | None = None) -> dict[str, Any]:
    run = Run(make_optimizer, make_scheduler)
    run.train(STEPS)
    return run.checkpoint()


def sequence(optimizer: Optimizer) -> LRScheduler:
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=4), StepLR(optimizer, 2)], milestones=[4])


SCHEDULERS: dict[str, MakeScheduler | None] = {
    "none": None,
    "WarmupDecay": lambda optimizer: WarmupDecay(optimizer, warmup_steps=3, decay_steps=9),
    "StepLR": lambda optimizer: StepLR(optimizer, 2, gamma=0.3),
    "MultiStepLR": lambda optimizer: MultiStepLR(optimizer, [2, 7]),
    "SequentialLR": sequence,
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, max_lr=0.2, total_steps=20),
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_same_options_resume_bit_exactly(name: str, caplog: pytest.LogCaptureFixture) -> None:
    whole = Run(adamw(), SCHEDULERS[name])
    rates = whole.train(2 * STEPS)
    resumed = Run(adamw(), SCHEDULERS[name]).resume(trained(adamw(), SCHEDULERS[name]))
    assert resumed.train(STEPS) == rates[STEPS:]
    for got, wanted in zip(resumed.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(got, wanted)
    assert not caplog.messages


def test_a_rate_that_a_callback_has_changed_is_kept() -> None:
    run = Run(adamw())
    run.train(STEPS)
    run.made.optimizer.param_groups[0]["lr"] = 0.007
    assert Run(adamw()).resume(run.checkpoint()).train(1) == [0.007]


@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", 1e-6), ("weight_decay", 0.3), ("betas", (0.5, 0.9)), ("eps", 1e-3), ("amsgrad", True)],
)
def test_a_changed_option_is_in_effect(option: str, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = trained(adamw())
    momentum = checkpoint["optimizer_states"][0]["state"][0]["exp_avg"]
    resumed = Run(adamw(**{option: value})).resume(checkpoint)
    (group,) = resumed.made.optimizer.param_groups
    assert group[option] == value
    assert {name: group[name] for name in ("lr", "eps") if name != option} == {
        name: {"lr": 0.1, "eps": 1e-8}[name] for name in ("lr", "eps") if name != option
    }
    state = resumed.made.optimizer.state[next(resumed.network.parameters())]
    assert torch.equal(state["exp_avg"], momentum)  # averages go on
    assert int(state["step"]) == STEPS
    assert f"{option} {checkpoint['options']['tokenizer']['optimizer'][0][option]} → {value}" in caplog.text


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in ("none", "OneCycleLR")])
def test_a_changed_rate_follows_its_schedule(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """As if it had been given from the start."""
    expected = Run(adamw(lr=0.02), SCHEDULERS[name]).train(2 * STEPS)[STEPS:]
    got = Run(adamw(lr=0.02), SCHEDULERS[name]).resume(trained(adamw(), SCHEDULERS[name])).train(STEPS)
    assert got == expected
    (message,) = caplog.messages
    assert "lr 0.1 → 0.02" in message
    assert "base_lrs" not in message  # which follow from it
    assert "_schedulers" not in message


@pytest.mark.parametrize("before", ["none", "WarmupDecay", "StepLR", "OneCycleLR"])
@pytest.mark.parametrize("now", ["none", "MultiStepLR", "SequentialLR", "WarmupDecay"])
def test_a_changed_added_or_removed_schedule_is_in_effect_from_the_step_at_hand(before: str, now: str) -> None:
    """An added one does not start at step 0, a removed one leaves the given rate."""
    expected = Run(adamw(), SCHEDULERS[now]).train(2 * STEPS)[STEPS:]
    got = Run(adamw(), SCHEDULERS[now]).resume(trained(adamw(), SCHEDULERS[before])).train(STEPS)
    assert got == expected


def test_changed_options_of_a_schedule_are_in_effect(caplog: pytest.LogCaptureFixture) -> None:
    def decay(steps: int) -> MakeScheduler:
        return lambda optimizer: WarmupDecay(optimizer, warmup_steps=3, decay_steps=steps)

    expected = Run(adamw(), decay(30)).train(2 * STEPS)[STEPS:]
    assert Run(adamw(), decay(30)).resume(trained(adamw(), decay(9))).train(STEPS) == expected
    assert "decay_steps 9 → 30" in caplog.text


def test_a_schedule_that_cannot_reach_the_step_is_refused_in_one_line() -> None:
    short: MakeScheduler = lambda optimizer: OneCycleLR(optimizer, max_lr=0.2, total_steps=4)  # noqa: E731
    with pytest.raises(
        InputError, match=r"tokenizer_scheduler has changed .* cannot be brought to its step 6: Tried to"
    ):
        Run(adamw(), short).resume(trained(adamw()))


def test_an_optimizer_of_another_kind_starts_without_averages(caplog: pytest.LogCaptureFixture) -> None:
    resumed = Run(lambda parameters: SGD(parameters, lr=0.5, momentum=0.9)).resume(trained(adamw()))
    assert resumed.train(1) == [0.5]
    assert "the tokenizer's optimizer is of another kind" in caplog.text


def test_schedules_of_two_networks_are_not_mixed_up() -> None:
    """The checkpoint has a schedule of the discriminator alone, the resumed run of both."""

    def both(tokenizer: MakeScheduler | None) -> dict[str, Optimization]:
        schedulers = {"tokenizer": tokenizer, "discriminator": SCHEDULERS["StepLR"]}
        return {
            name: make_optimization(name, nn.Linear(2, 2).parameters(), adamw(), scheduler)
            for name, scheduler in schedulers.items()
        }

    before = both(None)
    discriminator_scheduler = before["discriminator"].scheduler
    assert discriminator_scheduler is not None
    for _ in range(STEPS):
        before["discriminator"].optimizer.step()
        discriminator_scheduler.step()
    checkpoint = {
        "optimizer_states": [one.optimizer.state_dict() for one in before.values()],
        "lr_schedulers": [discriminator_scheduler.state_dict()],
        "global_step": STEPS,
    }
    restore_options(both(SCHEDULERS["MultiStepLR"]), checkpoint, {name: one.options for name, one in before.items()})
    of_tokenizer, of_discriminator = checkpoint["lr_schedulers"]  # type: ignore[misc]
    assert (of_tokenizer["last_epoch"], list(of_tokenizer["milestones"])) == (STEPS, [2, 7])
    assert of_discriminator == discriminator_scheduler.state_dict()
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.01)  # type: ignore[index]


def test_options_are_plain_data_that_a_checkpoint_may_hold(tmp_path: Any) -> None:
    for make_scheduler in SCHEDULERS.values():
        options = Run(adamw(), make_scheduler).made.options
        torch.save(options, tmp_path / "options.pt")
        assert torch.load(tmp_path / "options.pt", weights_only=True) == options


def test_a_scheduler_that_waits_for_a_metric_is_refused() -> None:
    with pytest.raises(InputError, match="tokenizer_scheduler is ReduceLROnPlateau, which waits for a metric"):
        Run(adamw(), ReduceLROnPlateau)


def test_refused_options_become_one_line() -> None:
    with pytest.raises(
        InputError, match="an optimizer or scheduler of the tokenizer rejects its options: Invalid lear"
    ):
        Run(adamw(lr=-1.0))


def test_moments_of_another_memory_format_belong_to_the_same_weights() -> None:
    """A fused step goes through weights and moments in the order of memory."""
    image = torch.rand(2, 3, 6, 6)

    def trained(network: nn.Conv2d, optimizer: Optimizer) -> Tensor:
        network(image).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return network.weight.detach()

    first = nn.Conv2d(3, 4, 3)
    optimizer = AdamW(first.parameters(), lr=0.1, fused=True)
    trained(first, optimizer)
    second = copy.deepcopy(first).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    resumed = AdamW(second.parameters(), lr=0.1, fused=True)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    as_parameters_lie(resumed)
    torch.testing.assert_close(trained(second, resumed), trained(first, optimizer))
