"""The tokenizer: image ⇄ indices. Needs torch, einops, numpy, scipy, safetensors and huggingface_hub, and Pillow for
pictures; not Lightning.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning import quantizers
from gsq_lightning.errors import InputError, require, whole_number
from gsq_lightning.networks import Decoder, Encoder, NetworkShape, Upsampling
from gsq_lightning.networks.tiling import blend_tiles
from gsq_lightning.pixels import check_float, check_range, image_to_picture, picture_to_image
from gsq_lightning.pretrained.card import CARD_FILE, model_card, read_metrics
from gsq_lightning.pretrained.export import Weights, push_folder, read_released, read_tokenizer, write_folder
from gsq_lightning.pretrained.saved import SavedTokenizer, as_plain, check_weights
from gsq_lightning.quantizers import Quantizer, QuantizerOutput

if TYPE_CHECKING:
    from PIL.Image import Image


class EncodedImage(NamedTuple):
    """A picture of any size as indices.

    Attributes:
        indices: (1, h, w, G) int64, of the picture padded to sizes that f divides.
        height, width: of the picture, in pixels.
    """

    indices: Tensor
    height: int
    width: int


class GSQTokenizer(nn.Module):
    """Encoder, quantizer and decoder.

    The defaults are the paper's f8 network: [1, 2, 2, 4] × 128 channels, two residual blocks per level and in the
    middle, adaptive group norm, depth-to-space upsampling.

    Args:
        quantizer: one of `gsq_lightning.quantizers`, or of your own that keeps the `Quantizer` interface; its
            `latent_channels` is the latent's D.
        channel_multipliers: width of each level in units of `base_channels`, from the image inwards; L levels
            divide height and width by f = 2^(L-1). f8 [1, 2, 2, 4]; f16 [1, 1, 2, 2, 4]; f32 [1, 1, 2, 2, 4, 4].
        base_channels: width of the first level's unit.
        encoder_blocks: residual blocks of the encoder per level, either one number for all, the middle included, or
            L + 1 numbers in the order of `channel_multipliers`, the middle's last.
        decoder_blocks: residual blocks of the decoder per level, likewise.
        adaptive_norm: adaptive group norm in the decoder (AGN; paper's Tables 3, 12).
        upsampling: "depth_to_space" or "nearest" (paper's Tables 3, 12).
        middle_attention: self-attention after every middle block but the last, at both ends (paper's Table 12, Fig. 3).
        attention_factors: self-attention after each of a level's own residual blocks (not after one that changes the
            width) where the map is 1/f of the image, at both ends; a list of f. At 256² the factor 16 means maps of
            16×16.
        dropout: probability of a channel in the residual blocks, in [0, 1).
        residual_kernel_size: kernel of residual blocks and of the decoder's first convolution; odd, as are the others.
        input_kernel_size: kernel of the encoder's first convolution.
        output_kernel_size: kernel of the decoder's last convolution. (The encoder's last is 1×1.)
        norm_groups: groups of every GroupNorm; divides every width. Keep about four channels to a group, as the paper
            does (128 / 32), or colors drift: a group of one channel loses its brightness.

    Attributes:
        shape: all of these but the quantizer.
        image_size: side of the images that its training evaluated, in pixels, where what it was loaded from says it.

    Raises:
        InputError: for sizes that do not fit each other, or unknown words.
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
        output_kernel_size: int = 3,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        if getattr(quantizer, "channel_dim", 1) != 1:
            raise InputError("the quantizer's channel_dim must be 1: images have their channels there")
        self.shape = NetworkShape(
            latent_channels=quantizer.latent_channels,
            channel_multipliers=channel_multipliers,
            base_channels=base_channels,
            encoder_blocks=encoder_blocks,
            decoder_blocks=decoder_blocks,
            adaptive_norm=adaptive_norm,
            upsampling=upsampling,
            middle_attention=middle_attention,
            attention_factors=attention_factors,
            dropout=dropout,
            residual_kernel_size=residual_kernel_size,
            input_kernel_size=input_kernel_size,
            output_kernel_size=output_kernel_size,
            norm_groups=norm_groups,
        )
        self.encoder = Encoder(self.shape)
        self.quantizer = quantizer
        self.decoder = Decoder(self.shape)
        self.image_size: int | None = None

    @property
    def downsample_factor(self) -> int:
        """f: the latent is 1/f as high and wide as the image."""
        return self.shape.downsample_factor

    def tokens_per_image(self, height: int, width: int) -> int:
        """h·w·G: indices of an image of height × width pixels. Raises InputError where f does not divide them."""
        return self._positions(height, width) * self.quantizer.num_groups

    def bits_per_image(self, height: int, width: int) -> float:
        """h·w·G·log2 V. Raises InputError where f does not divide height and width."""
        return self._positions(height, width) * self.quantizer.bits_per_position

    def latent(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], H and W divisible by f → the encoder's latent (B, D, H/f, W/f).

        Raises:
            InputError: for another shape or type; in eval mode also for values in [0, 255], NaN or infinite ones.
        """
        if not isinstance(image, Tensor):
            raise InputError(f"the image is of the type {type(image).__name__}; it must be a tensor (B, 3, H, W)")
        if image.ndim != 4 or image.shape[1] != 3:
            raise InputError(f"the image has shape {tuple(image.shape)}; it must be (B, 3, H, W)")
        check_float(image)
        if not self.training and not torch.compiler.is_compiling():  # a graph cannot depend on values
            check_range(image)
        self._positions(image.shape[2], image.shape[3])
        return self._encoded(image)

    def _encoded(self, image: Tensor) -> Tensor:
        return self.encoder(image.to(self.encoder.conv_in.weight.dtype))

    def _finite(self, latent: Tensor) -> Tensor:
        """The latent. Raises InputError in eval mode where it is NaN or infinite: a lookup would still give codes."""
        if not self.training and not torch.compiler.is_compiling():
            broken = int((~latent.flatten(1).isfinite().all(dim=1)).sum())
            require(
                broken == 0,
                f"the latents of {broken} of {len(latent)} images are NaN or infinite, so they have no indices: the "
                "tokenizer's weights are, or its precision is too small; take an earlier checkpoint, or float32",
            )
        return latent

    def encode(self, image: Tensor) -> QuantizerOutput:
        """(B, 3, H, W) in [-1, 1] → `QuantizerOutput`, whose `quantized` is (B, D, H/f, W/f), with its losses.

        Raises:
            InputError: for what is no such image; in eval mode also where image or latent are not finite.
        """
        return self.quantizer(self._finite(self.latent(image)))

    def decode(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) → image (B, 3, f·h, f·w), unclamped. Raises InputError for another shape."""
        channels = self.quantizer.latent_channels
        if quantized.ndim != 4 or quantized.shape[1] != channels:
            raise InputError(f"the latent has shape {tuple(quantized.shape)}; it must be (B, D, h, w), D = {channels}")
        return self.decoder(quantized.to(self.decoder.conv_in.weight.dtype))

    def encode_indices(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → (B, h, w, G) int64 in [0, V). Raises InputError as `encode`."""
        return self.quantizer.latent_to_indices(self._finite(self.latent(image)))

    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w, G), any integer type → image (B, 3, f·h, f·w), unclamped. Raises InputError outside [0, V)."""
        return self.decode(self.quantizer.indices_to_quantized(self._checked(indices)))

    def _checked(self, indices: Tensor) -> Tensor:
        """Indices as int64. Raises InputError for those that cannot be decoded."""
        indices = self.quantizer.checked(indices, wait_for_device=True)
        if indices.ndim != 4:
            raise InputError(
                f"indices have shape {tuple(indices.shape)}; they must be (B, h, w, G) with G = "
                f"{self.quantizer.num_groups}"
            )
        return indices

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → reconstruction of the same shape, unclamped, whether or not latents are finite."""
        latent = self.latent(image)
        if torch.is_grad_enabled():
            return self.decode(self.quantizer(latent).quantized)
        # bit-exact the same, without the quantizer's losses, which may cost many times the forward pass
        return self.decode(self.quantizer.indices_to_quantized(self.quantizer.latent_to_indices(latent)))

    @torch.no_grad()
    def encode_image(self, picture: Any, tile: int | None = None) -> EncodedImage:
        """A picture of any size → its indices; `decode_image` gives a picture of that size back.

        Its last row and column are repeated until f divides its height and width.

        Args:
            picture: a path, a Pillow image, a uint8 array or tensor, or a float tensor in [-1, 1], see
                `gsq_lightning.pixels.picture_to_image`.
            tile: height and width in pixels of the tiles, which overlap by a quarter, in which a larger picture is
                encoded, to save memory; rounded up to a multiple of 4·f. Their latents are blended. None: whole.

        Raises:
            InputError: for what is no picture or no size; in eval mode also where the latent is not finite.
        """
        image = picture_to_image(picture).to(self.encoder.conv_in.weight.device)
        height, width = image.shape[-2:]
        factor = self.downsample_factor
        padded = F.pad(image, (0, -width % factor, 0, -height % factor), mode="replicate")
        if tile is None:
            latent = self._encoded(padded)
        else:
            size, overlap = self._tile(tile)
            latent = blend_tiles(self._encoded, padded, size * factor, overlap * factor, Fraction(1, factor))
        return EncodedImage(self.quantizer.latent_to_indices(self._finite(latent)), height, width)

    @torch.no_grad()
    def decode_image(self, encoded: EncodedImage, tile: int | None = None) -> "Image":
        """What `encode_image` made → a Pillow image of the picture's size. `tile` as there; seams are blended.

        Raises:
            InputError: for what `encode_image` did not make of a tokenizer of this shape, and for a tile of no size.
        """
        require(
            isinstance(encoded, EncodedImage),
            f"decode_image takes what encode_image gives, not {type(encoded).__name__}; decode_indices takes indices",
        )
        if tile is None:
            image = self.decode_indices(encoded.indices)
        else:
            size, overlap = self._tile(tile)
            quantized = self.quantizer.indices_to_quantized(self._checked(encoded.indices))
            image = blend_tiles(self.decode, quantized, size, overlap, Fraction(self.downsample_factor))
        return image_to_picture(image[..., : encoded.height, : encoded.width])

    @property
    def config(self) -> dict[str, Any]:
        """Plain data from which `from_config` builds a tokenizer of the same shape.

        Of a quantizer that is not one of `gsq_lightning.quantizers` only the name is kept, for the message of
        `from_config`, which needs the object itself.

        Raises:
            InputError: where an argument of the quantizer is no plain data.
        """
        shape = asdict(self.shape)
        del shape["latent_channels"]
        cls = type(self.quantizer)
        if getattr(quantizers, cls.__name__, None) is cls:
            quantizer = {"class": cls.__name__, **self.quantizer.arguments}
        else:
            quantizer = {"own_class": cls.__name__}
        return as_plain({**shape, "quantizer": quantizer})

    @property
    def hash(self) -> str:
        """SHA-256 of encoder and quantizer in hexadecimal. Tokens carry it: tokenizers of that hash decode them."""
        return SavedTokenizer(self.config, self.state_dict()).hash

    @classmethod
    def from_config(cls, config: dict[str, Any], quantizer: Quantizer | None = None) -> "GSQTokenizer":
        """Builds a tokenizer with fresh weights.

        Args:
            config: of a tokenizer.
            quantizer: to use instead of the one that `config` describes; needed where that is of your own class.

        Raises:
            InputError: for what it does not know.
        """
        try:
            arguments = dict(config)
            described = dict(arguments.pop("quantizer"))
            if quantizer is None:
                quantizer = _make_quantizer(described)
            return cls(quantizer=quantizer, **arguments)
        except InputError:
            raise
        except (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"the tokenizer's config does not fit this version of gsq-lightning: {error}") from error

    def save_pretrained(self, folder: str | Path, half: bool = False) -> None:
        """Writes `config.json` and `model.safetensors` into `folder`, which is made where it is missing.

        Args:
            folder: where to.
            half: store the networks' weights in float16, half the bytes; they are float32 again when loaded. Codes stay
                as they are.

        Raises:
            InputError: where `folder` is a file, or holds another tokenizer with a model card.
        """
        saved = SavedTokenizer(self.config, self.state_dict(), image_size=self.image_size)
        write_folder(Path(folder).expanduser(), saved, half)

    def model_card(self, name: str, report: str | Path | None = None, license: str | None = None) -> str:
        """Markdown for the Hub.

        Args:
            name: of the repository.
            report: path of a `metrics.json` of validation, whose metrics and protocol are shown.
            license: of the weights, as the Hub spells it; "unknown" where none is given.

        Raises:
            InputError: where the report cannot be read.
        """
        metrics = None if report is None else read_metrics(Path(report).expanduser())
        return model_card(SavedTokenizer(self.config, self.state_dict()), name, metrics, license)

    def push_to_hub(
        self, repository: str, report: str | Path | None = None, license: str | None = None, private: bool = False
    ) -> str:
        """Uploads config, weights and a model card to the Hugging Face Hub, as who is logged in there; the address.

        Args:
            repository: "owner/name", made where it is missing.
            report, license: as for `model_card`.
            private: whether a new repository is.

        Raises:
            InputError: where the report cannot be read, or the Hub does not take it.
        """
        card = self.model_card(repository, report, license)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            Path(folder, CARD_FILE).write_text(card, "utf-8")
            return push_folder(repository, Path(folder), private)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        weights: Weights = "ema",
        quantizer: Quantizer | None = None,
    ) -> "GSQTokenizer":
        """Loads a tokenizer, in eval mode on the CPU.

        Args:
            source: "demo", a small tokenizer that comes with this package, see docs/demo.md; a folder written by
                `save_pretrained`; a checkpoint (`.ckpt`) of training, or the folder of a run or of a recipe's runs for
                the newest one; a checkpoint that GSQ's authors released (`.pt`); or the name of a repository on the
                Hugging Face Hub that has an export or a released checkpoint.
            revision: branch, tag or commit on the Hub.
            weights: of a checkpoint of training: "ema" for the averaged ones where it has them, or "raw".
            quantizer: where the tokenizer was made with one of your own class: an object of that class and shape,
                whose weights are then loaded.

        Raises:
            InputError: where the source is none of these, or its weights do not fit its config; for "raw" weights of
                another source than a checkpoint of training, and a revision of what is on this machine.
        """
        return cls._loaded(read_tokenizer(source, revision, weights), str(source), quantizer)

    @classmethod
    def from_released(cls, source: str | Path, revision: str | None = None) -> "GSQTokenizer":
        """Loads a checkpoint that GSQ's authors released, in eval mode on the CPU. No code of it is run.

        Args:
            source: path of a `checkpoint.pt`, or its repository on the Hub, such as "HelmholtzAI-FZJ/GSQ-F8-D8-V64k".
            revision: branch, tag or commit on the Hub.

        Raises:
            InputError: where the source is neither, has more or less than such a tokenizer, or names code.
        """
        return cls._loaded(read_released(source, revision), str(source))

    @classmethod
    def _loaded(cls, saved: SavedTokenizer, source: str, quantizer: Quantizer | None = None) -> "GSQTokenizer":
        tokenizer = cls.from_config(saved.config, quantizer)
        check_weights(tokenizer, saved.weights, source)
        tokenizer.load_state_dict(saved.weights)
        tokenizer.image_size = saved.image_size
        return tokenizer.eval()

    def _tile(self, pixels: int) -> tuple[int, int]:
        """Size and overlap of tiles, in positions of the latent."""
        overlap = math.ceil(whole_number("tile", pixels, 1) / (4 * self.downsample_factor))
        return 4 * overlap, overlap

    def _positions(self, height: int, width: int) -> int:
        """h·w of an image. Raises InputError where f does not divide its height and width."""
        factor = self.downsample_factor
        if not (height >= factor and width >= factor and height % factor == 0 and width % factor == 0):
            raise InputError(
                f"an image of {height}×{width} (height × width) does not divide by the downsampling factor {factor}; "
                f"the nearest sizes that do are height {_nearest_multiples(height, factor)} and width "
                f"{_nearest_multiples(width, factor)}"
            )
        return (height // factor) * (width // factor)


def _make_quantizer(described: dict[str, Any]) -> Quantizer:
    if "own_class" in described:
        name = described["own_class"]
        raise InputError(
            f"this tokenizer's quantizer, {name}, is not one of gsq_lightning.quantizers; build it with the "
            f"same arguments and pass it: GSQTokenizer.from_pretrained(…, quantizer={name}(…))"
        )
    quantizer_class = getattr(quantizers, str(described.pop("class")), None)
    if not (isinstance(quantizer_class, type) and issubclass(quantizer_class, Quantizer)):
        raise KeyError("the quantizer's class")
    return quantizer_class(**described)


def _nearest_multiples(size: int, factor: int) -> str:
    lower = size // factor * factor
    if lower == size and size > 0:
        return str(size)
    return f"{lower} or {lower + factor}" if lower else str(factor)
