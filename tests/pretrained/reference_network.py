"""A network of GSQ's authors as their checkpoints describe it, written from the description alone.

Plain functions over a state dict with their names; no module of this library.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


class Reconstruction(NamedTuple):
    latent: Tensor  # (B, D, h, w)
    indices: Tensor  # (B, h, w, G)
    image: Tensor  # (B, 3, H, W)


def make_config(**changes: Any) -> dict[str, Any]:
    """The constructor's arguments of a small f8 network; `quantizer` changes those of the quantizer."""
    quantizer = {
        "quantize_type": "gsq",
        "embed_dim": 8,
        "num_embed": 64,
        "num_group": 2,
        "use_l2_norm": True,
        "use_l1_norm": False,
        "use_uniform_init": False,
        "force_1d_clip": False,
        **changes.pop("quantizer", {}),
    }
    return {
        "input_channels": 3,
        "hidden_channels": 32,
        "encoder_layer_configs": [1, 1, 1, 1, 1],
        "decoder_layer_configs": [1, 1, 1, 1, 1],
        "channel_multipliers": [1, 1, 1, 2],
        "mid_block_attn": False,
        "attention_resolutions": [],
        "embedding_dim": 8,
        "use_adaptive_norm": True,
        "use_learnable_up_down_sample": True,
        "residual_conv_kernel_size": 3,
        "input_conv_kernel_size": 3,
        "output_conv_kernel_size": 3,
        "dropout_probability": 0.0,
        "quantizer_aux_loss_weight": 1.0,
        **changes,
        "quantizer_config": quantizer,
    }


class Network:
    """Builds its random weights where `state` lacks them, and computes with those that are there."""

    def __init__(self, config: dict[str, Any], state: State | None = None) -> None:
        self.config = config
        self.state: State = {} if state is None else state

    def reconstruct(self, image: Tensor) -> Reconstruction:
        latent = self.encoder(image)
        quantized, indices = self.quantizer(latent)
        return Reconstruction(latent, indices, self.decoder(quantized))

    # ---------------------------------------------------------------------------------------------- layers

    def weight(self, name: str, shape: tuple[int, ...], around: float = 0.0) -> Tensor:
        if name not in self.state:
            spread = 0.3 if len(shape) == 1 else torch.Size(shape[1:]).numel() ** -0.5
            self.state[name] = (around + spread * torch.randn(shape)).requires_grad_()
        return self.state[name]

    def conv(self, name: str, x: Tensor, channels: int, kernel: int, stride: int = 1) -> Tensor:
        weight = self.weight(f"{name}.weight", (channels, x.shape[1], kernel, kernel))
        return F.conv2d(x, weight, self.weight(f"{name}.bias", (channels,)), stride, kernel // 2)

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        scale = self.weight(f"{name}.weight", (x.shape[1],), around=1.0)
        return F.group_norm(x, 32, scale, self.weight(f"{name}.bias", (x.shape[1],)), eps)

    def linear(self, name: str, x: Tensor, channels: int) -> Tensor:
        return F.linear(
            x, self.weight(f"{name}.weight", (channels, x.shape[1])), self.weight(f"{name}.bias", (channels,))
        )

    def residual(self, name: str, x: Tensor, channels: int) -> Tensor:
        kernel = self.config["residual_conv_kernel_size"]
        y = self.conv(f"{name}.net.2", F.silu(self.norm(f"{name}.net.0", x, 1e-5)), channels, kernel)
        y = self.conv(f"{name}.net.6", F.silu(self.norm(f"{name}.net.3", y, 1e-5)), channels, kernel)
        return y + (x if x.shape[1] == channels else self.conv(f"{name}.skip", x, channels, 1))

    def attention(self, name: str, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.conv(f"{name}.qkv_conv", self.norm(f"{name}.norm", x, 1e-6), 3 * channels, 1)
        query, key, value = qkv.reshape(batch, 3, channels, height * width).unbind(1)  # each (B, C, N)
        weights = torch.softmax(torch.einsum("bcn,bcm->bnm", query, key) / channels**0.5, dim=-1)
        attended = torch.einsum("bnm,bcm->bcn", weights, value).reshape(x.shape)
        return x + self.conv(f"{name}.proj_conv", attended, channels, 1)

    def adaptive_norm(self, name: str, x: Tensor, quantized: Tensor) -> Tensor:
        flat = quantized.flatten(2)
        scale = self.linear(f"{name}.gamma", (flat.var(dim=-1, unbiased=True) + 1e-6).sqrt(), x.shape[1])
        bias = self.linear(f"{name}.beta", flat.mean(dim=-1), x.shape[1])
        return F.group_norm(x, 32, eps=1e-6) * scale[:, :, None, None] + bias[:, :, None, None]

    def upsample(self, name: str, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        if not self.config["use_learnable_up_down_sample"]:
            return self.conv(f"{name}.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3), channels, 3)
        made = self.conv(f"{name}.conv", x, 4 * channels, 3)
        larger = x.new_zeros(batch, channels, 2 * height, 2 * width)
        for row in range(2):
            for column in range(2):
                first = (2 * row + column) * channels
                larger[:, :, row::2, column::2] = made[:, first : first + channels]
        return larger

    # -------------------------------------------------------------------------------------------- networks

    def middle(self, end: str, number: int, x: Tensor, blocks: int) -> tuple[int, Tensor]:
        for block in range(blocks):
            x = self.residual(f"{end}.blocks.{number}", x, x.shape[1])
            number += 1
            if self.config["mid_block_attn"] and block < blocks - 1:
                x = self.attention(f"{end}.blocks.{number}", x)
                number += 1
        return number, x

    def level(self, end: str, number: int, x: Tensor, channels: int, blocks: int, factor: int) -> tuple[int, Tensor]:
        if x.shape[1] != channels:
            x = self.residual(f"{end}.blocks.{number}", x, channels)
            number += 1
        for _ in range(blocks):
            x = self.residual(f"{end}.blocks.{number}", x, channels)
            number += 1
            if factor in self.config["attention_resolutions"]:
                x = self.attention(f"{end}.blocks.{number}", x)
                number += 1
        return number, x

    def encoder(self, image: Tensor) -> Tensor:
        config = self.config
        *per_level, in_middle = config["encoder_layer_configs"]
        width = config["hidden_channels"]
        x = self.conv("encoder.conv_in", image, width, config["input_conv_kernel_size"])
        number, factor = 0, 1
        for level, (multiplier, blocks) in enumerate(zip(config["channel_multipliers"], per_level, strict=True)):
            number, x = self.level("encoder", number, x, width * multiplier, blocks, factor)
            if level < len(per_level) - 1:
                x = self.conv(f"encoder.blocks.{number}.conv", x, x.shape[1], 3, stride=2)
                number, factor = number + 1, factor * 2
        number, x = self.middle("encoder", number, x, in_middle)
        x = F.silu(self.norm("encoder.fianl_layers.0", x, 1e-5))
        return self.conv("encoder.fianl_layers.2", x, config["embedding_dim"], 1)

    def quantizer(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        settings = self.config["quantizer_config"]
        groups = 1 if settings["quantize_type"] == "vq" else settings["num_group"]
        batch, channels, height, width = latent.shape
        dimension = channels // groups
        codebook = self.weight("quantizers.codebook.weight", (settings["num_embed"], dimension))
        points = latent.permute(0, 2, 3, 1).reshape(-1, dimension)
        codes = codebook
        if settings["force_1d_clip"]:
            points, codes = points.clamp(-1, 1), codes.clamp(-1, 1)
        elif settings["use_l2_norm"] or settings["use_l1_norm"]:
            order = 2 if settings["use_l2_norm"] else 1
            points = points / points.norm(p=order, dim=1, keepdim=True)
            codes = codes / codes.norm(p=order, dim=1, keepdim=True)
        indices = (points[:, None].double() - codes.double()).square().sum(-1).argmin(1)
        quantized = points + (codebook[indices] - points).detach()  # the codes as stored
        return (
            quantized.reshape(batch, height, width, channels).permute(0, 3, 1, 2),
            indices.reshape(batch, height, width, groups),
        )

    def decoder(self, quantized: Tensor) -> Tensor:
        config = self.config
        *per_level, in_middle = config["decoder_layer_configs"]
        width, factor = config["hidden_channels"], 2 ** (len(per_level) - 1)
        x = self.conv(
            "decoder.conv_in", quantized, width * config["channel_multipliers"][-1], config["residual_conv_kernel_size"]
        )
        number, x = self.middle("decoder", 0, x, in_middle)
        for level in reversed(range(len(per_level))):
            if config["use_adaptive_norm"]:
                x = self.adaptive_norm(f"decoder.blocks.{number}", x, quantized)
                number += 1
            number, x = self.level(
                "decoder", number, x, width * config["channel_multipliers"][level], per_level[level], factor
            )
            if level > 0:
                x = self.upsample(f"decoder.blocks.{number}", x)
                number, factor = number + 1, factor // 2
        x = F.silu(self.norm("decoder.final_layers.0", x, 1e-5))
        return self.conv("decoder.final_layers.2", x, 3, config["output_conv_kernel_size"])
