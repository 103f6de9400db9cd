"""The tokenizer: image ⇄ indices. Needs torch, einops, safetensors and huggingface_hub, nothing of training."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsq_lightning import quantizers
from gsq_lightning.errors import InputError, first_line
from gsq_lightning.files import write_whole
from gsq_lightning.networks import Decoder, Encoder
from gsq_lightning.networks.decoder import Upsampling
from gsq_lightning.quantizers import Quantizer, QuantizerOutput

CONFIG_FILE = "config.json"
MAX_CHANNELS = 2**15  # of a convolution: one of 3×3 then has 38 GB
WEIGHTS_FILE = "model.safetensors"


class GSQTokenizer(nn.Module):
    """Encoder, quantizer and decoder.

    The defaults are the paper's f8 network: [1, 2, 2, 4] × 128 channels, two residual blocks per level and in the
    middle, adaptive group norm, depth-to-space upsampling.

    Args:
        quantizer: anything that keeps the `Quantizer` interface; its `latent_channels` is the latent's D.
        channel_multipliers: width of each level in units of `base_channels`, from the image inwards; L levels
            divide height and width by f = 2^(L-1). f8 [1, 2, 2, 4]; f16 [1, 1, 2, 2, 4]; f32 [1, 1, 2, 2, 4, 4].
        base_channels: width of the first level's unit.
        encoder_blocks, decoder_blocks: residual blocks per level, either one number for all, the middle included,
            or L + 1 numbers in the order of `channel_multipliers`, the middle's last.
        adaptive_norm: adaptive group norm in the decoder (AGN; paper's Tables 3, 12).
        upsampling: "depth_to_space" or "nearest" (paper's Tables 3, 12).
        middle_attention: self-attention between the middle blocks, at both ends (paper's Table 12, Fig. 3).
        attention_factors: self-attention after each residual block where the map is 1/f of the image, at both
            ends; a list of f. At 256² the factor 16 means maps of 16×16.
        dropout: probability in the residual blocks, in [0, 1).
        residual_kernel_size: of the residual blocks' convolutions; odd, as are the others.
        input_kernel_size: of the first convolution at both ends.
        encoder_output_kernel_size, decoder_output_kernel_size: of the last convolutions.
        norm_groups: groups of every GroupNorm; divides every width.

    Raises:
        InputError: for sizes that do not fit each other.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        channel_multipliers: Sequence[int] = (1, 2, 2, 4),
        base_channels: int = 128,
        encoder_blocks: int | Sequence[int] = 2,
        decoder_blocks: int | Sequence[int] = 2,
        adaptive_norm: bool = True,
        upsampling: Upsampling = "depth_to_space",
        middle_attention: bool = False,
        attention_factors: Sequence[int] = (),
        dropout: float = 0.0,
        residual_kernel_size: int = 3,
        input_kernel_size: int = 3,
        encoder_output_kernel_size: int = 1,
        decoder_output_kernel_size: int = 3,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        self.channel_multipliers = list(channel_multipliers)
        self.base_channels = base_channels
        self.encoder_blocks = encoder_blocks
        self.decoder_blocks = decoder_blocks
        self.adaptive_norm = adaptive_norm
        self.upsampling: Upsampling = upsampling
        self.middle_attention = middle_attention
        self.attention_factors = list(attention_factors)
        self.dropout = dropout
        self.residual_kernel_size = residual_kernel_size
        self.input_kernel_size = input_kernel_size
        self.encoder_output_kernel_size = encoder_output_kernel_size
        self.decoder_output_kernel_size = decoder_output_kernel_size
        self.norm_groups = norm_groups
        self._check_arguments()

        self.encoder = Encoder(
            latent_channels=quantizer.latent_channels,
            channel_multipliers=channel_multipliers,
            base_channels=base_channels,
            blocks=self._blocks_per_level("encoder_blocks"),
            middle_attention=middle_attention,
            attention_factors=attention_factors,
            dropout=dropout,
            residual_kernel_size=residual_kernel_size,
            input_kernel_size=input_kernel_size,
            output_kernel_size=encoder_output_kernel_size,
            norm_groups=norm_groups,
        )
        self.quantizer = quantizer
        self.decoder = Decoder(
            latent_channels=quantizer.latent_channels,
            channel_multipliers=channel_multipliers,
            base_channels=base_channels,
            blocks=self._blocks_per_level("decoder_blocks"),
            adaptive_norm=adaptive_norm,
            upsampling=upsampling,
            middle_attention=middle_attention,
            attention_factors=attention_factors,
            dropout=dropout,
            residual_kernel_size=residual_kernel_size,
            input_kernel_size=input_kernel_size,
            output_kernel_size=decoder_output_kernel_size,
            norm_groups=norm_groups,
        )

    @property
    def downsample_factor(self) -> int:
        """f: the latent is 1/f as high and wide as the image."""
        return 2 ** (len(self.channel_multipliers) - 1)

    def tokens_per_image(self, height: int, width: int) -> int:
        """h·w·G: indices of an image of height × width pixels. Raises InputError where f does not divide them."""
        self._check_size(height, width)
        return (height // self.downsample_factor) * (width // self.downsample_factor) * self.quantizer.num_groups

    def bits_per_image(self, height: int, width: int) -> float:
        """h·w·G·log2 V. Raises InputError where f does not divide height and width."""
        self._check_size(height, width)
        positions = (height // self.downsample_factor) * (width // self.downsample_factor)
        return positions * self.quantizer.bits_per_position

    def encode(self, image: Tensor) -> QuantizerOutput:
        """(B, 3, H, W) in [-1, 1], H and W divisible by f → `QuantizerOutput` with h = H/f, w = W/f."""
        return self.quantizer(self._image_to_latent(image))

    def decode(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) → image (B, 3, f·h, f·w), unclamped."""
        return self.decoder(quantized.to(self.decoder.conv_in.weight.dtype))

    def encode_indices(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → (B, h, w, G) int64 in [0, V)."""
        return self.quantizer.latent_to_indices(self._image_to_latent(image))

    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w, G) int64 → image (B, 3, f·h, f·w), unclamped. Raises InputError for indices outside [0, V)."""
        if indices.ndim != 4 or indices.shape[-1] != self.quantizer.num_groups:
            raise InputError(
                f"indices have shape {tuple(indices.shape)}; they must be (B, h, w, G) with "
                f"G = {self.quantizer.num_groups}"
            )
        if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= self.quantizer.codebook_size):
            raise InputError(
                f"indices range from {int(indices.min())} to {int(indices.max())}; the codebook has "
                f"{self.quantizer.codebook_size} codes, so 0 to {self.quantizer.codebook_size - 1} are allowed"
            )
        return self.decode(self.quantizer.indices_to_quantized(indices))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → reconstruction of the same shape, unclamped."""
        return self.decode(self.encode(image).quantized)

    @property
    def config(self) -> dict[str, Any]:
        """Plain data from which `from_config` builds a tokenizer of the same shape."""
        arguments = {
            name: getattr(self, name)
            for name in inspect.signature(type(self).__init__).parameters
            if name not in ("self", "quantizer")
        }
        quantizer = {"class": type(self.quantizer).__name__, **self.quantizer.arguments}
        return {**arguments, "quantizer": quantizer}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GSQTokenizer":
        """Builds a tokenizer with fresh weights from `config`. Raises InputError for what it does not know."""
        try:
            arguments = dict(config)
            quantizer_arguments = dict(arguments.pop("quantizer"))
            quantizer_class = getattr(quantizers, str(quantizer_arguments.pop("class")), None)
            if not (isinstance(quantizer_class, type) and issubclass(quantizer_class, Quantizer)):
                raise KeyError("the quantizer's class")
            return cls(quantizer=quantizer_class(**quantizer_arguments), **arguments)
        except InputError:
            raise
        except (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"the tokenizer's config does not fit this version of gsq-lightning: {error}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors` into `folder`, which is made where it is missing."""
        from safetensors.torch import save

        folder = Path(folder)
        config = json.dumps(self.config, indent=2) + "\n"
        write_whole(folder / WEIGHTS_FILE, save({name: x.contiguous() for name, x in self.state_dict().items()}))
        write_whole(folder / CONFIG_FILE, config.encode())

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> "GSQTokenizer":
        """Loads a tokenizer, in eval mode on the CPU.

        Args:
            source: a folder written by `save_pretrained`; a checkpoint (`.ckpt`) of training, whose averaged
                weights are taken where it has them; or the name of a repository on the Hugging Face Hub.
            revision: branch, tag or commit on the Hub.

        Raises:
            InputError: where the source is none of these, or its weights do not fit its config.
        """
        path = Path(source)
        if path.is_file():
            config, weights = read_checkpoint(path)
        else:
            folder = path if path.is_dir() else _download(str(source), revision)
            config, weights = _read_folder(folder)
        tokenizer = cls.from_config(config)
        check_weights(tokenizer, weights, str(source))
        tokenizer.load_state_dict(weights)
        return tokenizer.eval()

    def _image_to_latent(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1] != 3:
            raise InputError(f"the image has shape {tuple(image.shape)}; it must be (B, 3, H, W)")
        self._check_size(image.shape[2], image.shape[3])
        return self.encoder(image)

    def _check_size(self, height: int, width: int) -> None:
        factor = self.downsample_factor
        if height >= factor and width >= factor and height % factor == 0 and width % factor == 0:
            return
        raise InputError(
            f"an image of {height}×{width} (height × width) does not divide by the downsampling factor {factor}; "
            f"the nearest sizes that do are height {_nearest_multiples(height, factor)} and width "
            f"{_nearest_multiples(width, factor)}"
        )

    def _blocks_per_level(self, name: str) -> list[int]:
        value = getattr(self, name)
        return [value] * (len(self.channel_multipliers) + 1) if isinstance(value, int) else list(value)

    def _check_arguments(self) -> None:
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise InputError(
                f"channel_multipliers is {self.channel_multipliers}; it takes one number of at least 1 per level"
            )
        if self.norm_groups < 1:
            raise InputError(f"norm_groups is {self.norm_groups}; it must be at least 1")
        widest = self.base_channels * max(self.channel_multipliers)
        if widest > MAX_CHANNELS:
            raise InputError(
                f"base_channels {self.base_channels} times {max(self.channel_multipliers)} of channel_multipliers is "
                f"{widest} channels; at most {MAX_CHANNELS} are possible"
            )
        if self.base_channels < 1 or self.base_channels % self.norm_groups:
            raise InputError(
                f"base_channels {self.base_channels} is not a multiple of norm_groups {self.norm_groups}: "
                "every GroupNorm splits its channels into that many groups"
            )
        for name in ("encoder_blocks", "decoder_blocks"):
            blocks = self._blocks_per_level(name)
            if len(blocks) != len(self.channel_multipliers) + 1 or min(blocks) < 0:
                raise InputError(
                    f"{name} is {getattr(self, name)}; it takes one number for all, or "
                    f"{len(self.channel_multipliers) + 1} of at least 0: one per level of channel_multipliers and one "
                    "for the middle"
                )
        for name in (
            "residual_kernel_size",
            "input_kernel_size",
            "encoder_output_kernel_size",
            "decoder_output_kernel_size",
        ):
            if getattr(self, name) < 1 or getattr(self, name) % 2 == 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be odd, so that maps keep their size")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        factors = [2**level for level in range(len(self.channel_multipliers))]
        unknown = [factor for factor in self.attention_factors if factor not in factors]
        if unknown:
            raise InputError(f"attention_factors {unknown} do not occur in this network; its maps are at {factors}")


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads config and weights of the tokenizer from a training checkpoint; the averaged weights where it has them.

    Raises:
        InputError: where the file cannot be read, or is not a checkpoint of this library.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        config, state = checkpoint["tokenizer_config"], checkpoint["state_dict"]
        averaged = int(state.get("ema.n_averaged", torch.tensor(0))) > 0
        prefix = "ema.module." if averaged else "tokenizer."
        weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if not all(isinstance(value, Tensor) for value in weights.values()):
            raise TypeError("its weights are not tensors")
    except Exception as error:  # whatever the unpickler makes of a damaged file
        raise InputError(f"{path} is not a readable checkpoint of gsq-lightning: {first_line(error)}") from error
    return config, weights


def check_weights(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Raises InputError with the first tensors of `weights` that `module` lacks, misses or has in another shape."""
    own = module.state_dict()
    differences = [
        f"{name}: {tuple(weights[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    differences += [f"{name}: missing in the file" for name in own if name not in weights]
    differences += [f"{name}: unknown to the model" for name in weights if name not in own]
    if differences:
        shown = "; ".join(differences[:3]) + ("; …" if len(differences) > 3 else "")
        raise InputError(f"the weights of {source} do not fit this model in {len(differences)} tensors: {shown}")


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return json.loads((folder / CONFIG_FILE).read_text("utf-8")), load_file(folder / WEIGHTS_FILE)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no exported tokenizer: {Path(error.filename or WEIGHTS_FILE).name} is missing; "
            "save_pretrained writes such a folder"
        ) from error
    # ValueError: no JSON, or no UTF-8
    except (OSError, RecursionError, SafetensorError, ValueError) as error:
        raise InputError(f"the exported tokenizer in {folder} cannot be read: {error}") from error


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{repository!r} is neither a folder nor a checkpoint here, and could not be fetched from the Hugging Face "
            f"Hub: {first_line(error)}"
        ) from error


def _nearest_multiples(size: int, factor: int) -> str:
    lower = size // factor * factor
    if lower == size and size > 0:
        return str(size)
    return f"{lower} or {lower + factor}" if lower else str(factor)
