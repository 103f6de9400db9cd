"""The interface of image sources: number of images; bytes, name and label of each."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from gsq_lightning.data.batch import NO_LABEL
from gsq_lightning.data.sources.classes import renumbering, same_name
from gsq_lightning.data.sources.listing import Listing
from gsq_lightning.errors import first_few
from gsq_lightning.names import PackedNames

SHOWN = 3  # classes in a note


class ImageSource(ABC):
    """Encoded images by number, in an order that does not change.

    Attributes:
        place: what it is, for messages: a folder, an archive, the name of a data set.
        names: of the images within it.
        labels: (N,) int64, NO_LABEL where an image has none.
        class_names: of the classes, in the order of the labels; None where labels are numbers that the data itself
            gives, or there are none.
        notes: what should be said of it once, such as how many files are left out.
    """

    place: str
    names: PackedNames
    labels: np.ndarray
    class_names: list[str] | None = None
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    def name(self, item: int) -> str:
        """The full name of an image, for messages."""
        return f"{self.place}/{self.names[item]}"

    def short_name(self, item: int) -> str:
        """The name of an image within the source, such as n01440764/n01440764_10026.JPEG."""
        return self.names[item]

    @abstractmethod
    def read(self, item: int) -> bytes:
        """The bytes of an image file. Raises ValueError where it is damaged or gone, OSError where the system fails."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Equal as long as names and contents are the same, as far as the file system knows without reading them."""

    def number_by(self, class_names: Sequence[str]) -> None:
        """Takes the numbers of given classes, such as those of the training split. Others become NO_LABEL: a note.

        Labels that are numbers already stay. Where this source found no classes, as where all images lie in one folder,
        an image is of the class that one of its folders is named after.
        """
        own = self.class_names
        if own is not None:
            table = renumbering(own, class_names)
            unknown = [name for name, label in zip(own, table, strict=False) if label == NO_LABEL]
            if unknown:
                lost = int(np.isin(self.labels, [own.index(name) for name in unknown]).sum())
                self.notes = [
                    *self.notes,
                    f"{lost} of {len(self)} images are of {len(unknown)} classes that training does not have "
                    f"({first_few(unknown, SHOWN)}): they have no label",
                ]
            self.labels = table[self.labels]
        elif not (self.labels != NO_LABEL).any():
            number = {same_name(name): label for label, name in enumerate(class_names)}
            folders = (os.path.dirname(name).split(os.sep) for name in self.names)
            found = (
                next((number[part] for part in map(same_name, path) if part in number), NO_LABEL) for path in folders
            )
            self.labels = np.fromiter(found, dtype=np.int64, count=len(self))
            if not (self.labels != NO_LABEL).any():
                return
        else:
            return
        self.class_names = list(class_names)

    def remove_labels(self, why: str) -> None:
        """Has images without labels, and a note on that."""
        self.labels = np.full(len(self), NO_LABEL, dtype=np.int64)
        self.class_names = None
        self.notes = [*self.notes, why]


def hash_of_listing(listing: Listing, *details: bytes) -> str:
    """A hash over a listing's names, its witness, and further details."""
    digest = hashlib.sha256(listing.names.encoded.tobytes() + listing.names.ends.tobytes())
    digest.update(listing.witness.stamps.tobytes() + listing.places.tobytes() + listing.labels.tobytes())
    for detail in details:
        digest.update(detail)
    return digest.hexdigest()
