"""What a folder of token shards is: `tokens.json`."""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from gsq_lightning.errors import InputError, require
from gsq_lightning.files import write_whole

PredictedSplit = Literal["train", "val", "all"]
Augmentation = Literal["none", "flip", "ten_crop"]  # which copies of an image get tokens

FACTS_FILE = "tokens.json"
FORMAT = 1  # of files and folder; a later one is refused

# facts that all shards of a folder share, and what a message says of shards that differ in one
COMMON = {
    "tokenizer_hash": "of another tokenizer",
    "precision": "computed in another precision",
    "data_fingerprint": "of other images, or of images prepared in another way",
    "split": "of another split",
    "images": "of another number of images",
    "shards": "in another number of shards",
    "images_per_shard": "with another number of images in each shard",
    "copies": "of other copies of images",
    "file_type": "in another type of files",
    "class_names": "with other names of classes",
}


@dataclass(frozen=True)
class TokenFacts:
    """What a folder of token shards is.

    Attributes:
        tokenizer_hash: `GSQTokenizer.hash` of what made them.
        precision: in which it computed: "32-true" or "bf16-mixed".
        num_groups: G, indices of each position.
        codebook_size: V; indices are in [0, V).
        downsample_factor: f; images are f·h × f·w pixels.
        height, width: of the grid of tokens, h and w.
        split: "train" or "val".
        images: of the split, those that could not be read included; None where they are streamed.
        shards: how many there are when all are written.
        images_per_shard: of the split's order, the last shard has what is left; None where each shard of images makes
            one of tokens.
        copies: names of the copies of each image, in their order.
        data_fingerprint: identifies images and preparation; None where the data cannot tell.
        class_names: in the order of the labels; None where labels are numbers of the data's own, or there are none.
        file_type: "safetensors" or "parquet".
        version: of gsq-lightning.
    """

    tokenizer_hash: str
    precision: str
    num_groups: int
    codebook_size: int
    downsample_factor: int
    height: int
    width: int
    split: str
    images: int | None
    shards: int
    images_per_shard: int | None
    copies: list[str]
    data_fingerprint: str | None
    class_names: list[str] | None
    file_type: str
    version: str

    @classmethod
    def read(cls, folder: Path) -> "TokenFacts":
        """Raises InputError where the folder has none, or those of a later version."""
        path = folder / FACTS_FILE
        try:
            content = json.loads(path.read_text("utf-8"))
            require(
                content["format"] == FORMAT, f"it is of format {content['format']}, and this version reads {FORMAT}"
            )
            return cls(**{item.name: content[item.name] for item in fields(cls)})
        except FileNotFoundError:
            within = [split for split in ("train", "val") if (folder / split / FACTS_FILE).is_file()]
            hint = f"; there is {folder / within[0]}" if within else "; gsq predict writes such a folder"
            raise InputError(f"there are no tokens in {folder}: it has no {FACTS_FILE}{hint}") from None
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error

    def write(self, folder: Path) -> None:
        content = {"format": FORMAT, **asdict(self)}
        write_whole(folder / FACTS_FILE, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def difference(self, other: "TokenFacts") -> str | None:
        """The first fact in which the other's shards differ, in words; None where they may share a folder."""
        return next((words for name, words in COMMON.items() if getattr(self, name) != getattr(other, name)), None)


class WithTokenFacts(ABC):
    """Short names for the facts that a generator needs."""

    @property
    @abstractmethod
    def facts(self) -> TokenFacts:
        """What `tokens.json` says."""

    @property
    def num_groups(self) -> int:
        """G"""
        return self.facts.num_groups

    @property
    def codebook_size(self) -> int:
        """V"""
        return self.facts.codebook_size

    @property
    def grid(self) -> tuple[int, int]:
        """h, w"""
        return self.facts.height, self.facts.width

    @property
    def tokenizer_hash(self) -> str:
        """`GSQTokenizer.hash` of the tokenizer that made them."""
        return self.facts.tokenizer_hash

    @property
    def class_names(self) -> list[str] | None:
        """In the order of the labels; None where labels are numbers of the data's own, or there are none."""
        return self.facts.class_names
