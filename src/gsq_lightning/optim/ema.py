"""The running average of a network's weights (EMA) that is validated and exported."""

import copy
import math

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gsq_lightning.errors import require

WARMUP_UPDATES = 100  # the product of the first 100 decays of the warm-up is below 1e-12


class EMA(nn.Module):
    """average ← d · average + (1 - d) · weights, from the initial weights on; buffers are copied.

    Args:
        network: what is averaged; a copy of it holds the average.
        decay: d, in [0, 1).
        warmup: d is at first smaller, min(decay, (1 + n) / (10 + n)) after n updates, as in timm and diffusers.
            Without it the average of a short run is mostly its initialization: after n updates a share of d^n.

    Attributes:
        module: the average, a network without gradients.
        updates: n; not in the state dict, but in the checkpoint's training state. A loop of your own saves and restores
            it too: with n = 0 the warm-up begins again, and forgets the average.

    Raises:
        InputError: for a decay outside [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float, warmup: bool = True) -> None:
        super().__init__()
        require(
            0.0 <= decay < 1.0,
            f"ema_decay is {decay}; it must be at least 0 and below 1, or null for no average",
        )
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.module = copy.deepcopy(network).requires_grad_(False)

    def decay_at(self, updates: int) -> float:
        """d of the update that comes after so many others."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay

    @property
    def initial_share(self) -> float:
        """Weight of the initialization in the average, in [0, 1]."""
        if not self.warmup:
            return self.decay**self.updates
        return math.prod(self.decay_at(number) for number in range(min(self.updates, WARMUP_UPDATES)))

    @torch.no_grad()
    def start(self, network: nn.Module) -> None:
        """Makes the average a copy of the network, as before the first update."""
        self.module.load_state_dict(network.state_dict())
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        average = get_ema_multi_avg_fn(self.decay_at(self.updates))
        average(list(self.module.parameters()), list(network.parameters()), self.updates)
        for kept, current in zip(self.module.buffers(), network.buffers(), strict=True):
            kept.copy_(current)
        self.updates += 1
