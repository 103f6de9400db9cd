"""Turns the predictions of a data set into token shards, those that are not there yet."""

from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from gsq_lightning.errors import InputError, look_up, require, whole_number
from gsq_lightning.tokens.batch import TokenBatch
from gsq_lightning.tokens.facts import FACTS_FILE, TokenFacts
from gsq_lightning.tokens.parquet import check_parquet, write_parquet
from gsq_lightning.tokens.shards import TokenShard, missing_shards, shard_name, smallest_type, write_shard

FileType = Literal["safetensors", "parquet"]
WRITERS = {"safetensors": write_shard, "parquet": write_parquet}


class SplitWork(NamedTuple):
    """What is to be done of a split.

    Attributes:
        folder: of its shards.
        images: the data module's `ImageShards`.
        facts: of the folder.
        own: numbers of the shards of this rank.
        left: numbers of the shards of all ranks.
    """

    folder: Path
    images: Any
    facts: TokenFacts
    own: list[int]
    left: list[int]


class Part(NamedTuple):
    """The shards whose number % of = number."""

    number: int
    of: int


class TokenWriter(Callback):
    """Writes the tokens of a split to FOLDER/SPLIT: `tokens.json`, which says what they are, and a file for each shard.

    Shard k holds the same images whatever the number of processes. Files are written whole, and those that are there
    are not made again: whatever ended a run, the same command goes on. Equal batch sizes give equal bytes.

    Args:
        folder: where the folders of the splits go.
        images_per_shard: shard k holds images k·N to (k + 1)·N of the split's order; streamed WebDataset shards make a
            shard of tokens each.
        split: "train", "val" or "all". Each is prepared as validation images are.
        augment: which copies of each image get tokens: "none" the plain one; "flip" the mirrored one too; "ten_crop"
            center and corners of a square 1.1 times as large, and these mirrored.
        format: "safetensors", which is memory-mapped, or "parquet", rows with a fixed-size list of h·w·G indices.
        part: "i/n" does every n-th shard, those with number % n = i, for jobs that know nothing of each other: of
            n jobs number i, from 0.

    Raises:
        InputError: for what it does not know; when prediction starts, where the folder holds other tokens.
    """

    def __init__(
        self,
        folder: str = "tokens",
        images_per_shard: int = 10_000,
        split: Literal["train", "val", "all"] = "val",
        augment: Literal["none", "flip", "ten_crop"] = "none",
        format: FileType = "safetensors",
        part: str | None = None,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.images_per_shard = whole_number("images_per_shard", images_per_shard, 1)
        self.split = look_up("split", split, {"train": "train", "val": "val", "all": "all"})
        self.augment = look_up("augment", augment, {"none": "none", "flip": "flip", "ten_crop": "ten_crop"})
        self.format: FileType = format
        self._write = look_up("format", format, WRITERS)
        if format == "parquet":
            check_parquet()
        self.part = Part(0, 1) if part is None else part_of(part)
        self.work: list[SplitWork] = []
        self._rows: dict[tuple[int, int], list[TokenBatch]] = {}  # by split and shard, until it is whole
        self._written = 0

    @property
    def images_left(self) -> int | None:
        """Images that all ranks read; None where that is not known."""
        counts = [work.images.images_in(work.left) for work in self.work]
        return None if None in counts else sum(counts)

    @property
    def shards_left(self) -> int:
        """Shards that all ranks write."""
        return sum(len(work.left) for work in self.work)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        require(hasattr(data, "in_shards"), "tokens are written of the images of a gsq_lightning.data.ImageDataModule")
        found = None
        if trainer.local_rank == 0:  # lists the images of a machine once; the others find that in the cache
            with suppress(InputError):  # which all ranks raise below, so that none waits for another
                found = data.in_shards(self.split, self.images_per_shard, self.augment)
        trainer.strategy.barrier()
        found = found or data.in_shards(self.split, self.images_per_shard, self.augment)
        self.work = [self._plan(trainer, pl_module, split, images) for split, images in found.items()]
        data.predict_shards({work.images: work.own for work in self.work})
        self._rows, self._written = {}, 0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch.shard < 0:  # of a rank without a share
            return
        work = self.work[dataloader_idx]
        rows = self._rows.setdefault((dataloader_idx, batch.shard), [])
        if len(outputs.indices):
            kind = smallest_type(work.facts.codebook_size)
            rows.append(
                TokenBatch(outputs.indices.to(kind).cpu(), outputs.label.cpu(), outputs.copy.cpu(), outputs.name)
            )
        if batch.ends_shard:
            self._finish(work, batch.shard, self._rows.pop((dataloader_idx, batch.shard)))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        nothing = self._written == 0 and bool(self.work) and any(work.left for work in self.work)
        if trainer.strategy.reduce_boolean_decision(nothing, all=True):
            raise InputError(f"no tokens were written to {self.folder}: there were no images, or none could be read")
        for work in self.work:
            missing = missing_shards(work.folder, range(work.facts.shards), self.format)
            rank_zero_info(
                f"{work.folder}: {work.facts.shards - len(missing)} of {work.facts.shards} shard(s) of tokens"
            )

    def _plan(self, trainer: Trainer, module: Any, split: str, images: Any) -> SplitWork:
        """What this rank does; rank 0 decides, and all ranks end alike where it cannot be done."""
        folder, problem, facts, left = self.folder / split, None, None, []
        if trainer.is_global_zero:
            try:
                facts = self._facts(str(trainer.precision), module, split, images)
                agree(folder, facts)
                left = missing_shards(folder, range(self.part.number, images.shards, self.part.of), self.format)
            except (InputError, OSError) as error:
                problem = error
        problem, facts, left = trainer.strategy.broadcast((problem, facts, left))
        if problem is not None:
            raise problem
        assert facts is not None
        return SplitWork(folder, images, facts, left[trainer.global_rank :: trainer.world_size], left)

    def _facts(self, precision: str, module: Any, split: str, images: Any) -> TokenFacts:
        tokenizer = module.evaluated_tokenizer
        factor = tokenizer.downsample_factor
        tokenizer.tokens_per_image(images.size, images.size)  # which refuses sizes that do not divide
        return TokenFacts(
            tokenizer_hash=tokenizer.hash,
            precision=precision,
            num_groups=tokenizer.quantizer.num_groups,
            codebook_size=tokenizer.quantizer.codebook_size,
            downsample_factor=factor,
            height=images.size // factor,
            width=images.size // factor,
            split=split,
            images=images.images,
            shards=images.shards,
            images_per_shard=images.images_per_shard,
            copies=list(images.copies),
            data_fingerprint=images.fingerprint,
            class_names=images.class_names,
            file_type=self.format,
            version=version("gsq-lightning"),
        )

    def _finish(self, work: SplitWork, number: int, rows: list[TokenBatch]) -> None:
        facts = work.facts
        indices = torch.empty(0, facts.height, facts.width, facts.num_groups, dtype=torch.int64)
        none = torch.empty(0, dtype=torch.int64)
        whole = TokenBatch(
            torch.cat([part.indices for part in rows]) if rows else indices,
            torch.cat([none, *(part.label for part in rows)]),
            torch.cat([none, *(part.copy for part in rows)]),
            [name for part in rows for name in part.name],
        )
        path = work.folder / shard_name(number, self.format)
        for left_over in work.folder.glob(f".{path.name}.*"):  # of a process that was killed while it wrote
            left_over.unlink(missing_ok=True)
        self._write(path, TokenShard.of(whole, facts.codebook_size))
        self._written += len(whole.name)


def agree(folder: Path, facts: TokenFacts) -> None:
    """Writes what a folder of tokens is, or raises InputError where it is something else already."""
    if not (folder / FACTS_FILE).exists():
        require(
            not any(folder.glob("tokens-*")),
            f"{folder} holds shards of tokens, and no {FACTS_FILE} says what they are; name another folder",
        )
        facts.write(folder)
        return
    difference = TokenFacts.read(folder).difference(facts)
    require(difference is None, f"{folder} holds tokens {difference}; name another folder, or remove it")


def part_of(text: str) -> Part:
    """ "2/16" → Part(2, 16). Raises InputError."""
    first, _, second = text.partition("/")
    good = first.isdecimal() and second.isdecimal() and int(first) < int(second)
    require(good, f"part is {text!r}; it must be i/n with i from 0 to n - 1, such as 0/16")
    return Part(int(first), int(second))
