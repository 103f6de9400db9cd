"""Rules for names of files and folders: images, files of the system, annotations."""

import os
import re
from collections.abc import Iterable, Mapping

from gsq_lightning.data.decoding import image_suffixes
from gsq_lightning.errors import first_few, how_many

# names of systems, file servers and programs, besides all that begin with a dot
SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "__pycache__", "lost+found", "system volume information", "$recycle.bin", "recycler"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini"),
    }
)
# suffixes of files that are expected beside images
TEXT_SUFFIXES = frozenset(
    {
        *(".txt", ".csv", ".tsv", ".lst", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".htm", ".md", ".rst"),
        *(".cls", ".mat", ".pkl", ".sha256", ".md5", ".log", ".py", ".sh", ".ipynb", ".ini", ".toml", ".cfg", ".db"),
        *(".parquet", ".arrow", ".caption"),
    }
)
DOCUMENTS = frozenset({"license", "licence", "readme", "copying", "authors", "makefile", "dockerfile", "checksums"})

WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
ANNOTATION_WORDS = frozenset(
    {
        *("label", "labels", "annotation", "annotations", "annot", "anno", "annos", "xml", "json", "meta", "metadata"),
        *("mask", "masks", "trimap", "trimaps", "segmentation", "segmentations", "matte", "semantic", "bbox", "boxes"),
        *("gt", "truth", "groundtruth", "depth", "disparity", "normals"),
        *("instance", "instances", "panoptic", "polygons"),
    }
)
IMAGE_WORDS = frozenset(
    {"image", "images", "img", "imgs", "jpeg", "jpg", "rgb", "photo", "photos", "picture", "pictures", "frames"}
)


def is_hidden(name: str) -> bool:
    """Whether a part of a path is a hidden or system name: `.name`, `__MACOSX`, `@eaDir`, …"""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part.lower() in SYSTEM_NAMES for part in name.split("/")
    )


def is_image_name(name: str) -> bool:
    """Whether a path is by its suffix that of an image, and nothing on it is hidden."""
    return os.path.splitext(name)[1].lower() in image_suffixes() and not is_hidden(name)


def words_of(name: str) -> list[str]:
    """`ILSVRC2012_img_trainSet` → ilsvrc, 2012, img, train, set."""
    return [word.lower() for word in WORDS.findall(name)]


def annotations_among(folders: Iterable[str]) -> set[str]:
    """Which of some sibling folders hold annotations, as pictures perhaps: `masks` and `labels` beside `images`.

    Without a folder that says images they may be classes (`mask` beside `hat`), and none are.
    """
    by_words = {folder: set(words_of(folder)) for folder in folders}
    annotations = {folder for folder, words in by_words.items() if words & ANNOTATION_WORDS}
    images = any(words & IMAGE_WORDS for folder, words in by_words.items() if folder not in annotations)
    return annotations if images else set()


def suffix_left_out(name: str) -> str | None:
    """The suffix under which a file that is no image is counted; None for texts, which are not counted."""
    stem, suffix = os.path.splitext(os.path.basename(name))
    if suffix.lower() in TEXT_SUFFIXES or stem.lower() in DOCUMENTS:
        return None
    return suffix.lower() or "no suffix"


def left_out_in_words(left_out: Mapping[str, int]) -> str:
    """`12 files are left out: 10 .heic, 2 .mp4`."""
    by_count = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    counts = first_few([f"{count} {suffix}" for suffix, count in by_count], 6)
    return f"{how_many(sum(left_out.values()), 'file is', 'files are')} left out, not named like an image: {counts}"


def clean_name(name: str) -> str:
    """A name within an archive as a relative path: `./a/b`, `/a/b`, and `a\\b` of old Windows programs are `a/b`."""
    return os.path.normpath(name.replace("\\", "/")).lstrip("/")
