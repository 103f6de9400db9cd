"""Tests of the kernels of benchmarks/group_norm.py, by Triton's interpreter; tests/test_interpreter.py runs them."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import group_norm


@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 8, 5, 7), 4), ((3, 64, 40, 33), 32), ((1, 96, 16, 16), 32), ((2, 128, 9, 9), 1)]
)
def test_values_and_gradients_are_pytorchs(shape: Any, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_norm, "TILE", 1024)
    monkeypatch.setattr(group_norm, "PARTS", 4)
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, shape[1])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    exact = nn.GroupNorm(groups, shape[1]).double()
    exact.load_state_dict(norm.state_dict())
    network = nn.Sequential(norm, nn.SiLU(), nn.Identity())
    group_norm.with_kernels(network)
    assert isinstance(network[0], group_norm.GroupNormSiLU)
    image = torch.randn(shape) * 3 + 50
    x = image.to(memory_format=torch.channels_last).requires_grad_()
    y = image.double().requires_grad_()
    gradient = torch.randn(shape)
    out, expected = network(x), F.silu(exact(y))
    out.backward(gradient)
    expected.backward(gradient.double())
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    for one, other in [(out, expected), (x.grad, y.grad), *zip(norm.parameters(), exact.parameters(), strict=True)]:
        one, other = (of.grad if isinstance(of, nn.Parameter) else of for of in (one, other))
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=float(other.abs().max()) * 1e-5)


def test_under_autocast_the_output_has_its_type() -> None:
    norm = nn.GroupNorm(4, 16)
    x = torch.randn(2, 16, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = group_norm.GroupNormSiLU(norm)(x)
        expected = F.silu(norm(x.float())).bfloat16()
    assert out.dtype == torch.bfloat16
    assert ((out - expected).abs() <= 2**-7 * expected.abs()).all()
