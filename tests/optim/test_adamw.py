import torch
from torch import nn

from gsq_lightning.optim import PaperAdamW


def test_it_has_the_papers_settings() -> None:
    """Section 4: what a run gets that names the optimizer alone."""
    defaults = PaperAdamW([nn.Parameter(torch.zeros(1))]).defaults
    paper = {"lr": 1e-4, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.05}
    assert {name: defaults[name] for name in paper} == paper
    assert defaults["fused"]  # any other waits for the gradients in each step
