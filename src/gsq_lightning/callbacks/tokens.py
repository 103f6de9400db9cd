"""Turns the predictions of a data set into token shards, those that are not there yet."""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from gsq_lightning.errors import InputError, one_of, require, whole_number
from gsq_lightning.tokens.batch import TokenBatch
from gsq_lightning.tokens.facts import Augmentation, PredictedSplit, TokenFacts
from gsq_lightning.tokens.parquet import check_parquet
from gsq_lightning.tokens.shards import missing_shards, smallest_type
from gsq_lightning.tokens.writing import FileType, claim_folder, facts_of, write_rows


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

    Shard k holds the same images whatever the number of processes. Files are written whole, and existing ones are kept:
    after an interruption the same command writes the rest. Equal batch sizes give equal bytes.

    Args:
        folder: parent of the folders of the splits.
        images_per_shard: N; shard k holds images k·N to (k + 1)·N - 1 of the split. Each streamed WebDataset shard
            makes a shard of tokens.
        split: "train", "val" or "all". Each is preprocessed as for validation.
        augment: which copies of each image get tokens: "none" the plain one; "flip" the mirrored one too; "ten_crop"
            center and corners of a square 1.1 times as large, and these mirrored.
        format: "safetensors", which is memory-mapped, or "parquet", rows with a fixed-size list of h·w·G indices.
        part: "i/n", i from 0: only the shards with number % n = i, for n independent jobs.

    Raises:
        InputError: for what it does not know; when prediction starts, where the folder holds other tokens.
    """

    def __init__(
        self,
        folder: str = "tokens",
        images_per_shard: int = 10_000,
        split: PredictedSplit = "val",
        augment: Augmentation = "none",
        format: FileType = "safetensors",
        part: str | None = None,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.images_per_shard = whole_number("images_per_shard", images_per_shard, 1)
        self.split: PredictedSplit = one_of("split", split, PredictedSplit)
        self.augment: Augmentation = one_of("augment", augment, Augmentation)
        self.format: FileType = one_of("format", format, FileType)
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
        require(
            hasattr(data, "in_shards"),
            "tokens are written of the images of a gsq_lightning.data.ImageDataModule, such as ImageNetDataModule, "
            f"not of a {type(data).__name__}",
        )
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
            del self._rows[dataloader_idx, batch.shard]
            self._written += write_rows(work.folder, batch.shard, rows, work.facts)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        nothing = self._written == 0 and any(work.left for work in self.work)
        if trainer.strategy.reduce_boolean_decision(nothing, all=True):
            raise InputError(
                f"no tokens were written to {self.folder}: no image could be read, or prediction was limited to less "
                "than a shard"
            )
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
                facts = facts_of(module.evaluated_tokenizer, images, split, str(trainer.precision), self.format)
                claim_folder(folder, facts)
                left = missing_shards(folder, range(self.part.number, images.shards, self.part.of), self.format)
            except (InputError, OSError) as error:
                problem = error
        problem, facts, left = trainer.strategy.broadcast((problem, facts, left))
        if problem is not None:
            raise problem
        assert facts is not None
        return SplitWork(folder, images, facts, left[trainer.global_rank :: trainer.world_size], left)


def part_of(text: str) -> Part:
    """ "2/16" → Part(2, 16). Raises InputError."""
    first, _, second = text.partition("/")
    good = first.isdecimal() and second.isdecimal() and int(first) < int(second)
    require(good, f"part is {text!r}; it must be i/n with i from 0 to n - 1, such as 0/16")
    return Part(int(first), int(second))
