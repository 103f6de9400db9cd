"""What every source of images offers: so many images, each one's bytes, name and label."""

import hashlib
from abc import ABC, abstractmethod

import numpy as np

from gsq_lightning.data.sources.listing import Listing, PackedNames


class ImageSource(ABC):
    """Encoded images by number, in an order that does not change.

    Attributes:
        place: what it is, for messages: a folder, an archive, the name of a data set.
        names: of the images within it.
        labels: (N,) int64, NO_LABEL where an image has none.
    """

    place: str
    names: PackedNames
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def name(self, item: int) -> str:
        """The whole name of an image, for messages."""
        return f"{self.place}/{self.names[item]}"

    @abstractmethod
    def read(self, item: int) -> bytes:
        """The bytes of an image file. Raises ValueError where it is damaged or gone, OSError where the system fails."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Equal as long as names and contents are the same, to what the file system tells without reading them."""


def fingerprint_of(listing: Listing, *details: bytes) -> str:
    """A hash over a listing's names, what vouches for it, and further details."""
    digest = hashlib.sha256(listing.names.encoded.tobytes() + listing.names.ends.tobytes())
    digest.update(listing.witness.stamps.tobytes() + listing.places.tobytes() + listing.labels.tobytes())
    for detail in details:
        digest.update(detail)
    return digest.hexdigest()
