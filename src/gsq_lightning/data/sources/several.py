"""Several sources as one."""

import hashlib
from collections.abc import Sequence

import numpy as np

from gsq_lightning.data.batch import NO_LABEL
from gsq_lightning.data.sources.interface import ImageSource
from gsq_lightning.errors import require
from gsq_lightning.names import PackedNames


class SeveralSources(ImageSource):
    """The images of several sources, one after the other. Classes of the same name are one.

    Args:
        sources: at least one.

    Raises:
        InputError: where some name their classes and others number them.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = sources
        self.place = " and ".join(source.place for source in sources[:2]) + (", …" if len(sources) > 2 else "")
        self.notes = [f"{source.place}: {note}" for source in sources for note in source.notes]
        self._ends = np.cumsum([len(source) for source in sources])
        named = [source for source in sources if source.class_names is not None]
        if named:
            for source in sources:
                require(
                    source.class_names is not None or not (source.labels != NO_LABEL).any(),
                    f"{source.place} numbers its classes and {named[0].place} names them: which are the same is not "
                    "known; give all in one way",
                )
            self.class_names = sorted({name for source in named for name in source.class_names or ()})
            for source in sources:
                source.number_by(self.class_names)
        self.names = PackedNames.pack(name for source in sources for name in source.names)
        self.labels = np.concatenate([source.labels for source in sources])

    def name(self, item: int) -> str:
        source, item = self._find(item)
        return source.name(item)

    def short_name(self, item: int) -> str:
        source, item = self._find(item)
        return source.short_name(item)

    def read(self, item: int) -> bytes:
        source, item = self._find(item)
        return source.read(item)

    def fingerprint(self) -> str:
        return hashlib.sha256(" ".join(source.fingerprint() for source in self.sources).encode()).hexdigest()

    def _find(self, item: int) -> tuple[ImageSource, int]:
        number = int(np.searchsorted(self._ends, item, side="right"))
        return self.sources[number], item - (int(self._ends[number - 1]) if number else 0)
