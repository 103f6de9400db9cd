"""Base of the discriminators on features of a frozen network."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from gsq_lightning.discriminators.augmentation import DifferentiableAugmentation
from gsq_lightning.discriminators.interface import Discriminator, LogitPair
from gsq_lightning.errors import look_up
from gsq_lightning.pretrained.frozen import CachedFeatures, FrozenNetwork

TrunkDtype = Literal["bfloat16", "float32"]

TRUNK_DTYPES: dict[TrunkDtype, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class TrunkDiscriminator(Discriminator):
    """A frozen network, and small heads on several of its feature maps. A subclass implements `make_trunk`.

    Only the heads are trained and saved. Gradients flow through the trunk to the image.

    Args:
        heads: features (B, ...) → logits (B, N), in the order of the trunk's features.
        augmentation: what is done to all images before the trunk, in training.
        trunk_dtype: number type of the trunk on CUDA; elsewhere float32. Autocast concerns the heads alone.

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
        self._in_step = False
        self._cached: CachedFeatures | None = None  # of the last image of the step, without gradient

    @abstractmethod
    def make_trunk(self) -> nn.Module:
        """(B, 3, H, W) in [-1, 1] → one feature map for each head. Raises InputError where weights cannot be had."""

    def load(self) -> None:
        if self.trunk is None:
            self.trunk = FrozenNetwork(self.make_trunk())

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → logits (B, N) of all heads."""
        features = self._features(self._augmented(image))
        if self._in_step and self._sees_images_alike:
            self._cached = CachedFeatures(image.detach(), [feature.detach() for feature in features])
        return self._logits(features)

    def forward_pair(self, image: Tensor, reconstruction: Tensor) -> LogitPair:
        """Runs the trunk once over both, and the heads one after the other: their batch statistics do not mix.

        Within a step in which the same reconstruction was judged already, the trunk runs over the images alone, unless
        an augmentation shows it otherwise now.
        """
        if self._cached is not None and self._cached.image.is_set_to(reconstruction):
            real = self._logits(self._features(self._augmented(image)))
            return LogitPair(real, self._logits(self._cached.features))
        features = self._features(torch.cat([self._augmented(image), self._augmented(reconstruction)]))
        sizes = [len(image), len(reconstruction)]
        parts = zip(*(feature.split(sizes) for feature in features), strict=True)
        return LogitPair(*(self._logits(part) for part in parts))

    @contextmanager
    def within_step(self) -> Iterator[None]:
        with nullcontext() if self.augmentation is None else self.augmentation.within_step():
            self._in_step = True
            try:
                yield
            finally:
                self._in_step, self._cached = False, None

    @property
    def _sees_images_alike(self) -> bool:
        """Whether the same image gives the same features twice in a step."""
        return self.augmentation is None or self.augmentation.same_draw

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
        if torch.is_autocast_enabled(device):  # the heads cast their inputs themselves
            return features
        kind = next(self.heads.parameters()).dtype
        return [feature.to(kind) for feature in features]

    def _logits(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat([head(x) for head, x in zip(self.heads.values(), features, strict=True)], dim=1)
