"""Image tokenizers with Grouped Spherical Quantization (GSQ, arXiv 2412.02632) on PyTorch Lightning.

The tokenizer and the quantizers need torch, einops, numpy, scipy, safetensors and huggingface_hub, and Pillow for
pictures; the LightningModule, the data modules and the command need lightning and are imported when first asked for.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsq_lightning.data import ImageDataModule, ImageNetDataModule, PhotographsDataModule
    from gsq_lightning.errors import InputError
    from gsq_lightning.quantizers import GroupedSphericalQuantizer, Quantizer, QuantizerOutput
    from gsq_lightning.tokenizer import GSQTokenizer
    from gsq_lightning.training import TokenizerModule

__version__ = version("gsq-lightning")

_HOMES = {
    "GSQTokenizer": "gsq_lightning.tokenizer",
    "GroupedSphericalQuantizer": "gsq_lightning.quantizers",
    "ImageDataModule": "gsq_lightning.data",
    "ImageNetDataModule": "gsq_lightning.data",
    "InputError": "gsq_lightning.errors",
    "PhotographsDataModule": "gsq_lightning.data",
    "Quantizer": "gsq_lightning.quantizers",
    "QuantizerOutput": "gsq_lightning.quantizers",
    "TokenizerModule": "gsq_lightning.training",
}

__all__ = [
    "GSQTokenizer",
    "GroupedSphericalQuantizer",
    "ImageDataModule",
    "ImageNetDataModule",
    "InputError",
    "PhotographsDataModule",
    "Quantizer",
    "QuantizerOutput",
    "TokenizerModule",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
