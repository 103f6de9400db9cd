"""Ranks ask each other about a stop once a second, not at each step."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gsq_lightning.runs import agreement


class TwoRanks:
    """A Trainer of two ranks, seen from one of them; the other says nothing, and is as fast."""

    def __init__(self) -> None:
        self.asked_at: list[int] = []
        self.step = 0
        self.world_size = 2
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=self.reduce)

    def reduce(self, message: Tensor, reduce_op: str) -> Tensor:
        assert reduce_op == "sum"
        self.asked_at.append(self.step)
        return message + torch.tensor([0.0, float(message[1])])


@pytest.mark.parametrize(("seconds", "every"), [(0.1, 10), (0.25, 4), (3.0, 1)])
def test_ranks_ask_once_a_second(monkeypatch: pytest.MonkeyPatch, seconds: float, every: int) -> None:
    ranks = TwoRanks()
    monkeypatch.setattr(agreement.time, "monotonic", lambda: ranks.step * seconds)
    asking = agreement.Agreement()
    stops = []
    for step in range(1, 31):
        ranks.step = step
        if asking.any_rank(ranks, says=step >= 12, now=step == 17):  # type: ignore[arg-type]
            stops.append(step)
    first = [1 + number * every for number in range(30) if 1 + number * every <= 17]
    assert ranks.asked_at == sorted({*first, *range(17, 31, every)})
    assert stops == [step for step in ranks.asked_at if step >= 12]
