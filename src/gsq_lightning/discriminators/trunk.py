"""Base of the discriminators on features of a frozen network."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from gsq_lightning.discriminators.augmentation import DifferentiableAugmentation
from gsq_lightning.discriminators.interface import Discriminator, LogitPair
from gsq_lightning.errors import look_up
from gsq_lightning.pretrained.frozen import FrozenNetwork

TrunkDtype = Literal["bfloat16", "float32"]

TRUNK_DTYPES: dict[TrunkDtype, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class TrunkDiscriminator(Discriminator):
    """A frozen network, and small heads on several of its feature maps. A subclass implements `make_trunk`.

    Only the heads are trained and saved. Gradients flow through the trunk to the image.

    Args:
        heads: features (B, ...) → logits (B, N), in the order of the trunk's features.
        augmentation: of all images before the trunk, in training.
        trunk_dtype: of the trunk on CUDA; elsewhere it computes in float32. Autocast concerns the heads alone.

    Raises:
        InputError: for an unknown trunk_dtype.
    """

    def __init__(
        self, heads: Mapping[str, nn.Module], augmentation: DifferentiableAugmentation | None, trunk_dtype: TrunkDtype
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)
        self.augmentation = augmentation
        self.trunk_dtype: torch.dtype = look_up("trunk_dtype", trunk_dtype, TRUNK_DTYPES)
        self.trunk: FrozenNetwork | None = None

    @abstractmethod
    def make_trunk(self) -> nn.Module:
        """(B, 3, H, W) in [-1, 1] → one feature map for each head. Raises InputError where weights cannot be had."""

    def load(self) -> None:
        if self.trunk is None:
            self.trunk = FrozenNetwork(self.make_trunk())

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → logits (B, N) of all heads."""
        return self._judge(self._features(self._augmented(image)))

    def forward_pair(self, image: Tensor, reconstruction: Tensor) -> LogitPair:
        """Runs the trunk once over both, and the heads one after the other: their batch statistics do not mix."""
        features = self._features(torch.cat([self._augmented(image), self._augmented(reconstruction)]))
        sizes = [len(image), len(reconstruction)]
        real, fake = zip(*(feature.split(sizes) for feature in features), strict=True)
        return LogitPair(self._judge(real), self._judge(fake))

    def within_step(self) -> AbstractContextManager[None]:
        return nullcontext() if self.augmentation is None else self.augmentation.within_step()

    def _augmented(self, image: Tensor) -> Tensor:
        return image.float() if self.augmentation is None else self.augmentation(image)

    def _features(self, image: Tensor) -> list[Tensor]:
        """Features of the trunk, which is loaded now unless `load` was called before."""
        if self.trunk is None:
            self.trunk = FrozenNetwork(self.make_trunk()).to(image.device)
        device = image.device.type
        reduced = device == "cuda" and self.trunk_dtype != torch.float32
        with torch.autocast(device, dtype=self.trunk_dtype if reduced else None, enabled=reduced):
            features = self.trunk(image)
        # under autocast the heads cast their inputs themselves
        return features if torch.is_autocast_enabled(device) else [feature.float() for feature in features]

    def _judge(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat([head(x) for head, x in zip(self.heads.values(), features, strict=True)], dim=1)
