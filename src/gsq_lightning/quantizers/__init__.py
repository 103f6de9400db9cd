"""Quantizers: latent ⇄ indices. They know nothing of networks or training.

Those of `baselines.py` need the extra `compare`, which is imported when one of them is made.
"""

from gsq_lightning.quantizers.baselines import BSQ, FSQ, LFQ, ResidualVQ, SimVQ
from gsq_lightning.quantizers.interface import Quantizer, QuantizerOutput
from gsq_lightning.quantizers.spherical import GroupedSphericalQuantizer

__all__ = [
    "BSQ",
    "FSQ",
    "LFQ",
    "GroupedSphericalQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "ResidualVQ",
    "SimVQ",
]
