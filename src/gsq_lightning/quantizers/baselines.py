"""The quantizers that GSQ is compared with, behind its interface (GSQ, arXiv 2412.02632, Fig. 2 and Table 14).

Codebooks, levels and bits are those of vector-quantize-pytorch (the extra `compare`,
https://github.com/lucidrains/vector-quantize-pytorch). Three things are done here instead, so that a comparison shows
the methods and nothing else:

- The nearest code is found exactly, by `lookup/`, as for GSQ. The library's search rounds, and needs an n × V matrix.
- Codebooks are parameters, trained by the tokenizer's optimizer and averaged with its other weights. The library's
  running means, k-means starts and replacements of dead codes are off.
- Losses are computed here. On W ranks the library's batch entropy is that of the local distribution divided by W:
  it drops the result of its all_reduce.

The paper's plain VQ needs no class: it is `GroupedSphericalQuantizer(D, V, normalization="none", init="uniform")`.

B batch, h and w height and width of the latent, D its channels, G indices per position, d channels of a group, V codes,
sg the stop-gradient. A latent vector that is not finite gets index 0, as in `lookup/`.
"""

import importlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.distributed import mean_over_ranks
from gsq_lightning.errors import InputError, require, require_at_least
from gsq_lightning.precision import full_precision, keep_precision
from gsq_lightning.quantizers.gradients import straight_through
from gsq_lightning.quantizers.interface import Quantizer, QuantizerOutput
from gsq_lightning.quantizers.lookup import nearest_code
from gsq_lightning.quantizers.spherical import normalize

LARGEST_SCALAR_CODEBOOK = 2**31  # the library's place values are 32-bit
LARGEST_BINARY_CODEBOOK = 2**20  # its table of all codes: 84 MB, and twice that while it is made


class LibraryQuantizer(Quantizer):
    """Shared by all wrappers: the quantized latent is the code of its indices; float32 whatever the module's dtype."""

    def __init__(self, library: nn.Module, latent_channels: int, codebook_size: int, num_groups: int) -> None:
        super().__init__(latent_channels, codebook_size, num_groups)
        self.wrapped: Any = library.eval()

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; the library's module stays in eval mode, where it has no side effects."""
        super().train(mode)
        self.wrapped.eval()
        return self

    @torch.no_grad()
    def latent_to_indices(self, latent: Tensor) -> Tensor:
        with full_precision(latent.device):
            return self._search(self._checked_latent(latent))

    def indices_to_quantized(self, indices: Tensor) -> Tensor:
        indices = self.checked(indices)
        with full_precision(indices.device):
            return self._decode(indices)

    @abstractmethod
    def _search(self, latent: Tensor) -> Tensor:
        """(B, D, h, w) float32 → (B, h, w, G) int64."""

    def _decode(self, indices: Tensor) -> Tensor:
        """(B, h, w, G) → (B, D, h, w) float32, contiguous: the result of the decoder's convolutions depends on
        the memory layout in the last bits."""
        return self.wrapped.indices_to_codes(indices).float().contiguous()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(keep_precision(fn), recurse)
        return self

    def _checked_latent(self, latent: Tensor) -> Tensor:
        """(B, D, h, w), any float type → float32. Raises InputError for another shape."""
        require(
            latent.ndim == 4 and latent.shape[1] == self.latent_channels,
            f"the latent has shape {tuple(latent.shape)}; it must be (B, D, h, w), D = {self.latent_channels}",
        )
        return latent.float()

    def _split(self, latent: Tensor) -> Tensor:
        """(B, D, h, w) → (B, h, w, G, d)."""
        return rearrange(latent, "b (g d) h w -> b h w g d", g=self.num_groups)


class CodebookSequence(LibraryQuantizer):
    """A sequence of codebooks; each quantizes the residual of those before it."""

    commitment_weight: float

    @property
    @abstractmethod
    def codebooks(self) -> list[Tensor]:
        """(V, D) of each level, with gradients."""

    def forward(self, latent: Tensor) -> QuantizerOutput:
        with full_precision(latent.device):
            latent = self._checked_latent(latent)
            found, codebook_losses, commitment_losses = [], [], []
            for residual, index, code in self._levels(latent):
                found.append(index)
                codebook_losses.append(F.mse_loss(code, residual.detach()))
                commitment_losses.append(F.mse_loss(residual, code.detach()))
            indices = torch.stack(found, dim=-1)
            codebook_loss, commitment_loss = torch.stack(codebook_losses).sum(), torch.stack(commitment_losses).sum()
            return QuantizerOutput(
                quantized=straight_through(latent, self._decode(indices)),
                indices=indices,
                loss=codebook_loss + self.commitment_weight * commitment_loss,
                terms={"codebook": codebook_loss.detach(), "commitment": commitment_loss.detach()},
            )

    def _search(self, latent: Tensor) -> Tensor:
        return torch.stack([index for _, index, _ in self._levels(latent)], dim=-1)

    def _levels(self, latent: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(B, D, h, w) → of each level the residual (B, h, w, D), its index (B, h, w) and code (B, h, w, D)."""
        residual = rearrange(latent, "b d h w -> b h w d")
        for codebook in self.codebooks:
            index = nearest_code(residual.flatten(0, -2), codebook).view(residual.shape[:-1])
            code = F.embedding(index, codebook).float()
            yield residual, index, code
            residual = residual - code.detach()

    def _decode(self, indices: Tensor) -> Tensor:
        pairs = zip(indices.unbind(-1), self.codebooks, strict=True)
        total, *rest = (F.embedding(index, codebook).float() for index, codebook in pairs)
        for code in rest:
            total = total + code
        return rearrange(total, "b h w d -> b d h w").contiguous()


class ResidualVQ(CodebookSequence):
    """Residual quantization: each level quantizes the residual of the levels before it (SoundStream, arXiv 2107.03312).

    r_1 = z, index_l = argmin_j ‖r_l - c_lj‖², r_{l+1} = r_l - q_l, quantized = Σ q_l; its gradient goes to z.
    Loss: Σ_l mean((q_l - sg r_l)²) + commitment_weight · mean((sg q_l - r_l)²).
    The codebooks are initialized as in the library: U(±√(6/(V·D))).

    Args:
        latent_channels: D ≥ 1.
        codebook_size: V ≥ 1, of each level.
        num_levels: G ≥ 1, with a codebook each.
        commitment_weight: ≥ 0.

    Raises:
        InputError: for sizes out of range, or without vector-quantize-pytorch.
    """

    def __init__(
        self, latent_channels: int, codebook_size: int, num_levels: int = 8, commitment_weight: float = 0.25
    ) -> None:
        require_at_least(1, latent_channels=latent_channels, codebook_size=codebook_size, num_levels=num_levels)
        require_at_least(0, commitment_weight=commitment_weight)
        library = _vector_quantize_pytorch().ResidualVQ(
            dim=latent_channels,
            codebook_size=codebook_size,
            num_quantizers=num_levels,
            learnable_codebook=True,
            ema_update=False,
            sync_codebook=False,
        )
        super().__init__(library, latent_channels, codebook_size, num_groups=num_levels)
        self.num_levels = num_levels
        self.commitment_weight = commitment_weight

    @property
    def num_codebooks(self) -> int:
        return self.num_levels

    @property
    def codebooks(self) -> list[Tensor]:
        return [level.codebook for level in self.wrapped.layers]


class SimVQ(CodebookSequence):
    """VQ whose codebook is a frozen Gaussian one times a trained D × D matrix (SimVQ, arXiv 2411.02038).

    Loss: mean((q - sg z)²) + commitment_weight · mean((sg q - z)²). Straight-through as in its paper; the library's
    rotation trick is left out.

    Args:
        latent_channels: D ≥ 1.
        codebook_size: V ≥ 1.
        commitment_weight: ≥ 0.

    Raises:
        InputError: for sizes out of range, or without vector-quantize-pytorch.
    """

    def __init__(self, latent_channels: int, codebook_size: int, commitment_weight: float = 0.25) -> None:
        require_at_least(1, latent_channels=latent_channels, codebook_size=codebook_size)
        require_at_least(0, commitment_weight=commitment_weight)
        library = _vector_quantize_pytorch().SimVQ(dim=latent_channels, codebook_size=codebook_size)
        super().__init__(library, latent_channels, codebook_size, num_groups=1)
        self.commitment_weight = commitment_weight

    @property
    def codebooks(self) -> list[Tensor]:
        # the whole product each time: its last bits can depend on how many rows it has
        return [self.wrapped.codebook]


class FSQ(LibraryQuantizer):
    """Finite scalar quantization: each channel is bounded and rounded to one of L levels (FSQ, arXiv 2309.15505).

    No codebook and no loss. Rounding is straight-through, so that the gradient is that of the bounding tanh. D is
    G · len(levels), without a projection: the encoder's last convolution does what one would.

    Args:
        levels: L of each channel of a group, at least 3 each; V = Π L ≤ 2^31. The FSQ paper advises L ≥ 5.
        num_groups: G ≥ 1 groups with the same levels.

    Raises:
        InputError: for values out of range, on the meta device, or without vector-quantize-pytorch.
    """

    _num_levels: Tensor
    _place_values: Tensor

    def __init__(self, levels: Sequence[int], num_groups: int = 1) -> None:
        levels = [int(length) for length in levels]
        require_at_least(1, num_groups=num_groups)
        if not levels or min(levels) < 3:
            raise InputError(f"levels is {levels}; it takes one number of at least 3 per channel of a group")
        codebook_size = math.prod(levels)
        if codebook_size > LARGEST_SCALAR_CODEBOOK:
            raise InputError(
                f"levels {levels} make {codebook_size} codes; vector-quantize-pytorch counts up to 2^31. "
                "Take fewer, or several groups (num_groups)"
            )
        _refuse_meta_device("FSQ")
        library = _vector_quantize_pytorch().FSQ(
            levels=levels,
            num_codebooks=num_groups,
            keep_num_codebooks_dim=True,
            return_indices=False,  # it would hold a table of all codes, and add up indices in float32
        )
        super().__init__(library, len(levels) * num_groups, codebook_size, num_groups)
        self.levels = levels
        place_values = [math.prod(levels[:channel]) for channel in range(len(levels))]
        self.register_buffer("_num_levels", torch.tensor(levels), persistent=False)
        self.register_buffer("_place_values", torch.tensor(place_values), persistent=False)

    def forward(self, latent: Tensor) -> QuantizerOutput:
        with full_precision(latent.device):
            latent = self._checked_latent(latent)
            rounded = self.wrapped(latent)[0]
            indices = self._count(rounded, latent)
            quantized = straight_through(rounded, self._decode(indices))
            return QuantizerOutput(quantized, indices, loss=quantized.new_zeros(()), terms={})

    def _search(self, latent: Tensor) -> Tensor:
        return self._count(self.wrapped(latent)[0], latent)

    @torch.no_grad()
    def _count(self, rounded: Tensor, latent: Tensor) -> Tensor:
        """Indices of (B, D, h, w) rounded to (l - ⌊L/2⌋) / ⌊L/2⌋, l in [0, L); the first channel counts least."""
        half = self._num_levels // 2
        level = (self._split(rounded) * half).round().nan_to_num().long() + half
        indices = (level * self._place_values).sum(dim=-1)
        return indices.masked_fill(~self._split(latent).isfinite().all(dim=-1), 0)


class LFQ(LibraryQuantizer):
    """Lookup-free quantization: a bit per channel, its sign; codes {-1, 1}^d (LFQ, arXiv 2310.05737).

    Loss: entropy_weight · (E[H(p)] - diversity_weight · H(E[p])) + commitment_weight · mean((sg q - z)²) with
    p = softmax over the codes of 2 · inverse_temperature · ⟨z, c⟩. It is low when each position is sure of
    its code and all codes are used. The bits of p are independent, so both entropies are exact without an n × V matrix,
    in O(n·√V) memory. In training E[p] is over all ranks. Straight-through: the gradient goes to z.

    Args:
        codebook_size: V, a power of 2 up to 2^20; D = G · log2 V.
        num_groups: G ≥ 1 groups of log2 V channels, with entropies of their own.
        entropy_weight: weight ≥ 0 of the entropy of each latent's distribution.
        diversity_weight: weight ≥ 0 of the entropy of their mean.
        commitment_weight: weight ≥ 0 of the squared distance of latent and code.
        inverse_temperature: sharpness > 0 of the distributions.

    Raises:
        InputError: for values out of range, on the meta device, or without vector-quantize-pytorch.
    """

    _spherical: ClassVar[bool] = False

    def __init__(
        self,
        codebook_size: int,
        num_groups: int = 1,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        commitment_weight: float = 0.25,
        inverse_temperature: float = 100.0,
    ) -> None:
        codebook_size, num_groups = int(codebook_size), int(num_groups)
        name, bits = type(self).__name__, codebook_size.bit_length() - 1
        require_at_least(4 if self._spherical else 2, codebook_size=codebook_size)
        require_at_least(1, num_groups=num_groups)
        require_at_least(0, entropy_weight=entropy_weight, diversity_weight=diversity_weight)
        require_at_least(0, commitment_weight=commitment_weight)
        require(inverse_temperature > 0, f"inverse_temperature is {inverse_temperature}; it must be above 0")
        if codebook_size != 2**bits:
            raise InputError(
                f"codebook_size {codebook_size} is no power of 2, which the codes of {name} are, a bit per channel; "
                f"use {2**bits} or {2 ** (bits + 1)}"
            )
        if codebook_size > LARGEST_BINARY_CODEBOOK:
            raise InputError(
                f"codebook_size 2^{bits} is too large: vector-quantize-pytorch holds a table of all codes, and {name} "
                f"takes up to 2^20. Several groups of fewer bits go further: num_groups={-(-bits // 9)} with "
                f"codebook_size=512 is {-(-bits // 9) * 9} bits per position"
            )
        _refuse_meta_device(name)
        library = _vector_quantize_pytorch().LFQ(
            codebook_size=codebook_size,
            dim=bits * num_groups,
            num_codebooks=num_groups,
            keep_num_codebooks_dim=True,
            spherical=self._spherical,
        )
        super().__init__(library, bits * num_groups, codebook_size, num_groups)
        self.entropy_weight = entropy_weight
        self.diversity_weight = diversity_weight
        self.commitment_weight = commitment_weight
        self.inverse_temperature = inverse_temperature
        self._magnitude = bits**-0.5 if self._spherical else 1.0  # of each channel of a code

    def forward(self, latent: Tensor) -> QuantizerOutput:
        with full_precision(latent.device):
            points = self._points(self._checked_latent(latent))
            indices = self._signs(points)
            codes = self._decode(indices)
            commitment_loss = F.mse_loss(points, codes)
            position_entropy, batch_entropy = self._entropies(points)
            entropy_loss = position_entropy - self.diversity_weight * batch_entropy
            return QuantizerOutput(
                quantized=straight_through(points, codes),
                indices=indices,
                loss=self.entropy_weight * entropy_loss + self.commitment_weight * commitment_loss,
                terms={
                    "position_entropy": position_entropy.detach(),
                    "batch_entropy": batch_entropy.detach(),
                    "commitment": commitment_loss.detach(),
                },
            )

    @property
    def whole_batch_terms(self) -> list[str]:
        return ["batch_entropy"] * (self.entropy_weight * self.diversity_weight > 0)

    def _search(self, latent: Tensor) -> Tensor:
        return self._signs(self._points(latent))

    def _points(self, latent: Tensor) -> Tensor:
        """(B, D, h, w) → the points that are compared with the codes, of the same shape."""
        return latent

    @torch.no_grad()
    def _signs(self, points: Tensor) -> Tensor:
        """(B, D, h, w) → (B, h, w, G): bit 1 above 0; the first channel counts most."""
        indices = self.wrapped(points)[1]
        return indices.masked_fill(~self._split(points).isfinite().all(dim=-1), 0)

    def _entropies(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """E[H(p)] and H(E[p]) in nats, mean of the groups."""
        # log-odds of a bit of p: 2 · inverse_temperature · z · (c_1 - c_0)
        logits = 4.0 * self.inverse_temperature * self._magnitude * self._split(points).flatten(0, 2)
        certainty = logits.abs()
        position = F.softplus(-certainty) + certainty * torch.sigmoid(-certainty)
        mean = _mean_distribution(logits)
        if self.training:
            mean = mean_over_ranks(mean)
        batch = -(mean * mean.clamp(min=1e-20).log()).sum(dim=-1)
        return position.sum(dim=-1).mean(), batch.mean()


class BSQ(LFQ):
    """Binary spherical quantization: LFQ on the unit sphere, codes {-1, 1}^d / √d (BSQ, arXiv 2406.07548).

    Each group of the latent is normalized first; the gradient passes through the normalization. The V = 2^36 of its
    paper is more than the library holds: num_groups=4 with V = 2^9 has as many bits, on four spheres.

    Args:
        codebook_size: V of each group, as for LFQ, and at least 4: on a sphere of d = 1 a latent has no gradient.
        num_groups: G groups, as for LFQ.
        entropy_weight: weight of the loss, as for LFQ.
        diversity_weight: weight of the loss, as for LFQ.
        commitment_weight: weight of the loss, as for LFQ.
        inverse_temperature: sharpness of the soft choice of codes, as for LFQ.

    Raises:
        InputError: as for LFQ.
    """

    _spherical = True

    def __init__(
        self,
        codebook_size: int,
        num_groups: int = 1,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        commitment_weight: float = 0.0,
        inverse_temperature: float = 100.0,
    ) -> None:
        super().__init__(
            codebook_size, num_groups, entropy_weight, diversity_weight, commitment_weight, inverse_temperature
        )
        self.wrapped.maybe_l2norm = partial(F.normalize, dim=-1)  # as it was, but for pickle, which takes no lambda

    def _points(self, latent: Tensor) -> Tensor:
        return rearrange(normalize(self._split(latent), "l2"), "b h w g d -> b (g d) h w")


def _mean_distribution(logits: Tensor) -> Tensor:
    """(n, G, d) logits of independent bits → (G, 2^d): mean over n of the distribution of the d bits together.

    One matrix product of the distributions of either half of the bits, instead of n × 2^d probabilities.
    """
    halves = []
    for half in logits.tensor_split(2, dim=-1):
        joint = half.new_ones(*half.shape[:-1], 1)
        for bit in half.unbind(-1):
            values = torch.stack([torch.sigmoid(-bit), torch.sigmoid(bit)], dim=-1)
            joint = (joint[..., :, None] * values[..., None, :]).flatten(-2)
        halves.append(joint)
    return torch.einsum("nga,ngb->gab", *halves).flatten(1) / len(logits)


def _refuse_meta_device(name: str) -> None:
    if torch.empty(0).is_meta:
        raise InputError(
            f"{name} cannot be made on the meta device: vector-quantize-pytorch keeps its constants outside the state "
            "dict, so nothing would fill them. Make it on the CPU; it has no weights"
        )


def _vector_quantize_pytorch() -> Any:
    """The library, imported when a quantizer of it is made."""
    try:
        return importlib.import_module("vector_quantize_pytorch")
    except ImportError as error:
        raise InputError(
            f'this quantizer needs vector-quantize-pytorch: pip install "gsq-lightning[compare]" ({error})'
        ) from error
