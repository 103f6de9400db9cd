"""Losses: functions of images and logits. They know nothing of the networks that made them."""

from gsq_lightning.losses.adversarial import AdversarialLoss, discriminator_loss, generator_loss
from gsq_lightning.losses.perceptual import LPIPS, PerceptualLoss
from gsq_lightning.losses.weights import LossWeights

__all__ = ["LPIPS", "AdversarialLoss", "LossWeights", "PerceptualLoss", "discriminator_loss", "generator_loss"]
