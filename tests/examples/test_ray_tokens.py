"""The example that writes tokens by Ray, on a Ray of this machine with two workers."""

import os
import runpy
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gsq_lightning import GSQTokenizer, ImageNetDataModule, TokenizerModule
from gsq_lightning.data import TokenDataset
from gsq_lightning.tokens import TokenFacts
from tests.callbacks.test_tokens import contents, write
from tests.conftest import write_images

PROGRAM = Path(__file__).parents[2] / "examples" / "ray_tokens.py"


@pytest.mark.slow  # starting a Ray takes a minute of two busy cores
def test_ray_goes_on_where_predict_was_stopped_with_the_same_bytes(
    small_tokenizer: Callable[..., GSQTokenizer], tmp_path: Path
) -> None:
    pytest.importorskip("ray.data", reason="comes with the extra `ray`")
    for shard, count in enumerate((5, 1, 3, 4)):
        paths = write_images(tmp_path / str(shard), count, seed=shard)
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for path in paths:
                archive.add(path, path.name)
    tokenizer = small_tokenizer(codebook_size=300)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    images = str(tmp_path / "{0..3}.tar")
    data = ImageNetDataModule(train=images, image_size=16, val_batch_size=2, num_workers=0, source="webdataset")
    for name in ("predict", "ray"):
        write(tmp_path / name, TokenizerModule(tokenizer.eval()), data, split="train", augment="flip")
    for shard in (0, 2, 3):
        (tmp_path / "ray" / "train" / f"tokens-00000{shard}.safetensors").unlink()
    options = {
        "tokenizer": tmp_path / "tokenizer",
        "images": images,
        "image_size": 16,
        "folder": tmp_path / "ray",
        "augment": "flip",
        "batch_size": 2,
        "workers": 2,
    }
    command = [sys.executable, str(PROGRAM), *(f"--{name}={value}" for name, value in options.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "3 of 4 shard(s) of tokens are to be written" in result.stdout
    assert "24 rows in 3 shard(s)" in result.stdout
    assert contents(tmp_path / "ray") == contents(tmp_path / "predict")


def test_an_actor_reads_parquet_files(
    small_tokenizer: Callable[..., GSQTokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.data", reason="comes with the extra `ray`")
    datasets = pytest.importorskip("datasets", reason="comes with the extra `parquet`")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    program = runpy.run_path(str(PROGRAM))
    paths = write_images(tmp_path / "images", 5)
    rows = {"image": [path.read_bytes() for path in paths], "label": [4, 0, 1, 2, 3]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    tokenizer = small_tokenizer().eval()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    images = str(tmp_path / "train.parquet")
    data = ImageNetDataModule(train=images, image_size=16, val_batch_size=2, num_workers=0)
    write(tmp_path / "predict", TokenizerModule(tokenizer), data, split="train", images_per_shard=3)
    folder = tmp_path / "actor"
    job = program["Job"](str(tmp_path / "tokenizer"), images, 16, str(folder), images_per_shard=3, batch_size=2)
    actor = program["Encoder"](job, TokenFacts.read(tmp_path / "predict" / "train"))
    assert [actor.write(number) for number in range(2)] == [3, 2]
    written = contents(tmp_path / "predict")
    del written["train/tokens.json"]
    assert contents(folder) == written
    assert TokenDataset(tmp_path / "predict" / "train").labels.tolist() == [4, 0, 1, 2, 3]
