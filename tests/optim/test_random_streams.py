import random

import numpy as np
import pytest
import torch

from gsq_lightning.optim.random_streams import seed_streams


def drawn(seed: int, batch: int, rank: int) -> tuple[float, float, float]:
    """By torch, NumPy and Python."""
    seed_streams(seed, batch, rank)
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_a_batch_draws_the_same_again() -> None:
    first = drawn(3, 5, 1)
    drawn(3, 6, 1)
    assert drawn(3, 5, 1) == first


@pytest.mark.parametrize("other", [(4, 5, 1), (3, 6, 1), (3, 5, 0), (5, 3, 1)], ids=["seed", "batch", "rank", "order"])
def test_another_seed_batch_or_rank_draws_other_numbers(other: tuple[int, int, int]) -> None:
    assert not set(drawn(3, 5, 1)) & set(drawn(*other))
