"""The numbers of classes: in validation a label means the class that it means in training."""

from collections.abc import Sequence

from gsq_lightning.data.batch import NO_LABEL
from gsq_lightning.data.sources import ImageSource
from gsq_lightning.data.sources.classes import same_name, unnamed_label
from gsq_lightning.data.sources.interface import SHOWN
from gsq_lightning.errors import first_few, require


class ClassNumbers:
    """Sets the labels of images by the names of their classes.

    Args:
        given: names of all classes in the order of their numbers, as the user says; by default classes are numbered in
            the order of their names.
        trained: the same of a training on other images: they number classes that have names, and name no numbers.

    Attributes:
        names: of the classes, in the order of the labels; None where they have none.
    """

    def __init__(self, given: Sequence[str] | None, trained: Sequence[str] | None) -> None:
        self.given = None if given is None else list(given)
        self.names = self.given
        self._trained = None if trained is None else list(trained)
        self._is_training_numbered = False

    def number_training(self, images: ImageSource) -> None:
        """Training images. Raises InputError where `given` leaves a class out."""
        self.names = self._names_of(images)

    def number_as_training(self, images: ImageSource) -> None:
        """Validation images, after those of training."""
        self._number(images, self.names)
        if self.names is None:
            self.names = images.class_names

    def number_alone(self, images: ImageSource, training: ImageSource | None) -> None:
        """Images that are evaluated without a training.

        Args:
            images: these.
            training: images of training, if they are there, whose classes decide.
        """
        names = None if training is None else self._names_of(training)
        self._number(images, self._known_names(images) if names is None else names)
        self.names = images.class_names

    def _names_of(self, training: ImageSource) -> list[str] | None:
        """Of the classes of training images: those that are given, by whose order they are numbered, or their own."""
        self._is_training_numbered = is_numbered(training)
        given = self.given
        if given is None:
            return training.class_names
        if self._is_training_numbered:
            return self._names_of_numbers(training, given)
        known = set(map(same_name, given))
        missing = [name for name in training.class_names or () if same_name(name) not in known]
        require(
            not missing,
            f"{training.place} has classes that data.class_names does not name ({first_few(missing, SHOWN)}); name "
            "all, or leave the option out",
        )
        training.number_by(given)
        return given

    def _known_names(self, images: ImageSource) -> list[str] | None:
        """The given names, or those of a training on other images, unless these have quite other classes."""
        if self.given is not None or is_numbered(images) or self._is_training_numbered:
            return self.given
        own, trained = images.class_names, self._trained or []
        has_other_classes = own is not None and not set(map(same_name, own)) & set(map(same_name, trained))
        return None if has_other_classes else self._trained

    def _number(self, images: ImageSource, names: list[str] | None) -> None:
        if is_numbered(images):
            images.class_names = self._names_of_numbers(images, names)
        elif names is not None:
            images.number_by(names)
        elif images.class_names is not None and self._is_training_numbered:
            images.remove_labels(
                "their classes have names and those of the training images numbers: they have no label; "
                "data.class_names takes the names in the order of the numbers"
            )

    def _names_of_numbers(self, images: ImageSource, names: list[str] | None) -> list[str] | None:
        """Names for labels that are numbers. Raises InputError where those that are given are too few."""
        largest = int(images.labels.max())
        if names is None or largest < len(names):
            return names
        require(self.given is None, unnamed_label(images.place, largest, len(names)))
        images.remove_labels(f"it has the label {largest}, and training has {len(names)} classes: labels are left out")
        return names


def is_numbered(images: ImageSource) -> bool:
    """Whether labels are numbers that the data itself gives."""
    return images.class_names is None and bool((images.labels != NO_LABEL).any())
