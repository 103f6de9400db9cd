"""Tokens for training and validation of a generator."""

from functools import cached_property
from pathlib import Path
from typing import Any

from gsq_lightning.data.datamodule import ResumableDataModule
from gsq_lightning.data.holdout import HeldOut, check_share, hold_out
from gsq_lightning.data.token_dataset import TokenDataset
from gsq_lightning.errors import how_many, require
from gsq_lightning.tokens.facts import FACTS_FILE, TokenFacts, WithTokenFacts

SAME = ("tokenizer_hash", "grid", "num_groups", "codebook_size")  # of tokens of both splits


class TokenDataModule(WithTokenFacts, ResumableDataModule):
    """`TokenBatch`es in an order that (seed, epoch) decides, resumed where a checkpoint left off; any number of devices
    sees the same global batches.

    An epoch has each image once: in training as one of its copies, drawn by (seed, epoch, image), in validation as the
    plain one. Where both splits name their classes, labels of validation are training's numbers; where only validation
    names them, or has more than training, it has no labels.

    Args:
        root: a folder with `train` and `val`, as `gsq predict --tokens.split all` writes it, or with `train` alone; or
            a folder of tokens (one with `tokens.json`), all of which are for training except for `val_share`.
        global_batch_size: images per training step over all devices, nodes and accumulated batches.
        val_batch_size: images per device and step in validation.
        val_share: share of the training images, in (0, 1), that is held out where there is no `val`. Names decide, so
            that it is the same on every machine.
        num_workers: worker processes per device that load tokens; by default its share of the machine's cores, at most
            8. 0 does where files are on a local disk.
        seed: what order and copies follow from; by default that of `seed_everything`, else torch's initial seed.

    Raises:
        InputError: where tokens are missing, or those of `val` are of another tokenizer.
    """

    how_to_validate = "data.val_share holds a share of the training images out"

    def __init__(
        self,
        root: str,
        global_batch_size: int = 256,
        val_batch_size: int = 256,
        val_share: float | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(global_batch_size, val_batch_size, num_workers, seed)
        self.root = Path(root).expanduser()
        self.val_share = check_share(val_share)

    @property
    def facts(self) -> TokenFacts:
        """What `tokens.json` says of the training tokens; needs no `setup`."""
        return self._all_training_tokens.facts

    @property
    def num_classes(self) -> int:
        """Of the training tokens; 0 without labels."""
        return self._all_training_tokens.num_classes

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "class": type(self).__name__,
            "root": str(self.root.absolute()),
            "val_share": self.val_share,
            "val_batch_size": self.val_batch_size,
            "tokenizer_hash": self.tokenizer_hash,
        }

    # a generator makes a sample of the class of each
    predict_dataloader = ResumableDataModule.val_dataloader

    def make_train_dataset(self) -> TokenDataset:
        every = self._all_training_tokens
        if self.val_share is None or self._has_val:
            return TokenDataset(every.folder, "random")
        return every.part(self._parts.train, "random")

    def make_val_dataset(self) -> TokenDataset | None:
        if self._has_val:
            found = TokenDataset(self.root / "val", "plain")
            require(
                all(getattr(found, name) == getattr(self, name) for name in SAME),
                f"{found.folder} is not of the tokenizer and image size of {self._all_training_tokens.folder}",
            )
            self._number(found)
            return found
        return None if self.val_share is None else self._all_training_tokens.part(self._parts.val, "plain")

    def _number(self, val: TokenDataset) -> None:
        """Has a label of validation mean what it means in training; where that is not known, there are none."""
        if val.class_names is not None and self.class_names is not None:
            val.number_by(self.class_names)
        elif val.class_names is not None:
            val.remove_labels("its classes have names and those of training none: they have no label")
        elif val.num_classes > self.num_classes:
            label, classes = val.num_classes - 1, how_many(self.num_classes, "class", "classes")
            val.remove_labels(f"it has the label {label}, and training has {classes}: labels are left out")

    @property
    def _has_val(self) -> bool:
        return (self.root / "val").is_dir()

    @cached_property
    def _all_training_tokens(self) -> TokenDataset:
        return TokenDataset(self.root if (self.root / FACTS_FILE).is_file() else self.root / "train", "plain")

    @cached_property
    def _parts(self) -> HeldOut:
        """Those of all training tokens, by `val_share`."""
        assert self.val_share is not None
        every = self._all_training_tokens
        return hold_out(map(every.name, range(every.num_images)), self.val_share, every.folder)
