"""Gradient estimators for the choice of codes. Forward returns the codes, bit-exact; the codes get no gradient here."""

from typing import Any

import torch
from torch import Tensor

SMALLEST_NORM = 1e-12


def straight_through(latents: Tensor, codes: Tensor) -> Tensor:
    """The gradient of the codes goes to the latents as it is (VQ-VAE, arXiv 1711.00937, section 3.2).

    Args:
        latents, codes: of the same shape and type.

    Returns:
        The codes.
    """
    return _StraightThrough.apply(latents, codes)


def rotate_and_scale(latents: Tensor, codes: Tensor) -> Tensor:
    """The rotation trick (arXiv 2410.06424, section 4): the gradient turns and scales as its latent did.

    The code is seen as λ R z, where R is the rotation in the plane of z and q that takes z onto q's direction, and
    λ = ‖q‖ / ‖z‖; both count as constants, so that the latent gets λ Rᵀ g. Where z or q is zero, or they point in
    opposite directions and the rotation is not unique, the gradient is passed straight through.

    Args:
        latents, codes: (..., d), of the same type.

    Returns:
        The codes.
    """
    return _RotateAndScale.apply(latents, codes)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: Tensor, codes: Tensor) -> Tensor:
        return codes.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _RotateAndScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(latents, codes)
        return codes.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        latents, codes = ctx.saved_tensors
        latent_norm, code_norm = (x.norm(dim=-1, keepdim=True) for x in (latents, codes))
        latent_unit, code_unit = latents / latent_norm, codes / code_norm
        between = latent_unit + code_unit
        between_norm = between.norm(dim=-1, keepdim=True)
        between = between / between_norm
        # R = I - 2 r rᵀ + 2 q zᵀ with r the direction halfway between (eq. 4), here transposed
        turned = (
            gradient
            - 2 * between * (between * gradient).sum(dim=-1, keepdim=True)
            + 2 * latent_unit * (code_unit * gradient).sum(dim=-1, keepdim=True)
        )
        defined = (latent_norm > SMALLEST_NORM) & (code_norm > SMALLEST_NORM) & (between_norm > 1e-6)
        return torch.where(defined, turned * (code_norm / latent_norm), gradient), None
