"""Losses: functions of images and logits, and what joins them for a step. They know nothing of encoder and decoder."""

from gsq_lightning.losses.adversarial import AdversarialLoss, discriminator_loss, generator_loss
from gsq_lightning.losses.efficientnet import EfficientNetLoss
from gsq_lightning.losses.features import DINOLoss, DINOPatchLoss, FeatureLoss, ResNetLoss, VGGLoss
from gsq_lightning.losses.objective import Loss, LossWeights, Objective
from gsq_lightning.losses.perceptual import LPIPS, PerceptualLoss
from gsq_lightning.losses.regularizers import GradientPenalty, LeCamRegularizer, adaptive_weight, gradient_penalty

__all__ = [
    "LPIPS",
    "AdversarialLoss",
    "DINOLoss",
    "DINOPatchLoss",
    "EfficientNetLoss",
    "FeatureLoss",
    "GradientPenalty",
    "LeCamRegularizer",
    "Loss",
    "LossWeights",
    "Objective",
    "PerceptualLoss",
    "ResNetLoss",
    "VGGLoss",
    "adaptive_weight",
    "discriminator_loss",
    "generator_loss",
    "gradient_penalty",
]
