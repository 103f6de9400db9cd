"""Checkpoints that the authors of GSQ published (arXiv 2412.02632; huggingface.co/HelmholtzAI-FZJ).

A `checkpoint.pt` holds `model_state_dict` and `config`, the arguments of the reference's constructor. Blocks are
numbered in the order in which they are built, which is ours: block for block, only names of their parts differ.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from gsq_lightning.errors import InputError, first_few, look_up, require
from gsq_lightning.pretrained.saved import SavedTokenizer, without_omegaconf

logger = logging.getLogger(__name__)

RELEASED_FILE = "checkpoint.pt"

# whether num_group counts, or all channels are one group
GROUPED: dict[str, bool] = {"vq": False, "gvq": True, "gsq": True}

NAMES = {  # of whole parts
    "encoder.conv_in.": "encoder.conv_in.",
    "encoder.fianl_layers.": "encoder.final.",
    "encoder.final_layers.": "encoder.final.",
    "decoder.conv_in.": "decoder.conv_in.",
    "decoder.final_layers.": "decoder.final.",
    "quantizers.codebook.weight": "quantizer.codebook",
}
BLOCK = re.compile(r"(encoder|decoder)\.blocks\.(\d+)\.(\w+)\.(.+)")
BLOCK_PARTS = {
    "net": "net",  # of a residual block
    "skip": "skip",
    "conv": "conv",  # of a downsampling or upsampling
    "gamma": "scale",  # of an adaptive group norm
    "beta": "bias",
    "norm": "norm",  # of attention
    "qkv_conv": "query_key_value",
    "proj_conv": "projection",
}

READ = {
    *("input_channels", "hidden_channels", "channel_multipliers", "encoder_layer_configs", "decoder_layer_configs"),
    *("mid_block_attn", "attention_resolutions", "embedding_dim", "use_adaptive_norm", "use_learnable_up_down_sample"),
    *("dropout_probability", "quantizer_config"),
    "quantizer_aux_loss_weight",  # of training alone
}


def is_released(checkpoint: Mapping[str, Any]) -> bool:
    return "model_state_dict" in checkpoint and "config" in checkpoint


def convert(checkpoint: Mapping[str, Any], source: str) -> SavedTokenizer:
    """A released checkpoint's tokenizer in the form of ours.

    Args:
        checkpoint: of `read_plain`.
        source: for messages.

    Raises:
        InputError: where the config lacks something or has what is not known, or for tensors that are no part of the
            network.
    """
    config, state = without_omegaconf(checkpoint["config"]), checkpoint["model_state_dict"]
    try:
        return SavedTokenizer(_our_config(config, state), _our_weights(state))
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source}: its config does not describe a tokenizer; {error} is missing or wrong") from error


def _our_config(config: dict[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    quantizer = config["quantizer_config"]
    unknown = sorted(name for name in config if name not in READ and "kernel_size" not in name and name != "name")
    if unknown:
        logger.warning("the checkpoint's config has what is not known here and ignored: %s", ", ".join(unknown))
    if "use_l2_norm" not in quantizer:
        logger.warning("the checkpoint's quantizer_config does not say use_l2_norm; it counts as off")
    require(config.get("input_channels", 3) == 3, f"input_channels is {config.get('input_channels')}; images have 3")
    multipliers = [int(multiplier) for multiplier in config["channel_multipliers"]]
    factors = [2**level for level in range(len(multipliers))]
    channels = int(config["embedding_dim"])
    groups = int(quantizer["num_group"]) if look_up("quantize_type", quantizer["quantize_type"], GROUPED) else 1
    return {
        "channel_multipliers": multipliers,
        "base_channels": int(config["hidden_channels"]),
        "encoder_blocks": _blocks(config["encoder_layer_configs"]),
        "decoder_blocks": _blocks(config["decoder_layer_configs"]),
        "adaptive_norm": bool(config.get("use_adaptive_norm", any(".gamma." in name for name in state))),
        "upsampling": "depth_to_space" if _learned_upsampling(config, state) else "nearest",
        "middle_attention": bool(config.get("mid_block_attn", False)),
        # other factors do not occur in the network, and do nothing in the reference
        "attention_factors": [f for f in factors if f in (config.get("attention_resolutions") or ())],
        "dropout": float(config.get("dropout_probability") or 0.0),
        "residual_kernel_size": state["decoder.conv_in.weight"].shape[-1],
        "input_kernel_size": state["encoder.conv_in.weight"].shape[-1],
        "output_kernel_size": state["decoder.final_layers.2.weight"].shape[-1],
        "norm_groups": 32,
        "quantizer": {
            "class": "GroupedSphericalQuantizer",
            "latent_channels": channels,
            "codebook_size": int(quantizer["num_embed"]),
            "num_groups": groups,
            "normalization": _normalization(quantizer, channels // groups),
            "init": "uniform" if quantizer.get("use_uniform_init") else "sphere",
            "commitment_weight": float(quantizer.get("commitment_loss_weight", 0.25)),
        },
    }


def _blocks(counts: Any) -> int | list[int]:
    return [int(count) for count in counts] if isinstance(counts, Iterable) else int(counts)


def _learned_upsampling(config: dict[str, Any], state: Mapping[str, Tensor]) -> bool:
    """As the config says, or else as the tensors: only depth to space widens its input to four times the channels."""
    widens = any(
        re.fullmatch(r"decoder\.blocks\.\d+\.conv\.weight", name) and weight.shape[0] == 4 * weight.shape[1]
        for name, weight in state.items()
    )
    return bool(config.get("use_learnable_up_down_sample", widens))


def _normalization(quantizer: dict[str, Any], dimension: int) -> str:
    l2, l1 = bool(quantizer.get("use_l2_norm")), bool(quantizer.get("use_l1_norm"))
    require(not (l2 and l1), "use_l2_norm and use_l1_norm are both on; a latent is normalized in one way")
    if quantizer.get("force_1d_clip") and (dimension == 1 or not (l2 or l1)):
        return "clip"
    return "l2" if l2 else "l1" if l1 else "none"


def _our_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    numbers: dict[str, set[int]] = {"encoder": set(), "decoder": set()}
    for name in state:
        if match := BLOCK.fullmatch(name):
            numbers[match[1]].add(int(match[2]))
    # blocks without weights may have a number there, and have none here
    places = {end: {number: place for place, number in enumerate(sorted(found))} for end, found in numbers.items()}
    weights, left_over = {}, []
    for name, tensor in state.items():
        match = BLOCK.fullmatch(name)
        if match and match[3] in BLOCK_PARTS:
            end, number, part, rest = match.groups()
            weights[f"{end}.blocks.{places[end][int(number)]}.{BLOCK_PARTS[part]}.{rest}"] = tensor
            continue
        prefix = next((prefix for prefix in NAMES if name.startswith(prefix)), None)
        if prefix is None:
            left_over.append(name)
        else:
            weights[NAMES[prefix] + name.removeprefix(prefix)] = tensor
    require(
        not left_over,
        f"{len(left_over)} of its tensors are no part of the network and were not taken: {first_few(left_over, 5)}",
    )
    return weights
