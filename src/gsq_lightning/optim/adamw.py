"""The paper's optimizer."""

from collections.abc import Iterable

import torch
from torch import nn


class PaperAdamW(torch.optim.AdamW):
    """AdamW with the paper's settings (section 4), one fused kernel for all weights.

    Args:
        params: parameters, as in `torch.optim.AdamW`.
        lr: learning rate.
        betas: decays of the averages of gradients and their squares.
        eps: added to the denominator.
        weight_decay: decoupled weight decay.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
