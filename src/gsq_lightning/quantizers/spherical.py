"""Grouped spherical quantization (GSQ, arXiv 2412.02632, section 3).

B batch, h and w height and width of the latent, D its channels, G groups, d = D/G channels of a group, V codes.
z is a latent vector of one group, ẑ the normalized one, c a row of the codebook, q the row chosen for z, sg the
stop-gradient. "Eq." numbers are the paper's.
"""

import warnings
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.errors import InputError
from gsq_lightning.quantizers.lookup import nearest_code
from gsq_lightning.quantizers.quantizer import Quantizer, QuantizerOutput

Normalization = Literal["l2", "l1", "none", "clip"]
Initialization = Literal["sphere", "uniform"]


class GroupedSphericalQuantizer(Quantizer):
    """Splits the latent's channels into groups and replaces each by the nearest code on the sphere.

    - Grouping (Eq. 3): G consecutive chunks of d = D/G channels, one index each, one codebook for all.
    - Initialization (Eq. 4): "sphere", c ~ ℓ2(N(0, I_d)); "uniform", c ~ U(-1/V, 1/V), for d = 1 U(-1, 1).
    - Lookup (Eq. 5): index = argmin_j ‖ẑ - ĉ_j‖², both sides normalized by ℓ2, by ℓ1, not at all, or clamped to
      [-1, 1] ("clip", the paper's 16×1*). Exact whatever the autocast state, see `lookup.py`.
    - Loss: mean((q - sg ẑ)²) + commitment_weight · mean((sg q - ẑ)²).
    - Straight-through: the decoder gets exactly q, the codebook's row as stored; its gradient goes to ẑ.

    Args:
        latent_channels: D, a multiple of `num_groups`.
        codebook_size: V ≥ 1.
        num_groups: G ≥ 1.
        normalization: of latents and codes for the lookup. The paper has "l2", but "none" where d ≤ 2.
        init: initialization of the codebook.
        commitment_weight: ≥ 0.

    Attributes:
        codebook: (V, d), float32 parameter.

    Raises:
        InputError: for sizes that do not fit each other.
    """

    def __init__(
        self,
        latent_channels: int,
        codebook_size: int,
        num_groups: int = 1,
        normalization: Normalization = "l2",
        init: Initialization = "sphere",
        commitment_weight: float = 0.25,
    ) -> None:
        super().__init__()
        for name, value in (
            ("latent_channels", latent_channels),
            ("codebook_size", codebook_size),
            ("num_groups", num_groups),
        ):
            if value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if latent_channels % num_groups:
            allowed = [g for g in range(1, latent_channels + 1) if latent_channels % g == 0]
            raise InputError(
                f"num_groups {num_groups} does not divide latent_channels {latent_channels}; "
                f"use one of {', '.join(map(str, allowed))}"
            )
        if commitment_weight < 0:
            raise InputError(f"commitment_weight is {commitment_weight}; it must be at least 0")
        self._latent_channels = latent_channels
        self._codebook_size = codebook_size
        self._num_groups = num_groups
        self.normalization: Normalization = normalization
        self.init: Initialization = init
        self.commitment_weight = commitment_weight
        if normalization == "l2" and self.group_channels <= 2:
            _warn_of_l2_in_few_dimensions(self.group_channels)
        self.codebook = nn.Parameter(torch.empty(codebook_size, self.group_channels))
        self.reset_codebook()

    @property
    def codebook_size(self) -> int:
        return self._codebook_size

    @property
    def num_groups(self) -> int:
        return self._num_groups

    @property
    def latent_channels(self) -> int:
        return self._latent_channels

    @property
    def group_channels(self) -> int:
        """d = D/G."""
        return self._latent_channels // self._num_groups

    @torch.no_grad()
    def reset_codebook(self) -> None:
        """Draws the codebook anew (Eq. 4)."""
        if self.init == "sphere":
            self.codebook.copy_(normalize(torch.randn_like(self.codebook), "l2"))
        else:
            bound = 1.0 if self.group_channels == 1 else 1.0 / self.codebook_size
            self.codebook.uniform_(-bound, bound)

    def forward(self, latent: Tensor) -> QuantizerOutput:
        """(B, D, h, w), any float type → `QuantizerOutput`; losses and lookup in float32 or better."""
        with torch.autocast(latent.device.type, enabled=False):
            vectors = self._split(latent)
            normalized = normalize(vectors, self.normalization)
            indices = self._nearest(vectors)
            codes = F.embedding(indices, self.codebook).to(vectors.dtype)
            codebook_loss = F.mse_loss(codes, normalized.detach())
            commitment_loss = F.mse_loss(normalized, codes.detach())
            return QuantizerOutput(
                quantized=self._merge(_StraightThrough.apply(normalized, codes)),
                indices=indices,
                loss=codebook_loss + self.commitment_weight * commitment_loss,
                terms={"codebook": codebook_loss.detach(), "commitment": commitment_loss.detach()},
            )

    def latent_to_indices(self, latent: Tensor) -> Tensor:
        return self._nearest(self._split(latent))

    def indices_to_quantized(self, indices: Tensor) -> Tensor:
        return self._merge(F.embedding(indices, self.codebook))

    def _split(self, latent: Tensor) -> Tensor:
        """(B, D, h, w) → (B, h, w, G, d), float32 or better."""
        vectors = rearrange(latent, "b (g d) h w -> b h w g d", g=self.num_groups)
        return vectors.to(torch.promote_types(vectors.dtype, torch.float32))

    def _merge(self, codes: Tensor) -> Tensor:
        """(B, h, w, G, d) → (B, D, h, w), contiguous: the layout decides bits in the decoder's convolutions."""
        return rearrange(codes, "b h w g d -> b (g d) h w").contiguous()

    @torch.no_grad()
    def _nearest(self, vectors: Tensor) -> Tensor:
        """(B, h, w, G, d) → (B, h, w, G): Eq. 5, normalized and compared in float64."""
        points = normalize(vectors.double(), self.normalization).flatten(0, -2)
        codes = normalize(self.codebook.double(), self.normalization)
        indices = nearest_code(points, codes, unit_norm=self.normalization == "l2")
        return indices.view(vectors.shape[:-1])

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())


def normalize(vectors: Tensor, normalization: Normalization) -> Tensor:
    """Normalizes along the last dimension (Eq. 5); a zero vector stays zero.

    ℓ1 and ℓ2 do not depend on a vector's scale, so each is first divided by its largest magnitude: squares of
    huge or tiny values would leave the range of floating point.
    """
    if normalization == "none":
        return vectors
    if normalization == "clip":
        return vectors.clamp(-1.0, 1.0)
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
    scaled = vectors / largest.masked_fill(largest == 0, 1.0)
    return F.normalize(scaled, p=2.0 if normalization == "l2" else 1.0, dim=-1)


class _StraightThrough(torch.autograd.Function):
    """Value: the codes, to the bit. Gradient: all to the latents, none to the codes."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, codes: Tensor) -> Tensor:
        return codes.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _warn_of_l2_in_few_dimensions(dimensions: int) -> None:
    consequence = (
        "only the sign of a latent survives, so that at most 2 codes differ"
        if dimensions == 1
        else "all codes lie on one circle, where the reference's lookup in bfloat16 found few of them "
        "(perplexity 278 of 262,144 in its d = 2 checkpoint); the lookup here is exact"
    )
    warnings.warn(
        f"ℓ2 normalization with {dimensions} channel(s) per group: {consequence}. The paper omits ℓ2 for d ≤ 2: "
        'normalization="none".',
        stacklevel=3,
    )
