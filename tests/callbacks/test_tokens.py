"""Tokens of a data set: the same files whatever wrote them, and what was killed or refused."""

import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torchvision.transforms import v2

from gsq_lightning import GSQTokenizer, InputError, TokenizerModule
from gsq_lightning.callbacks import TokenProgress, TokenWriter
from gsq_lightning.data import ImageNetDataModule, PhotographsDataModule, TokenDataset
from gsq_lightning.data.decoding import decode_image
from gsq_lightning.data.transforms import ResizeAndCrop
from gsq_lightning.pixels import pixels_to_image
from gsq_lightning.tokens.writing import claim_folder, facts_of, write_rows
from tests.conftest import write_images
from tests.test_two_ranks import free_port

Build = Callable[..., GSQTokenizer]


@pytest.fixture
def module(small_tokenizer: Build) -> TokenizerModule:
    return TokenizerModule(small_tokenizer(codebook_size=300), ema_decay=None).eval()


def images(root: Path | None, **options: Any) -> ImageNetDataModule:
    return ImageNetDataModule(**{"root": root, "image_size": 16, "val_batch_size": 4, "num_workers": 0, **options})


def write(folder: Path, module: TokenizerModule, data: Any, **options: Any) -> TokenWriter:
    writer = TokenWriter(**{"folder": str(folder), "images_per_shard": 5, **options})
    Trainer(
        accelerator="cpu", logger=False, callbacks=[writer], enable_progress_bar=False, enable_model_summary=False
    ).predict(module, data, return_predictions=False)
    return writer


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("[!.]*.*"))}


def test_tokens_decode_to_the_reconstructions_of_the_same_batches(
    module: TokenizerModule, image_root: Path, tmp_path: Path
) -> None:
    """Shards of five images and batches of four: batches begin with each shard."""
    write(tmp_path / "tokens", module, images(image_root), split="all")
    dataset = TokenDataset(tmp_path / "tokens" / "train")
    assert dataset.class_names == ["cats", "dogs"]
    assert dataset.tokenizer_hash == module.tokenizer.hash
    assert dataset.labels.tolist() == [0] * 8 + [1] * 8
    paths = sorted((image_root / "train").rglob("*.png"))
    assert dataset[:].name == [str(path.relative_to(image_root / "train")) for path in paths]
    assert len(TokenDataset(tmp_path / "tokens" / "val")) == 6
    transform = ResizeAndCrop(16, 16)
    for start in (0, 4, 5, 9, 10, 14, 15):
        stop = min(start + 4, start // 5 * 5 + 5, 16)
        pixels = torch.stack(
            [transform(decode_image(path.read_bytes()), torch.Generator) for path in paths[start:stop]]
        )
        with torch.no_grad():
            expected = module.tokenizer(pixels_to_image(pixels))
            assert torch.equal(module.tokenizer.decode_indices(dataset[start:stop].indices), expected)


def test_a_second_start_writes_what_is_missing_alone(module: TokenizerModule, image_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    write(folder, module, images(image_root), split="train")
    whole = contents(folder)
    assert len(whole) == 1 + 4
    (folder / "train" / "tokens-000001.safetensors").unlink()
    (folder / "train" / "tokens-000003.safetensors").unlink()
    (folder / "train" / ".tokens-000001.safetensors.0.part").write_bytes(b"left by a killed process")
    writer = write(folder, module, images(image_root), split="train")
    assert (writer.images_left, writer.shards_left) == (6, 2)
    assert contents(folder) == whole
    assert not list(folder.rglob("*.part"))
    assert write(folder, module, images(image_root), split="train").images_left == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer": 1}, "of another tokenizer"),
        ({"data": {"val_crop_ratio": 0.9}}, "of other images, or of images prepared in another way"),
        ({"file": "val/cats/image_001.png"}, "of other images"),
        ({"images_per_shard": 4}, "with another number of images in each shard"),
        ({"augment": "flip"}, "of other copies of images"),
        ({"format": "parquet"}, "in another type of files"),
    ],
)
def test_other_tokens_are_refused_in_one_line(
    module: TokenizerModule, image_root: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "tokens"
    write(folder, module, images(image_root))
    before = contents(folder)
    if changed.pop("tokenizer", 0):
        with torch.no_grad():
            module.tokenizer.quantizer.codebook.mul_(-1)  # type: ignore[operator]
    if "file" in changed:
        write_images(image_root, 1, seed=7)[0].replace(image_root / changed.pop("file"))
    with pytest.raises(InputError, match=f"holds tokens {message}") as refusal:
        write(folder, module, images(image_root, **changed.pop("data", {})), **changed)
    assert "\n" not in str(refusal.value)
    assert contents(folder) == before


def test_a_run_without_a_shard_claims_nothing(module: TokenizerModule, image_root: Path, tmp_path: Path) -> None:
    """A damaged image ended it; without that image they are other images."""
    damaged = image_root / "val" / "cats" / "image_0001.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"Remove or repair it, or set on_error to skip"):
        write(tmp_path, module, images(image_root))
    damaged.unlink()
    write(tmp_path, module, images(image_root))
    assert (TokenDataset(tmp_path / "val").num_images, TokenDataset(tmp_path / "val").facts.images) == (6, 6)


def test_two_jobs_with_other_options_do_not_mix(module: TokenizerModule, image_root: Path, tmp_path: Path) -> None:
    """The second one starts before the first one's first shard."""
    ours = facts_of(module.tokenizer, shards_of(image_root, "none"), "val", "32-true", "safetensors")
    theirs = facts_of(module.tokenizer, shards_of(image_root, "flip"), "val", "32-true", "safetensors")
    claim_folder(tmp_path, ours)
    claim_folder(tmp_path, theirs)
    with pytest.raises(InputError, match="holds tokens of other copies of images"):
        write_rows(tmp_path, 0, [], ours)
    assert write_rows(tmp_path, 0, [], theirs) == 0


def shards_of(root: Path, augment: Any) -> Any:
    return images(root).in_shards("val", 5, augment)["val"]


def test_shards_of_unknown_origin_are_left_alone(module: TokenizerModule, image_root: Path, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "tokens-000000.safetensors").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"no tokens.json says what they are"):
        write(tmp_path, module, images(image_root))


def test_independent_jobs_write_a_part_each(module: TokenizerModule, image_root: Path, tmp_path: Path) -> None:
    write(tmp_path / "whole", module, images(image_root), split="all")
    for part in ("1/3", "0/3", "2/3"):
        write(tmp_path / "parts", module, images(image_root), split="all", part=part)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    for word in ("3/3", "-1/3", "1", "a/b"):
        with pytest.raises(InputError, match="i/n"):
            TokenWriter(part=word)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_streamed_shard_makes_one_of_tokens(module: TokenizerModule, tmp_path: Path, num_workers: int) -> None:
    """The same tokens as of the same archives read in any order, image by image."""
    counts = (5, 1, 8)
    for shard, count in enumerate(counts):
        paths = write_images(tmp_path / str(shard), count, seed=shard)
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for path in paths:
                archive.add(path, path.name)
    pattern = str(tmp_path / "{0..2}.tar")
    data = {"val": pattern, "val_batch_size": 1}
    write(tmp_path / "streamed", module, images(None, **data, source="webdataset", num_workers=num_workers))
    write(tmp_path / "indexed", module, images(None, **data))
    streamed, indexed = (TokenDataset(tmp_path / name / "val") for name in ("streamed", "indexed"))
    assert (streamed.facts.shards, streamed.facts.images, indexed.facts.shards) == (3, None, 3)
    assert streamed[:].name == indexed[:].name
    assert streamed[5].name == "1.tar/image_000.png"
    assert torch.equal(streamed[:].indices, indexed[:].indices)
    (tmp_path / "streamed" / "val" / "tokens-000001.safetensors").unlink()
    left = write(tmp_path / "streamed", module, images(None, **data, source="webdataset")).work[0].left
    assert left == [1]


def test_copies_are_those_of_torchvision(module: TokenizerModule, image_root: Path, tmp_path: Path) -> None:
    data = images(image_root, val_batch_size=1, image_size=20)
    write(tmp_path / "flip", module, data, augment="flip")
    write(tmp_path / "ten", module, data, augment="ten_crop", split="val")
    flipped, ten = (TokenDataset(tmp_path / name / "val") for name in ("flip", "ten"))
    assert flipped.facts.copies == ["plain", "mirrored"]
    assert ten.facts.copies[:2] == ["center", "top left"]
    path = sorted((image_root / "val").rglob("*.png"))[4]
    pixels = decode_image(path.read_bytes())
    plain = ResizeAndCrop(20, 20)(pixels, torch.Generator)
    crops = list(v2.TenCrop(20)(ResizeAndCrop(22, 22)(pixels, torch.Generator)))
    # the center first; torchvision crops the mirrored image, whose left is the right of ours
    crops = [crops[4], *crops[:4], crops[9], crops[6], crops[5], crops[8], crops[7]]
    for dataset, expected in ((flipped, [plain, plain.flip(-1)]), (ten, crops)):
        number = len(expected)
        rows = dataset[4 * number : 5 * number]
        assert rows.copy.tolist() == list(range(number))
        assert rows.name == [str(path.relative_to(image_root / "val"))] * number
        with torch.no_grad():
            assert torch.equal(rows.indices, module.tokenizer.encode_indices(pixels_to_image(torch.stack(expected))))


def test_parquet_files_are_read_by_datasets_and_polars(
    module: TokenizerModule, image_root: Path, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets", reason="comes with the extra `parquet`")
    polars = pytest.importorskip("polars", reason="comes with the extra `dev`")
    for name, options in (("parquet", {"format": "parquet"}), ("again", {"format": "parquet"}), ("plain", {})):
        write(tmp_path / name, module, images(image_root), split="train", **options)
    assert contents(tmp_path / "parquet") == contents(tmp_path / "again")
    expected = TokenDataset(tmp_path / "plain" / "train")[:]
    flat = expected.indices.flatten(1).numpy()
    pattern = str(tmp_path / "parquet" / "train" / "*.parquet")
    frame = polars.read_parquet(pattern)
    assert frame.schema["indices"] == polars.Array(polars.UInt16, 32)
    assert np.array_equal(frame["indices"].to_numpy(), flat)
    assert frame["name"].to_list() == expected.name
    found = datasets.load_dataset("parquet", data_files=pattern, split="train", cache_dir=str(tmp_path / "cache"))
    assert found.features["indices"].length == 32
    assert np.array_equal(found.with_format("numpy")["indices"][:], flat)
    assert list(found["label"]) == expected.label.tolist()
    with pytest.raises(InputError, match="Parquet files, for datasets and polars"):
        TokenDataset(tmp_path / "parquet" / "train")


def test_images_that_cannot_be_read_are_left_out(module: TokenizerModule, image_root: Path, tmp_path: Path) -> None:
    (image_root / "val" / "cats" / "image_0005.png").write_bytes(b"no image")
    write(tmp_path / "tokens", module, images(image_root, on_error="skip"), augment="flip")
    dataset = TokenDataset(tmp_path / "tokens" / "val")
    assert (dataset.num_images, dataset.facts.images, len(dataset)) == (6, 7, 12)
    assert dataset[:].copy.tolist() == [0, 1] * 6


def test_a_broken_tokenizer_writes_no_tokens(module: TokenizerModule, image_root: Path, tmp_path: Path) -> None:
    """All of its latents would get code 0."""
    with torch.no_grad():
        next(module.tokenizer.encoder.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(InputError, match="the latents of 4 of 4 images are NaN or infinite"):
        write(tmp_path / "tokens", module, images(image_root))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_bundled_photographs_have_tokens_too(module: TokenizerModule, tmp_path: Path) -> None:
    data = PhotographsDataModule(image_size=32, crops_per_epoch=7, short_side=64, num_workers=0)
    write(tmp_path, module, data, split="all")
    assert len(TokenDataset(tmp_path / "train")) == 7
    assert len(TokenDataset(tmp_path / "val")) > 4


def test_images_of_one_folder_are_written_once(module: TokenizerModule, tmp_path: Path) -> None:
    write_images(tmp_path / "photographs", 6)
    write(tmp_path / "all", module, images(tmp_path / "photographs"), split="all")
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["train"]
    write(tmp_path / "shared", module, images(tmp_path / "photographs", val_share=0.5), split="all")
    parts = [len(TokenDataset(tmp_path / "shared" / split)) for split in ("train", "val")]
    assert sum(parts) == 6
    assert all(parts)


def test_the_bar_counts_images_and_the_time_left(
    module: TokenizerModule, image_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = shown(module, images(image_root), capsys, folder=str(tmp_path), split="train", augment="flip")
    assert re.search(r"tokens: 100%.* 16/16 \[00:\d\d<00:00, .* images/s\]", bar)


def test_the_bar_of_streamed_images_takes_their_number_from_the_shards_that_are_done(
    module: TokenizerModule, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of 5, 1 and 9 images: after the first there seem to be 15, after the second 9, never fewer than read."""
    for shard, count in enumerate((5, 1, 9)):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for path in write_images(tmp_path / str(shard), count):
                archive.add(path, path.name)
    totals: list[float | None] = []
    update = TokenProgress.on_predict_batch_end
    monkeypatch.setattr(
        TokenProgress,
        "on_predict_batch_end",
        lambda self, *given: (update(self, *given), totals.append(self._bar.total)),
    )
    data = images(None, val=str(tmp_path / "{0..2}.tar"), source="webdataset", val_batch_size=3)
    bar = shown(module, data, capsys, folder=str(tmp_path / "tokens"))
    assert totals == [None, 15, 9, 9, 12, 15]
    assert "15/15" in bar


def test_an_error_does_not_stand_in_the_line_of_the_bar(
    module: TokenizerModule, image_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_root / "val" / "broken.png").write_text("no image")
    with pytest.raises(InputError, match=r"broken\.png cannot be read as an image"):
        shown(module, images(image_root), capsys, folder=str(tmp_path / "tokens"))
    assert re.search(r"images/s\]\n$", capsys.readouterr().err)


def shown(module: TokenizerModule, data: Any, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    """The last state of the bar."""
    writer = TokenWriter(images_per_shard=5, **options)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[writer, TokenProgress(writer)])
    trainer.predict(module, data, return_predictions=False)
    return capsys.readouterr().err.strip().split("\r")[-1]


def test_a_killed_run_goes_on_under_torchrun_with_the_same_bytes(
    module: TokenizerModule, image_root: Path, tmp_path: Path
) -> None:
    """One process is killed, two go on; benchmarks/token_faults.py kills both kinds at random."""
    module.tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = ["--tokens.split=all", "--tokens.images_per_shard=2", "--data.image_size=16", "--data.num_workers=0"]
    command = [sys.executable, "-m", "gsq_lightning", "predict", f"--ckpt_path={tmp_path / 'tokenizer'}", *options]
    command += [f"--data.root={image_root}", "--trainer.accelerator=cpu", f"--tokens.folder={tmp_path / 'killed'}"]
    command += ["--data.val_batch_size=1", f"--trainer.default_root_dir={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed").rglob("tokens-*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode()[-2000:]  # type: ignore[union-attr]
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert 0 < len(list((tmp_path / "killed").rglob("tokens-*"))) <= 11
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    again = [*torchrun, *command[1:], "--trainer.devices=2"]
    result = subprocess.run(again, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "8 of 8 shard(s) of tokens" in result.stdout + result.stderr
    write(tmp_path / "whole", module, images(image_root, val_batch_size=1), split="all", images_per_shard=2)
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert len(whole) == 2 + 8 + 3
    assert whole == killed
