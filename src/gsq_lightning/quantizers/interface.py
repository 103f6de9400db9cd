"""The interface of quantizers, through which tokenizer, training and metrics use them."""

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

from gsq_lightning.errors import InputError, whole_number
from gsq_lightning.indices import as_indices


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
        InputError: for sizes below 1, or that are no whole numbers.
    """

    def __init__(self, latent_channels: int, codebook_size: int, num_groups: int) -> None:
        super().__init__()
        self._latent_channels = whole_number("latent_channels", latent_channels, 1)
        self._codebook_size = whole_number("codebook_size", codebook_size, 1)
        self._num_groups = whole_number("num_groups", num_groups, 1)

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
        """(B, h, w, G), any integer type, in [0, V) → (B, D, h, w). Raises InputError, see `checked`."""

    def checked(self, indices: Tensor, wait_for_device: bool = False) -> Tensor:
        """(…, G) indices of any integer type as int64, for `indices_to_quantized`.

        Args:
            indices: each in [0, V).
            wait_for_device: as of `gsq_lightning.indices.as_indices`: without it values are compared on the CPU alone.

        Raises:
            InputError: for another type, another number of groups, or values outside [0, V).
        """
        indices = as_indices(indices, self.codebook_size, wait_for_device)
        if indices.ndim == 0 or indices.shape[-1] != self.num_groups:
            raise InputError(
                f"indices have shape {tuple(indices.shape)}; the last dimension must have the {self.num_groups} groups"
            )
        return indices

    @property
    def num_codebooks(self) -> int:
        """1 where all groups share one codebook, so that equal indices mean equal codes; else G, one for each."""
        return 1

    @property
    def whole_batch_terms(self) -> list[str]:
        """Loss terms over all latents of a batch together: accumulating smaller batches changes their gradients."""
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
