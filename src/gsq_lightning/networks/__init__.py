"""Encoder and decoder. They know nothing of quantization or training."""

from gsq_lightning.networks.decoder import Decoder
from gsq_lightning.networks.encoder import Encoder
from gsq_lightning.networks.shape import NetworkShape, Upsampling

__all__ = ["Decoder", "Encoder", "NetworkShape", "Upsampling"]
