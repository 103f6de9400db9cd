"""The running average: from the initial weights on, with and without its warm-up."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from gsq_lightning import InputError
from gsq_lightning.optim.ema import EMA


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize("warmup", [False, True])
def test_it_averages_all_weights_from_the_first_ones_on(warmup: bool) -> None:
    trained = network()
    ema = EMA(trained, decay=0.75, warmup=warmup)
    expected = [parameter.detach().double() for parameter in copy.deepcopy(trained).parameters()]
    for updates in range(40):
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.normal_()
        ema.update(trained)
        decay = min(0.75, (1 + updates) / (10 + updates)) if warmup else 0.75
        pairs = zip(expected, trained.parameters(), strict=True)
        expected = [decay * average + (1 - decay) * new.detach().double() for average, new in pairs]
    assert ema.updates == 40
    for got, wanted in zip(ema.module.parameters(), expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_buffers_are_copied() -> None:
    trained = network()
    ema = EMA(trained, decay=0.9)
    trained(torch.rand(8, 3))
    ema.update(trained)
    assert int(ema.module.get_buffer("1.num_batches_tracked")) == 1
    assert torch.equal(ema.module.get_buffer("1.running_mean"), trained.get_buffer("1.running_mean"))


def test_the_share_of_the_initialization() -> None:
    """Of 40 updates at 0.999: 96 % without the warm-up, nothing with it."""
    trained = nn.Linear(1, 1, bias=False)
    for warmup in (False, True):
        nn.init.ones_(trained.weight)
        ema = EMA(trained, decay=0.999, warmup=warmup)
        nn.init.zeros_(trained.weight)
        for updates in range(40):
            assert float(ema.module.get_parameter("weight")) == pytest.approx(ema.initial_share, abs=1e-6), updates
            ema.update(trained)
        assert ema.initial_share == pytest.approx(0.0 if warmup else 0.999**40, abs=1e-6)


def test_the_warmup_ends_at_the_decay() -> None:
    ema = EMA(nn.Linear(1, 1), decay=0.9)
    assert [ema.decay_at(updates) for updates in (0, 1, 10)] == pytest.approx([0.1, 2 / 11, 11 / 20])
    assert ema.decay_at(80) == 0.9
    assert ema.decay_at(10**6) == 0.9
    assert not math.isnan(ema.initial_share)


def test_it_starts_as_a_copy_of_weights_loaded_later() -> None:
    trained = network()
    ema = EMA(trained, decay=0.9)
    ema.update(trained)
    nn.init.ones_(trained.get_parameter("0.weight"))
    ema.start(trained)
    assert ema.initial_share == 1.0
    assert torch.equal(ema.module.get_parameter("0.weight"), trained.get_parameter("0.weight"))
    assert not any(parameter.requires_grad for parameter in ema.parameters())


def test_it_travels_to_spawned_processes() -> None:
    ema = pickle.loads(pickle.dumps(EMA(network(), decay=0.9)))
    assert ema.decay == 0.9


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan])
def test_a_decay_outside_0_to_1_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match=f"ema_decay is {decay}; it must be at least 0 and below 1"):
        EMA(network(), decay=decay)
