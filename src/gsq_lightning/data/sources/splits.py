"""Finds the part of a data set that is a split, by names of folders and files at any depth; never several parts."""

import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Literal, NamedTuple

from gsq_lightning.data.sources.names import ANNOTATION_WORDS, annotations_among, words_of
from gsq_lightning.data.sources.tree import LIST_SUFFIXES, Entries, PartKind, Tree, kind_of_file
from gsq_lightning.errors import InputError

Split = Literal["train", "val"]
SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
COMPOUND = re.compile(r"(train|training|val|valid|validation|test|testing)(?:set|data|images?|imgs?|val)")
DIVIDING_WORDS = frozenset({"partition", "partitions", "split", "splits", "setid"})
DIVIDING_SUFFIXES = LIST_SUFFIXES | {".csv", ".json", ".jsonl", ".mat", ".npy", ".npz", ".pkl"}
MOST_SIBLINGS = 32  # folders that are looked into for splits: where these have none, they are classes
SHOWN = 6  # names in a message


class Part(NamedTuple):
    """A folder or file of a data set, by its path within it; "" is all of it."""

    path: str
    kind: PartKind


class Level(NamedTuple):
    """A folder whose parts are splits.

    Attributes:
        folder: its path within the data set.
        parts: by split: "train", "val" or "test".
        others: paths of its other folders that hold images.
    """

    folder: str
    parts: dict[str, list[Part]]
    others: list[str]


def splits_in(name: str) -> set[str]:
    """The splits that a name speaks of: `train2017`, `DIV2K_valid_HR`, `cars_Test`, `imagenet-train-0001`, …"""
    found = set()
    for word in words_of(name):
        compound = COMPOUND.fullmatch(word)
        split = SPLIT_OF_WORD.get(compound[1] if compound else word)
        if split is not None:
            found.add(split)
    return found


def split_of(name: str) -> str | None:
    """The split whose images something of this name holds, if it says so: not its masks, nor two splits."""
    splits = splits_in(name)
    return None if len(splits) != 1 or ANNOTATION_WORDS & set(words_of(name)) else splits.pop()


def is_exact(part: Part) -> bool:
    """Whether nothing else is in the name: `Train`, `val.zip`."""
    name = os.path.basename(part.path)
    return (name if part.kind == "folder" else os.path.splitext(name)[0]).lower() in SPLIT_OF_WORD


def choose_parts(
    tree: Tree, split: Split, place: str, is_root: bool, first: PartKind = "folder", folder: str = ""
) -> list[Part]:
    """The parts of a data set that hold a split; `[Part(folder, "folder")]` where it is not divided.

    Args:
        tree: the data set.
        split: which.
        place: of the data set, for messages.
        is_root: it shall hold the splits, so that one of its parts may be the only one of its split. Else it shall be
            the split: only where it holds several of them one is chosen.
        first: kind that is taken where there are several.
        folder: of the data set, outside of which nothing is looked for; "" is all of it.

    Raises:
        InputError: where the split is not there and others are, or it is not clear which part it is.
    """
    levels = levels_of(tree, folder)
    if not is_root:
        levels = [level for level in levels if len(level.parts) > 1]
    if len(levels) > 1:
        names = [part.path for level in levels for parts in level.parts.values() for part in parts]
        raise InputError(f"{place} holds splits in several places: {shown(names)}; {name_it(split)}")
    if not levels:
        if is_root:
            _refuse_lists_of_splits(tree, split, place)
        return [Part(folder, "folder")]
    parts, others = levels[0].parts, levels[0].others
    folders = [part.path for found in parts.values() for part in found if part.kind == "folder"]
    if is_root and len(parts) == 1 and folders and others:
        raise InputError(
            f"{place} holds {shown(folders)} beside {shown(others)}: a split, or one of several classes; if it is a "
            f"split, {name_it(split)}, and if all are classes, name {place} itself with data.train"
        )
    if split not in parts:
        if is_root and set(parts) == {"test"} and split == "val":  # images alone
            return _whole(parts["test"], "val", place, first)
        names = [part.path for found in parts.values() for part in found]
        raise InputError(
            f"{place} holds {shown(names)}, and nothing named {split}"
            f"{' or validation' if split == 'val' else ''}; {name_it(split)}"
        )
    chosen = _whole(parts[split], split, place, first)
    if len(chosen) == 1 and chosen[0].kind == "folder":  # which may hold splits again
        return choose_parts(tree, split, place, False, first, chosen[0].path)
    return chosen


def levels_of(tree: Tree, folder: str) -> list[Level]:
    """All folders whose parts are splits, none within another."""
    entries = tree.entries(folder)
    level = level_at(tree, folder, entries)
    if level is not None:
        return [level]
    siblings = set(entries.folders) - annotations_among(entries.folders)
    below = (os.path.join(folder, name) for name in sorted(siblings)[:MOST_SIBLINGS])
    return [level for child in below if tree.holds_images(child) for level in levels_of(tree, child)]


def level_at(tree: Tree, folder: str, entries: Entries) -> Level | None:
    """A folder whose parts are splits; None where they are not, but, say, classes with a `train station` among them."""
    parts: defaultdict[str, list[Part]] = defaultdict(list)
    others: list[Part] = []
    is_any_exact = False
    candidates = [Part(os.path.join(folder, name), "folder") for name in entries.folders]
    for name in entries.files:
        kind = kind_of_file(name)
        if kind is not None:
            candidates.append(Part(os.path.join(folder, name), kind))
    if not any(splits_in(os.path.basename(part.path)) for part in candidates):
        return None
    for part in candidates:
        stem = os.path.basename(part.path)
        split = split_of(stem if part.kind == "folder" else os.path.splitext(stem)[0])
        if part.kind == "list" and (split is None or not (is_exact(part) or tree.is_list(part.path))):
            continue
        if part.kind == "folder" and not tree.holds_images(part.path):
            continue
        if split is None:
            others.append(part)
        else:
            parts[split].append(part)
            is_any_exact |= is_exact(part)
    if is_any_exact or sum(map(len, parts.values())) >= max(len(others), 1):
        return Level(folder, dict(parts), [part.path for part in others if part.kind == "folder"])
    return None


def _whole(parts: list[Part], split: Split, place: str, first: PartKind) -> list[Part]:
    """Of the parts of one split those that are read: one, or the pieces that it was cut into.

    Raises InputError where several could be meant.
    """
    exact = [part for part in parts if is_exact(part)]
    kinds: list[PartKind] = [first, *(kind for kind in ("folder", "list", "archive", "parquet") if kind != first)]
    for group in (exact, parts):
        for kind in kinds:
            found = [part for part in group if part.kind == kind]
            if len(found) > 1 and not are_pieces([os.path.basename(part.path) for part in found]):
                # beside ILSVRC2012_img_train.tar may lie ILSVRC2012_img_train_t3.tar, which holds some of it again
                ends = [part for part in found if splits_in(words_of(Path(part.path).stem)[-1])]
                found = ends if len(ends) == 1 else found
                if len(found) > 1:
                    names = shown([part.path for part in found])
                    raise InputError(f"{place} holds several parts of the split {split}: {names}; {name_it(split)}")
            if found:
                return found
    raise AssertionError("a split without parts")


def are_pieces(names: list[str]) -> bool:
    """Whether names are those of one thing in pieces: `train-00000-of-00002`, `train.X1`; not `train2014`, `train2017`.

    They are equal up to a number that counts: from 0 or 1 without a gap, or with leading zeros.
    """
    number = re.compile(r"(.*?(?:train|val|test|dev)\D*)(\d+)|(\D*)(\d+)", re.IGNORECASE)
    matches = [match for match in map(number.match, names) if match is not None]
    if len(matches) < len(names) or len({match[1] or match[3] for match in matches}) > 1:
        return False
    texts = [match[2] or match[4] for match in matches]
    counts = sorted(map(int, texts))
    padded = any(text.startswith("0") and len(text) > 1 for text in texts)
    return len(set(counts)) == len(counts) and (
        padded or counts in (list(range(len(counts))), list(range(1, len(counts) + 1)))
    )


def _refuse_lists_of_splits(tree: Tree, split: Split, place: str) -> None:
    """Raises InputError for one pool of images that text files divide, as Food-101's: all splits would be read."""
    lists: list[str] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        entries = tree.entries(folder)
        lists += [os.path.join(folder, name) for name in entries.files if is_dividing_text(name)]
        if folder.count(os.sep) >= 2:
            continue
        annotations = annotations_among(entries.folders)
        for name in entries.folders:
            child = os.path.join(folder, name)
            if len(entries.folders) == 1 or name in annotations or not tree.holds_images(child):
                pending.append(child)
    splits = set().union(*(splits_in(os.path.basename(name)) for name in lists))
    if len(splits) > 1 or any(DIVIDING_WORDS & set(words_of(os.path.basename(name))) for name in lists):
        raise InputError(
            f"{place} holds one pool of images, and its splits are in other files: {shown(sorted(lists))}; write a "
            f"list of the images of each split (one path on a line), or take the whole pool, and {name_it(split)}"
        )


def refuse_undivided(split: Split, place: str) -> None:
    """Raises InputError where images without splits are to be trained on; for validation they will do."""
    if split == "train":
        raise InputError(f"{place} holds nothing named train, and no other splits: {name_it(split)}")


def is_dividing_text(name: str) -> bool:
    """Whether a file may say which images belong to which split: a text, or a table."""
    is_text = os.path.splitext(name)[1].lower() in DIVIDING_SUFFIXES
    return is_text and bool(splits_in(name) or DIVIDING_WORDS & set(words_of(name)))


def name_it(split: Split) -> str:
    return f"name the {'training' if split == 'train' else 'validation'} images with data.{split}"


def shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
