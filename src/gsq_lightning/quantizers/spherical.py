"""Grouped spherical quantization (GSQ, arXiv 2412.02632, section 3).

B batch, h and w height and width of the latent, D its channels, G groups, d = D/G channels of a group, V codes.
z is a latent vector of one group, ẑ the normalized one, c a row of the codebook, q the row chosen for z, sg the
stop-gradient. "Eq." numbers are the paper's.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.errors import InputError, look_up, require, require_at_least
from gsq_lightning.precision import keep_precision, with_float64
from gsq_lightning.quantizers.gradients import rotate_and_scale, straight_through
from gsq_lightning.quantizers.interface import Quantizer, QuantizerOutput
from gsq_lightning.quantizers.lookup import CodeIndex, nearest_code
from gsq_lightning.quantizers.regularizers import coding_rate_loss, entropy_loss

Normalization = Literal["l2", "l1", "none", "clip"]
Initialization = Literal["sphere", "uniform"]
Gradient = Literal["straight_through", "rotation"]

GRADIENTS: dict[Gradient, Callable[[Tensor, Tensor], Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotate_and_scale,
}

COMPARE_WITHOUT_WAITING = ("cpu",)  # devices whose values can be compared without a synchronization
MAX_CODEBOOK = 2**31  # numbers: 8 GiB; the paper's largest has 2^23


class KeptIndex:
    """The search index of a codebook (V, d), and what tells whether the codebook has changed since."""

    def __init__(self, codebook: Tensor, index: CodeIndex) -> None:
        self.index = index
        self._values = codebook.detach().clone()
        self._seen = codebook.detach()  # held, so that no other tensor gets its memory
        self._version = _version_of(codebook)

    def is_of(self, codebook: Tensor) -> bool:
        """Whether the codebook has the values that the index was made of.

        A frozen codebook on a GPU is not read, which would synchronize: its memory and version are compared. The
        version does not count what is written to `codebook.data` or by DLPack.
        """
        version = _version_of(codebook)
        if version is not None and version == self._version and codebook.data_ptr() == self._seen.data_ptr():
            return True
        return torch.equal(self._values, codebook)


def _version_of(codebook: Tensor) -> int | None:
    """PyTorch's count of in-place writes, for a frozen codebook on a GPU; None for any other."""
    if codebook.device.type in COMPARE_WITHOUT_WAITING or codebook.requires_grad or codebook.is_inference():
        return None
    return codebook._version


class GroupedSphericalQuantizer(Quantizer):
    """Splits the latent's channels into groups and replaces each by the nearest code on the sphere.

    - Grouping (Eq. 3): G consecutive chunks of d = D/G channels, one index each, one codebook for all.
    - Initialization (Eq. 4): "sphere", c ~ ℓ2(N(0, I_d)); "uniform", c ~ U(-1/V, 1/V), for d = 1 U(-1, 1).
    - Lookup (Eq. 5): index = argmin_j ‖ẑ - ĉ_j‖², both sides normalized by ℓ2, by ℓ1, not at all, or clamped to
      [-1, 1] ("clip", the paper's 16×1*). Exact whatever the autocast state, see `lookup/`.
    - Loss: mean((q - sg ẑ)²) + commitment_weight · mean((sg q - ẑ)²), and the auxiliary losses where asked for.
    - Value: exactly q, the codebook's row as stored; its gradient goes to ẑ.

    The codebook stays in float32 when the module is cast to a smaller type.

    Args:
        latent_channels: D, a multiple of `num_groups`.
        codebook_size: V ≥ 1.
        num_groups: G ≥ 1.
        normalization: how latents and codes are normalized for the lookup. The paper has "l2", but "none" where d ≤ 2.
        init: initialization of the codebook; "uniform" where d = 1, whose sphere has two points.
        commitment_weight: weight of the commitment term, ≥ 0.
        gradient: how it passes the choice of a code: "straight_through", or "rotation" (arXiv 2410.06424).
        entropy_weight: weight of the entropy loss, ≥ 0 (Table 2 tries 0.01, 0.1, 0.5).
        coding_rate_weight: weight of the total coding rate loss, ≥ 0 (TCR; Table 2 tries 0.01). Entropy and coding rate
            are those of the whole batch: in training over all ranks.
        per_group_codebooks: a codebook for each group instead of one for all.
        project_codes: normalize q too, so that what the decoder gets lies on the sphere; with "l2" alone. The paper's
            checkpoints have q as stored.
        channel_dim: where a latent has its channels: 1 for (B, D, …), any number of dimensions after it, or -1 for
            (B, …, D).

    Attributes:
        codebook: (V, d), or (G, V, d) with `per_group_codebooks`; float32 parameter.

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
        gradient: Gradient = "straight_through",
        entropy_weight: float = 0.0,
        coding_rate_weight: float = 0.0,
        per_group_codebooks: bool = False,
        project_codes: bool = False,
        channel_dim: Literal[1, -1] = 1,
    ) -> None:
        super().__init__(latent_channels, codebook_size, num_groups)
        require(
            codebook_size * latent_channels <= MAX_CODEBOOK,
            f"codebook_size {codebook_size} with {latent_channels} latent_channels is too large a codebook; it may "
            f"hold {MAX_CODEBOOK} numbers; use more groups with smaller codebooks",
        )
        if latent_channels % num_groups:
            allowed = [g for g in range(1, latent_channels + 1) if latent_channels % g == 0]
            raise InputError(
                f"num_groups {num_groups} does not divide latent_channels {latent_channels}; "
                f"use one of {', '.join(map(str, allowed))}"
            )
        require_at_least(
            0,
            commitment_weight=commitment_weight,
            entropy_weight=entropy_weight,
            coding_rate_weight=coding_rate_weight,
        )
        look_up("normalization", normalization, NORMALIZATIONS)
        look_up("init", init, INITIALIZATIONS)
        look_up("gradient", gradient, GRADIENTS)
        require(channel_dim in (1, -1), f"channel_dim is {channel_dim}; it must be 1 or -1")
        require(
            not project_codes or normalization == "l2",
            f'project_codes needs normalization "l2", which has a sphere; it is "{normalization}"',
        )
        self.normalization: Normalization = normalization
        self.init: Initialization = init
        self.commitment_weight = commitment_weight
        self.gradient: Gradient = gradient
        self.entropy_weight = entropy_weight
        self.coding_rate_weight = coding_rate_weight
        self.per_group_codebooks = per_group_codebooks
        self.project_codes = project_codes
        self.channel_dim = channel_dim
        if normalization == "l2" and self.group_channels <= 2:
            _warn_of_l2_in_few_dimensions(self.group_channels)
        elif init == "sphere" and self.group_channels == 1 and codebook_size > 2:
            warnings.warn(
                'spherical initialization with 1 channel per group: all codes begin as 1 or -1. init="uniform" spreads '
                "them over (-1, 1).",
                stacklevel=2,
            )
        shape = (num_groups,) * per_group_codebooks + (codebook_size, self.group_channels)
        self.codebook = nn.Parameter(torch.empty(shape))
        self._indexed: dict[int, KeptIndex] = {}  # of each codebook by number, for evaluation
        self.reset_codebook()

    @property
    def group_channels(self) -> int:
        """d = D/G."""
        return self._latent_channels // self._num_groups

    @property
    def num_codebooks(self) -> int:
        return self._num_groups if self.per_group_codebooks else 1

    @property
    def whole_batch_terms(self) -> list[str]:
        return ["entropy"] * (self.entropy_weight > 0) + ["coding_rate"] * (self.coding_rate_weight > 0)

    @torch.no_grad()
    def reset_codebook(self) -> None:
        """Draws a new codebook (Eq. 4)."""
        INITIALIZATIONS[self.init](self.codebook)

    def forward(self, latent: Tensor) -> QuantizerOutput:
        """(B, D, …), any float type → `QuantizerOutput`; losses and lookup in float32 or better."""
        with torch.autocast(latent.device.type, enabled=False):
            vectors = self._split(latent)
            normalized = normalize(vectors, self.normalization)
            indices = self._nearest(vectors)
            codes = self._codes_of(indices).to(vectors.dtype)
            terms = {
                "codebook": F.mse_loss(codes, normalized.detach()),
                "commitment": F.mse_loss(normalized, codes.detach()),
            }
            loss = terms["codebook"] + self.commitment_weight * terms["commitment"]
            if self.entropy_weight > 0:
                terms["entropy"] = self._entropy_loss(normalized)
                loss = loss + self.entropy_weight * terms["entropy"]
            if self.coding_rate_weight > 0:
                terms["coding_rate"] = coding_rate_loss(normalized.flatten(0, -2), over_ranks=self.training)
                loss = loss + self.coding_rate_weight * terms["coding_rate"]
            return QuantizerOutput(
                quantized=self._merge(GRADIENTS[self.gradient](normalized, codes)),
                indices=indices,
                loss=loss,
                terms={name: term.detach() for name, term in terms.items()},
            )

    def latent_to_indices(self, latent: Tensor) -> Tensor:
        return self._nearest(self._split(latent))

    def indices_to_quantized(self, indices: Tensor) -> Tensor:
        return self._merge(self._codes_of(self.checked(indices)))

    def _split(self, latent: Tensor) -> Tensor:
        """(B, D, …) → (B, …, G, d), float32 or better."""
        if latent.ndim < 2 or latent.shape[self.channel_dim] != self.latent_channels:
            raise InputError(
                f"the latent has shape {tuple(latent.shape)}; dimension {self.channel_dim} must have the "
                f"{self.latent_channels} channels"
            )
        vectors = latent.movedim(self.channel_dim, -1).unflatten(-1, (self.num_groups, self.group_channels))
        return vectors if vectors.dtype == torch.float64 else vectors.float()

    def _merge(self, codes: Tensor) -> Tensor:
        """(B, …, G, d) → (B, D, …), contiguous: the layout decides bits in the decoder's convolutions."""
        return codes.flatten(-2).movedim(-1, self.channel_dim).contiguous()

    def _codes_of(self, indices: Tensor) -> Tensor:
        """(B, …, G) → (B, …, G, d)."""
        if self.per_group_codebooks:
            indices = indices + torch.arange(self.num_groups, device=indices.device) * self.codebook_size
        codes = F.embedding(indices, self.codebook.flatten(0, -2))
        return normalize(codes, "l2") if self.project_codes else codes

    def _codebooks(self) -> list[Tensor]:
        """The codebook of all groups, or that of each."""
        return list(self.codebook) if self.per_group_codebooks else [self.codebook]

    def _entropy_loss(self, normalized: Tensor) -> Tensor:
        groups = normalized.unbind(-2) if self.per_group_codebooks else [normalized]
        losses = [
            entropy_loss(
                points.flatten(0, -2),
                normalize(codebook.to(points.dtype), self.normalization),
                over_ranks=self.training,
            )
            for points, codebook in zip(groups, self._codebooks(), strict=True)
        ]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _nearest(self, vectors: Tensor) -> Tensor:
        """(B, …, G, d) → (B, …, G): Eq. 5, normalized and compared in float64."""
        device = with_float64(vectors.device)
        points = normalize(vectors.to(device).double(), self.normalization)
        groups = points.unbind(-2) if self.per_group_codebooks else [points]
        indices = [
            self._nearest_in(number, codebook.to(device), group.flatten(0, -2))
            for number, (group, codebook) in enumerate(zip(groups, self._codebooks(), strict=True))
        ]
        nearest = torch.stack(indices, dim=-1) if self.per_group_codebooks else indices[0]
        return nearest.view(vectors.shape[:-1]).to(vectors.device)

    def _nearest_in(self, number: int, codebook: Tensor, points: Tensor) -> Tensor:
        """(n, d) normalized → (n,), of the codebook with this number.

        In evaluation the search index is kept from call to call: building it takes longer than a search.
        """
        unit_norm = self.normalization == "l2"
        if self.training or torch.compiler.is_compiling():
            return nearest_code(points, normalize(codebook.double(), self.normalization), unit_norm=unit_norm)
        kept = self._indexed.get(number)
        if kept is None or not kept.is_of(codebook):
            index = CodeIndex(normalize(codebook.double(), self.normalization), unit_norm=unit_norm)
            kept = self._indexed[number] = KeptIndex(codebook, index)
        return kept.index.query(points)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GroupedSphericalQuantizer":
        super()._apply(keep_precision(fn), recurse)
        self._indexed = {}  # may be of another device
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickle: without the search index, which is larger than the codebook and made again."""
        return {**self.__dict__, "_indexed": {}}


def normalize(vectors: Tensor, normalization: Normalization) -> Tensor:
    """Normalizes along the last dimension (Eq. 5); a zero vector stays zero, and its gradient is 0."""
    return NORMALIZATIONS[normalization](vectors)


def _to_unit_norm(vectors: Tensor, p: float) -> Tensor:
    """Divides by the ℓp norm.

    The result does not depend on a vector's scale, so each is first divided by its largest magnitude: squares of huge
    or tiny values would leave the range of floating point.
    """
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
    zero = largest == 0
    # ones instead of zeros, whose norm has no gradient
    scaled = (vectors / largest.masked_fill(zero, 1.0)).masked_fill(zero, 1.0)
    return F.normalize(scaled, p=p, dim=-1).masked_fill(zero, 0.0)


NORMALIZATIONS: dict[Normalization, Callable[[Tensor], Tensor]] = {
    "l2": lambda vectors: _to_unit_norm(vectors, 2.0),
    "l1": lambda vectors: _to_unit_norm(vectors, 1.0),
    "none": lambda vectors: vectors,
    "clip": lambda vectors: vectors.clamp(-1.0, 1.0),
}


def _on_sphere(codebook: Tensor) -> None:
    codebook.copy_(normalize(torch.randn_like(codebook), "l2"))


def _uniform(codebook: Tensor) -> None:
    codebook_size, dimension = codebook.shape[-2:]
    bound = 1.0 if dimension == 1 else 1.0 / codebook_size
    codebook.uniform_(-bound, bound)


INITIALIZATIONS: dict[Initialization, Callable[[Tensor], None]] = {"sphere": _on_sphere, "uniform": _uniform}


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
