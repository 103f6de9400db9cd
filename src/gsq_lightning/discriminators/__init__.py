"""Discriminators: image → logits. They know nothing of the losses."""

from gsq_lightning.discriminators.discriminator import Discriminator
from gsq_lightning.discriminators.patch import PatchDiscriminator

__all__ = ["Discriminator", "PatchDiscriminator"]
