"""Quantizers: latent ⇄ indices. They know nothing of networks or training."""

from gsq_lightning.quantizers.quantizer import Quantizer, QuantizerOutput
from gsq_lightning.quantizers.spherical import GroupedSphericalQuantizer

__all__ = ["GroupedSphericalQuantizer", "Quantizer", "QuantizerOutput"]
