"""Features of whole sets of images, for the metrics that compare every image with every other."""

import torch
from torch import Tensor

from gsq_lightning.metrics.features import ExtractorName
from gsq_lightning.metrics.originals import SetDistance, joined

MOST_IMAGES = 50_000  # whose features are held, of each set


class FeatureSets(SetDistance):
    """Holds the features of both sets, in float32: of at most 50,000 images each, those with the smallest hashes of
    their pixels.

    They are sorted by these hashes, so that values depend neither on the order of the images nor on the number of
    processes.

    Args:
        name: of the main value.
        extractor: network whose features are held.
        num_features: F.
    """

    keeps = "features"
    real: list[Tensor] | Tensor
    fake: list[Tensor] | Tensor
    real_hashes: list[Tensor] | Tensor
    fake_hashes: list[Tensor] | Tensor

    def __init__(self, name: str, extractor: ExtractorName, num_features: int) -> None:
        super().__init__(name, extractor)
        for side in ("real", "fake"):
            self.add_list(side, torch.zeros(0, num_features))
            self.add_list(f"{side}_hashes", torch.zeros(0, dtype=torch.int64))

    def add(self, features: Tensor, hashes: Tensor, real: bool) -> None:
        side = "real" if real else "fake"
        held = getattr(self, side)
        held.append(features.float())
        getattr(self, f"{side}_hashes").append(hashes)
        if sum(map(len, held)) >= 2 * MOST_IMAGES:
            features, chosen = self._chosen(side, MOST_IMAGES + 1)  # one more says that there were too many
            setattr(self, side, [features])
            setattr(self, f"{side}_hashes", [chosen])

    def originals(self) -> dict[str, Tensor]:
        features, hashes = self._chosen("real", MOST_IMAGES)
        return {"features": features, "feature_hashes": hashes}

    def others(self) -> tuple[Tensor, Tensor]:
        """Of the other images: (N, F) features and (N,) hashes, sorted."""
        return self._chosen("fake", MOST_IMAGES)

    def notes(self) -> list[str]:
        """The note on more images than are held, in one of the sets."""
        if len(joined(self.fake_hashes)) > MOST_IMAGES:
            return [f"{self.name} is over {MOST_IMAGES} images, chosen by their pixels"]
        originals = len(joined(self.hashes))
        if originals > MOST_IMAGES:
            return [f"{self.name} is against {MOST_IMAGES} of {originals} originals, chosen by their pixels"]
        return []

    def _chosen(self, side: str, images: int) -> tuple[Tensor, Tensor]:
        """Those with the smallest hashes: (N, F) features and (N,) hashes, sorted."""
        features, hashes = (joined(getattr(self, name)) for name in (side, f"{side}_hashes"))
        order = hashes.argsort(stable=True)[:images]
        return features[order], hashes[order]
