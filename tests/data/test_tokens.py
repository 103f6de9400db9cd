"""Tokens are read in any order, and trained on as images are."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gsq_lightning import InputError
from gsq_lightning.data import TokenDataModule, TokenDataset
from gsq_lightning.data.loader import Loading
from gsq_lightning.data.sampler import DataPosition
from gsq_lightning.tokens import TokenBatch, smallest_type
from gsq_lightning.tokens.shards import shard_name
from tests.data.test_data import Idle, quiet_trainer
from tests.tokens.written import write_tokens

CLASSES = ["cats", "dogs"]


def equal(one: TokenBatch, other: TokenBatch) -> bool:
    return list(one.name) == list(other.name) and all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one[:3], other[:3], strict=True)
    )


def rows(every: TokenBatch, items: list[int]) -> TokenBatch:
    return TokenBatch(every.indices[items], every.label[items], every.copy[items], [every.name[item] for item in items])


@pytest.mark.parametrize("codebook_size", [256, 300, 70_000])
def test_any_item_is_what_was_written(tmp_path: Path, codebook_size: int) -> None:
    every = write_tokens(tmp_path, codebook_size=codebook_size, class_names=CLASSES)
    dataset = TokenDataset(tmp_path)
    assert (len(dataset), dataset.num_images, dataset.grid, dataset.num_groups) == (10, 10, (2, 3), 2)
    assert (dataset.codebook_size, dataset.class_names, dataset.num_classes) == (codebook_size, CLASSES, 2)
    assert dataset.tokenizer_hash == "ab12"
    assert equal(dataset[:], every)
    assert equal(dataset[[7, 0, 3, 3, -1]], rows(every, [7, 0, 3, 3, 9]))
    assert torch.equal(dataset[5].indices, every.indices[5])
    assert dataset.labels.tolist() == every.label.tolist()
    assert [dataset.name(image) for image in range(10)] == every.name
    (batch,) = DataLoader(dataset, batch_size=10)
    assert equal(batch, every)
    assert equal(pickle.loads(pickle.dumps(dataset))[4:9], rows(every, [4, 5, 6, 7, 8]))
    assert equal(dataset[torch.tensor(5)], dataset[5])
    with pytest.raises(IndexError):
        dataset[10]


@pytest.mark.parametrize("of_part", [False, True])
def test_images_are_chosen_as_numpy_chooses(tmp_path: Path, of_part: bool) -> None:
    every, dataset = write_tokens(tmp_path), TokenDataset(tmp_path)
    if of_part:
        every, dataset = rows(every, [9, 2, 5, 8]), TokenDataset(tmp_path, images=[-1, 2, 5, 8])
    mask = every.label.numpy() == 1
    expected = np.flatnonzero(mask).tolist()
    assert 1 < len(expected) < len(mask)
    for chosen in (mask, torch.from_numpy(mask), mask.tolist()):
        assert equal(dataset.part(chosen)[:], rows(every, expected))
        assert equal(dataset[chosen], rows(every, expected))
    last = len(mask) - 1
    for one in ([-1], np.array([last], np.uint8), torch.tensor([-1])):
        assert equal(dataset.part(one)[:], rows(every, [last]))
        assert equal(dataset[one], rows(every, [last]))
    assert dataset.name(-1) == every.name[last]
    assert torch.equal(dataset[torch.tensor(3)].indices, every.indices[3])
    assert len(dataset.part([])) == len(dataset[[]].indices) == len(dataset[~(mask | ~mask)].indices) == 0
    for wrong, message in (
        ([len(mask)], f"there is no number {len(mask)}: there are {len(mask)}, from 0"),
        ([-len(mask) - 1], f"there is no number -{len(mask) + 1}"),
        (mask[1:], rf"mask has the shape \({last},\); it must be \({len(mask)},\)"),
        ([1.0], "numbers are float64"),
        (["a"], "they must be integers, or a mask"),
        ([[1]], r"of the shape \(1, 1\)"),
    ):
        for choose in (dataset.part, dataset.__getitem__):
            with pytest.raises(InputError, match=message):
                choose(wrong)  # type: ignore[operator]
    with pytest.raises(InputError, match="there is no number 10"):
        TokenDataset(tmp_path, images=np.array([10]))
    with pytest.raises(InputError, match="there is no number 12"):
        dataset.name(12)
    for key in ("a", 1.5):
        with pytest.raises(InputError, match="it must be a whole number"):
            dataset[key]  # type: ignore[index]


def test_numbers_of_classes_without_names_are_those_of_the_labels(tmp_path: Path) -> None:
    write_tokens(tmp_path, images=10)
    assert TokenDataset(tmp_path).num_classes == 2
    write_tokens(tmp_path / "unlabelled", images=1)
    assert TokenDataset(tmp_path / "unlabelled").num_classes == 0


def test_copies_are_items_of_their_own_or_drawn(tmp_path: Path) -> None:
    every = write_tokens(tmp_path, copies=("plain", "mirrored"))
    assert equal(TokenDataset(tmp_path)[:], every)
    assert equal(TokenDataset(tmp_path, "plain")[:], rows(every, list(range(0, 20, 2))))
    drawn = [copies_of_epoch(tmp_path, epoch) for epoch in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2] != drawn[3]
    assert {copy for copies in drawn for copy in copies} == {0, 1}


def copies_of_epoch(folder: Path, epoch: int) -> list[int]:
    loader = TokenDataset(folder, "random").train_loader(DataPosition(1, epoch), 2, Loading(batch_size=2))
    return [int(copy) for batch in loader for copy in batch.copy]


@pytest.mark.parametrize(
    ("size", "kind"),
    [(256, torch.uint8), (257, torch.uint16), (65536, torch.uint16), (65537, torch.int32), (2**31 + 1, torch.int64)],
)
def test_smallest_type_holds_the_largest_index(size: int, kind: torch.dtype) -> None:
    assert smallest_type(size) == kind


def test_a_million_images_are_not_read_when_they_are_opened(tmp_path: Path) -> None:
    write_tokens(tmp_path, images=10_000, images_per_shard=10_000, grid=(8, 8), num_groups=1)
    content = (tmp_path / "tokens.json").read_text().replace('"shards": 1', '"shards": 100')
    (tmp_path / "tokens.json").write_text(content)
    for shard in range(1, 100):
        (tmp_path / shard_name(shard)).hardlink_to(tmp_path / shard_name(0))
    dataset = TokenDataset(tmp_path)
    assert len(dataset) == 1_000_000
    assert not dataset._mapped
    assert torch.equal(dataset[990_007].indices, dataset[7].indices)
    assert set(dataset._mapped) == {0, 99}


def test_a_folder_that_is_not_whole_says_what_is_missing(tmp_path: Path) -> None:
    write_tokens(tmp_path / "train", images=10)
    (tmp_path / "train" / shard_name(1)).unlink()
    with pytest.raises(InputError, match=r"1 of 3 shards of tokens are missing in .*tokens-000001.safetensors"):
        TokenDataset(tmp_path / "train")
    with pytest.raises(InputError, match=r"it has no tokens.json; there is .*train"):
        TokenDataset(tmp_path)
    (tmp_path / "train" / "tokens.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        TokenDataset(tmp_path / "train")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write_tokens(tmp_path)
    (tmp_path / shard_name(2)).write_bytes(b"no tokens")
    with pytest.raises(InputError, match=r"tokens-000002.safetensors cannot be read as a shard"):
        TokenDataset(tmp_path)


def module(root: Path, **options: object) -> TokenDataModule:
    return TokenDataModule(str(root), **{"global_batch_size": 4, "num_workers": 0, "seed": 3, **options})  # type: ignore[arg-type]


def seen(batches: list[TokenBatch]) -> list[list[str]]:
    return [sorted(f"{name} {copy}" for name, copy in zip(batch.name, batch.copy, strict=True)) for batch in batches]


def test_two_ranks_see_the_global_batches_of_one(tmp_path: Path) -> None:
    write_tokens(tmp_path / "train", images=22, copies=("plain", "mirrored"))
    dataset = module(tmp_path).make_train_dataset()
    alone = seen(list(dataset.train_loader(DataPosition(5, 1), 8, Loading(batch_size=8))))
    ranks = [list(dataset.train_loader(DataPosition(5, 1), 8, Loading(rank, 2, 4))) for rank in range(2)]
    together = [sorted(a + b) for a, b in zip(*map(seen, ranks), strict=True)]
    assert len(alone) == 2
    assert together == alone


def test_a_rank_without_tokens_validates_a_batch_of_none(tmp_path: Path) -> None:
    write_tokens(tmp_path, images=2)
    batches = [list(TokenDataset(tmp_path).val_loader(Loading(rank, 3, 4))) for rank in range(3)]
    assert seen([batch for (batch,) in batches]) == [["class/image 0.png 0"], ["class/image 1.png 0"], []]
    assert batches[2][0].indices.shape == (0, 2, 3, 2)


def test_training_resumes_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    write_tokens(tmp_path / "train", images=22, copies=("plain", "mirrored"))
    write_tokens(tmp_path / "val", images=3)
    whole, first, second = Recorded(), Recorded(), Recorded()
    validating = {"limit_val_batches": 1.0, "num_sanity_val_steps": 0}
    quiet_trainer(9, tmp_path / "whole", **validating).fit(whole, module(tmp_path))
    quiet_trainer(7, tmp_path / "parts").fit(first, module(tmp_path))
    checkpoint = str(tmp_path / "parts" / "step=7.ckpt")
    quiet_trainer(9, tmp_path / "rest").fit(second, module(tmp_path), ckpt_path=checkpoint)
    assert len(whole.batches) == 9
    assert seen(first.batches) + seen(second.batches) == seen(whole.batches)
    names = [name for batch in whole.batches[:5] for name in batch.name]
    assert len(set(names)) == 20
    assert whole.validated == [3]


class Recorded(Idle):
    """Keeps the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[TokenBatch] = []
        self.validated: list[int] = []

    def training_step(self, batch: TokenBatch, batch_idx: int) -> None:  # type: ignore[override]
        self.batches.append(batch)
        optimizer = self.optimizers()
        optimizer.step()  # type: ignore[union-attr]

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:  # type: ignore[override]
        self.validated.append(len(batch.indices))

    def on_validation_epoch_end(self) -> None: ...


def test_a_share_is_held_out_by_name(tmp_path: Path) -> None:
    every = write_tokens(tmp_path, images=40, copies=("plain", "mirrored"))
    data = module(tmp_path, val_share=0.25)
    train, val = data.make_train_dataset(), data.make_val_dataset()
    assert val is not None
    parts = [set(part[:].name) for part in (train, val)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(every.name)
    assert 4 <= len(val) <= 16
    assert val[:].copy.tolist() == [0] * len(val)
    assert np.array_equal(train.labels, [every.label[every.name.index(name)] for name in train[:].name])
    nothing = module(tmp_path, val_share=0.001)
    for make in (nothing.make_train_dataset, nothing.make_val_dataset):
        with pytest.raises(InputError, match=r"val_share 0\.001 of 40 images .* leaves 40 for training and 0 for"):
            make()


def test_tokens_of_two_tokenizers_are_not_trained_and_validated_together(tmp_path: Path) -> None:
    write_tokens(tmp_path / "train")
    write_tokens(tmp_path / "val", tokenizer_hash="other")
    with pytest.raises(InputError, match="is not of the tokenizer"):
        module(tmp_path).make_val_dataset()


@pytest.mark.parametrize("other", [{"num_groups": 1}, {"codebook_size": 400}])
def test_tokens_of_other_codebooks_are_not_trained_and_validated_together(
    tmp_path: Path, other: dict[str, int]
) -> None:
    write_tokens(tmp_path / "train")
    write_tokens(tmp_path / "val", **other)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is not of the tokenizer"):
        module(tmp_path).make_val_dataset()


def test_validation_labels_are_the_numbers_of_trainings_classes(tmp_path: Path) -> None:
    """Of a split that has them in another order, and one that training lacks."""
    write_tokens(tmp_path / "train", class_names=["ant", "bee", "cat"])
    every = write_tokens(tmp_path / "val", class_names=["dog", "bee"])
    expected = [{-1: -1, 0: -1, 1: 1}[label] for label in every.label.tolist()]
    val = module(tmp_path).make_val_dataset()
    assert val is not None
    assert val.notes == ["training does not have the classes dog: they have no label"]
    assert (val.class_names, val.num_classes) == (["ant", "bee", "cat"], 3)
    for dataset in (val, pickle.loads(pickle.dumps(val)), val.part(np.arange(10))):
        assert dataset[:].label.tolist() == dataset.labels.tolist() == expected
    write_tokens(tmp_path / "val")  # numbers stay
    plain = module(tmp_path).make_val_dataset()
    assert plain is not None
    assert plain[:].label.tolist() == every.label.tolist()


@pytest.mark.parametrize(
    ("train", "val", "note"),
    [
        (None, CLASSES, "its classes have names and those of training none: they have no label"),
        (["ant"], None, "it has the label 1, and training has 1 class: labels are left out"),
    ],
)
def test_validation_labels_of_other_classes_than_trainings_are_left_out(
    tmp_path: Path, train: list[str] | None, val: list[str] | None, note: str
) -> None:
    """A generator would take the first label beyond training's for no class."""
    write_tokens(tmp_path / "train", class_names=train)
    every = write_tokens(tmp_path / "val", class_names=val)
    assert set(every.label.tolist()) == {-1, 0, 1}
    found = module(tmp_path).make_val_dataset()
    assert found is not None
    assert (found.notes, found.class_names, found.num_classes) == ([note], None, 0)
    for dataset in (found, found.part(np.arange(10))):
        assert set(dataset[:].label.tolist()) == set(dataset.labels.tolist()) == {-1}


def test_classes_may_be_numbered_again_after_labels_were_asked_for(tmp_path: Path) -> None:
    every = write_tokens(tmp_path, class_names=["ant", "bee"])
    dataset = TokenDataset(tmp_path)
    assert (dataset.labels.tolist(), dataset.num_classes) == (every.label.tolist(), 2)
    dataset.number_by(["cat", "bee", "ant"])
    dataset.number_by(["dog", "eel", "fox", "bee"])
    expected = [{-1: -1, 0: -1, 1: 3}[label] for label in every.label.tolist()]
    assert dataset[:].label.tolist() == dataset.labels.tolist() == expected
    assert dataset.num_classes == 4


def test_facts_are_known_before_setup(tmp_path: Path) -> None:
    write_tokens(tmp_path / "train", class_names=CLASSES)
    data = module(tmp_path)
    assert (data.codebook_size, data.num_groups, data.grid, data.num_classes) == (300, 2, (2, 3), 2)
    assert data.settings["tokenizer_hash"] == data.tokenizer_hash == "ab12"
