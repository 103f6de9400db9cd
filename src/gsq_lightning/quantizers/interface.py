"""The interface of quantizers, through which tokenizer, training and metrics use them."""

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gsq_lightning.errors import InputError, require_at_least


class QuantizerOutput(NamedTuple):
    """What a quantizer makes of a latent.

    Attributes:
        quantized: (B, D, h, w), what the decoder gets; carries the gradient back to the latent.
        indices: (B, h, w, G) int64, each in [0, V).
        loss: scalar, weighted sum of the quantizer's own loss terms; 0 where it has none.
        terms: the detached, unweighted terms of `loss` by name, for the logs.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Quantizer(nn.Module, ABC):
    """Latent ⇄ indices.

    For every quantizer, `indices_to_quantized(forward(latent).indices)` and `forward(latent).quantized` are bit-exact
    equal. A subclass keeps each constructor argument as an attribute of the same name, so that `arguments` can
    rebuild it.

    Args:
        latent_channels: D ≥ 1.
        codebook_size: V ≥ 1.
        num_groups: G ≥ 1.

    Raises:
        InputError: for sizes below 1.
    """

    def __init__(self, latent_channels: int, codebook_size: int, num_groups: int) -> None:
        super().__init__()
        require_at_least(1, latent_channels=latent_channels, codebook_size=codebook_size, num_groups=num_groups)
        self._latent_channels = int(latent_channels)
        self._codebook_size = int(codebook_size)
        self._num_groups = int(num_groups)

    @property
    def codebook_size(self) -> int:
        """V: an index is in [0, V)."""
        return self._codebook_size

    @property
    def num_groups(self) -> int:
        """G: indices per position."""
        return self._num_groups

    @property
    def latent_channels(self) -> int:
        """D: channels of the latent and of the quantized latent."""
        return self._latent_channels

    @abstractmethod
    def forward(self, latent: Tensor) -> QuantizerOutput:
        """(B, D, h, w) → `QuantizerOutput`."""

    @abstractmethod
    def latent_to_indices(self, latent: Tensor) -> Tensor:
        """(B, D, h, w) → (B, h, w, G) int64."""

    @abstractmethod
    def indices_to_quantized(self, indices: Tensor) -> Tensor:
        """(B, h, w, G) integers in [0, V) → (B, D, h, w). A subclass may call `checked` first."""

    def checked(self, indices: Tensor, waits: bool = False) -> Tensor:
        """(…, G) of any integer type → int64.

        Args:
            indices: for `indices_to_quantized`.
            waits: look at their values in training and on a GPU too, for which the processor waits.

        Raises:
            InputError: for what is no such tensor, and for indices outside [0, V) where their values are looked at.
        """
        if not isinstance(indices, Tensor):
            kind = type(indices).__name__
            raise InputError(
                f"indices are of the type {kind}; they must be a tensor: torch.as_tensor converts an array"
            )
        if indices.ndim == 0 or indices.shape[-1] != self.num_groups:
            raise InputError(
                f"indices have shape {tuple(indices.shape)}; they must be (…, G) with G = {self.num_groups}"
            )
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise InputError(f"indices are {indices.dtype}; they must be of an integer type")
        indices = indices.long()
        looks = waits or (indices.device.type == "cpu" and not self.training)
        if looks and indices.numel() and not torch.compiler.is_compiling():
            lowest, highest = (int(end) for end in indices.aminmax())
            if lowest < 0 or highest >= self.codebook_size:
                raise InputError(
                    f"indices range from {lowest} to {highest}; the codebook has {self.codebook_size} codes, so 0 "
                    f"to {self.codebook_size - 1} are allowed"
                )
        return indices

    @property
    def num_codebooks(self) -> int:
        """1 where all groups share one codebook, so that equal indices mean equal codes; else G, one for each."""
        return 1

    @property
    def whole_batch_terms(self) -> list[str]:
        """Loss terms of all latents of a batch at once, whose gradients are others where small batches accumulate."""
        return []

    @property
    def bits_per_position(self) -> float:
        """G·log2 V: bits in the indices of one position of the latent."""
        return self.num_groups * math.log2(self.codebook_size)

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        return {name: getattr(self, name) for name in list(inspect.signature(type(self).__init__).parameters)[1:]}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
