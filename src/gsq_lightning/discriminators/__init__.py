"""Discriminators: image → logits. They know nothing of the losses."""

from gsq_lightning.discriminators.augmentation import AugmentationDraw, DifferentiableAugmentation
from gsq_lightning.discriminators.dino import DINODiscriminator
from gsq_lightning.discriminators.interface import (
    Discriminator,
    LogitPair,
    ModuleDiscriminator,
    as_discriminator,
)
from gsq_lightning.discriminators.patch import PatchDiscriminator
from gsq_lightning.discriminators.projected import ProjectedDiscriminator
from gsq_lightning.discriminators.stylegan import StyleGANDiscriminator

__all__ = [
    "AugmentationDraw",
    "DINODiscriminator",
    "DifferentiableAugmentation",
    "Discriminator",
    "LogitPair",
    "ModuleDiscriminator",
    "PatchDiscriminator",
    "ProjectedDiscriminator",
    "StyleGANDiscriminator",
    "as_discriminator",
]
