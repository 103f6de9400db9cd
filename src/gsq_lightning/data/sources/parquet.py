"""Parquet files of images as the Hugging Face Hub ships ImageNet-1k, read through `datasets`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gsq_lightning.data.batch import NO_LABEL
from gsq_lightning.data.sources.interface import ImageSource
from gsq_lightning.errors import InputError, first_line, require
from gsq_lightning.names import PackedNames
from gsq_lightning.pretrained.hub import reachable

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")  # of bytes without a declared type
LABEL_COLUMNS = ("label", "labels", "cls", "class")
LIKE_LABEL = re.compile("label|class", re.IGNORECASE)  # in the name of a column that may be meant


class Columns(NamedTuple):
    """Of Parquet files: those that are named; None are found by type and name.

    Attributes:
        image: which of several columns of images.
        label: the column of the numbers of classes.
    """

    image: str | None = None
    label: str | None = None


ANY_COLUMNS = Columns()


class ParquetSource(ImageSource):
    """The images of a data set of Hugging Face `datasets`, from local Parquet files or by its name on the Hub.

    `datasets` copies them once into Arrow files in its cache (`HF_DATASETS_CACHE`), where any image is at hand without
    decompressing its neighbours, and which all processes share.

    Args:
        place: the data set's name on the Hub, or the folder of the files, for messages.
        split: such as "train" or "validation".
        files: the Parquet files; none for a data set on the Hub.
        columns: which are meant.

    Raises:
        InputError: where `datasets` is not installed, the data cannot be had, it is not clear which column of images is
            meant, or one that is named is not there.
    """

    def __init__(self, place: str, split: str, files: list[Path] | None = None, columns: Columns = ANY_COLUMNS) -> None:
        self.place = f"{place} ({split})"
        dataset = load_split(place, split, files)
        column = find_image_column(dataset, self.place, columns.image)
        table = dataset.data.table
        chunks = table.column(column).chunks
        is_struct = bool(chunks) and pyarrow_is_struct(chunks[0])
        self._bytes = [chunk.field("bytes") if is_struct else chunk for chunk in chunks]
        self._ends = np.cumsum([len(chunk) for chunk in chunks])
        self.names = image_names(chunks, is_struct)
        wanted = LABEL_COLUMNS if columns.label is None else (columns.label,)
        label_column = next((name for name in wanted if name in dataset.column_names), None)
        all_names = ", ".join(dataset.column_names)
        require(
            label_column is not None or columns.label is None,
            f"{self.place} has no column {columns.label} of labels; its columns are {all_names}",
        )
        self.labels = np.full(len(dataset), NO_LABEL, dtype=np.int64)
        if label_column is not None:
            self._take_labels(table.column(label_column), label_column)
            names = getattr(dataset.features[label_column], "names", None)  # of a datasets.ClassLabel
            self.class_names = list(names) if names else None
        elif LIKE_LABEL.search(all_names):
            self.notes = [f"no column is named label; data.label_column says which has the labels, of {all_names}"]
        self._fingerprint = f"{dataset._fingerprint} {column} {label_column}"
        if not len(self):
            raise InputError(f"there are no images in {self.place}")
        if all(chunk.null_count == len(chunk) for chunk in self._bytes):
            raise InputError(f"the column {column} of {self.place} holds no images, perhaps only where they lie")

    def _take_labels(self, column: Any, name: str) -> None:
        import pyarrow

        try:
            self.labels = column.cast(pyarrow.int64()).fill_null(NO_LABEL).to_numpy()
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
            self.notes = [f"the column {name} holds no numbers of classes: labels are left out"]

    def read(self, item: int) -> bytes:
        chunk = int(np.searchsorted(self._ends, item, side="right"))
        start = int(self._ends[chunk - 1]) if chunk else 0
        buffer = self._bytes[chunk][item - start].as_buffer()
        if buffer is None:
            raise ValueError("the row holds no image")
        return buffer.to_pybytes()

    def fingerprint(self) -> str:
        return self._fingerprint


def load_split(place: str, split: str, files: list[Path] | None) -> Any:
    """The `datasets.Dataset`, with its images left encoded."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise InputError("Parquet files are read with datasets: pip install 'gsq-lightning[parquet]'") from error
    try:
        if files is None:
            with nullcontext() if reachable(f"https://huggingface.co/datasets/{place}") else hub_offline():
                return datasets.load_dataset(place, split=split)
        return datasets.load_dataset("parquet", data_files={split: [str(path) for path in files]}, split=split)
    except Exception as error:  # of pyarrow, of the Hub, of the network
        hint = f". On a machine with network: hf download {place} --repo-type dataset; or set data.root to a folder"
        raise InputError(
            f"datasets cannot load the split {split!r} of {place}: {first_line(error)}{hint if files is None else ''}"
        ) from error


@contextmanager
def hub_offline() -> Iterator[None]:
    """Within it, `datasets` uses its cache only, instead of retrying the network for half a minute."""
    import datasets
    import huggingface_hub

    settings: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [setting.HF_HUB_OFFLINE for setting in settings]
    for setting in settings:
        setting.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.HF_HUB_OFFLINE = value


def find_image_column(dataset: Any, place: str, wanted: str | None = None) -> str:
    """The column of images: by its declared type, else of bytes and named as images are.

    Raises InputError where there is none, not the one that is wanted, or several.
    """
    features = dataset.features
    declared = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    found = declared or [name for name in IMAGE_COLUMNS if name in features and holds_bytes(features[name])]
    if wanted is not None:
        if wanted not in features or not (wanted in declared or holds_bytes(features[wanted])):
            raise InputError(f"{place} has no column of images named {wanted}; its columns are {', '.join(features)}")
        return wanted
    if not found:
        raise InputError(f"{place} has no column of images; its columns are {', '.join(features)}")
    if len(found) > 1:
        raise InputError(f"{place} has several columns of images: {', '.join(found)}; say which with image_column")
    return found[0]


def holds_bytes(feature: Any) -> bool:
    in_struct = isinstance(feature, dict) and "bytes" in feature
    return in_struct or getattr(feature, "dtype", None) in ("binary", "large_binary")


def image_names(chunks: list[Any], is_struct: bool) -> PackedNames:
    """Where the files come from, or their row numbers."""
    rows = sum(len(chunk) for chunk in chunks)
    if is_struct and any(field.name == "path" for field in chunks[0].type):
        paths = [path for chunk in chunks for path in chunk.field("path").to_pylist()]
        if all(paths):
            return PackedNames.pack(paths)
    return PackedNames.pack(f"row {row}" for row in range(rows))


def pyarrow_is_struct(chunk: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_struct(chunk.type))
