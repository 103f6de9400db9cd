"""The example generator on Lightning: training, resuming, samples as pictures."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image

from gsq_lightning import GSQTokenizer
from gsq_lightning.data import TokenDataModule
from gsq_lightning.errors import InputError
from gsq_lightning.tokens.shards import TokenShard, shard_name, write_shard
from tests.data.test_data import quiet_trainer
from tests.tokens.written import write_tokens
from token_generator import GeneratorModule, TokenShape
from token_generator.cli import main

CONFIG = Path(__file__).parents[2] / "examples" / "generator" / "photographs.yaml"
SMALL = (
    f"--config={CONFIG}",
    "--model.width=16",
    "--model.layers=1",
    "--model.heads=2",
    "--data.root=tokens",
    "--data.global_batch_size=4",
    "--trainer.max_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)


@pytest.mark.parametrize("masked", [False, True])
def test_a_resumed_training_ends_with_the_same_weights(masked: bool, tmp_path: Path) -> None:
    """With dropout, dropped labels and random masks, in the middle of an epoch of 5 batches."""
    write_tokens(tmp_path / "tokens", images=22, codebook_size=32)

    def train(steps: int, folder: str, checkpoint: Path | None = None) -> GeneratorModule:
        seed_everything(3)
        shape = TokenShape(2, 32, 2, 3, 2)
        module = GeneratorModule(
            shape, width=16, layers=1, heads=2, depth_layers=1, masked=masked, dropout=0.1, label_dropout=0.5
        )
        data = TokenDataModule(str(tmp_path / "tokens"), global_batch_size=4, num_workers=0)
        quiet_trainer(steps, tmp_path / folder).fit(module, data, ckpt_path=checkpoint and str(checkpoint))
        return module

    whole = train(8, "whole")
    train(3, "part")
    torch.rand(5)  # the state of torch's random numbers is not what makes them equal
    resumed = train(8, "rest", tmp_path / "part" / "step=3.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_bits_are_a_mean_over_indices_not_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches in which more positions are masked count more."""
    for split in ("train", "val"):
        write_tokens(tmp_path / "tokens" / split, images=8, codebook_size=32)
    module = GeneratorModule(TokenShape(2, 32, 2, 3, 2), width=16, layers=1, heads=2, depth_layers=1, masked=True)
    nats = iter([torch.full((10, 2), math.log(2)), torch.full((30, 2), 2 * math.log(2))])
    monkeypatch.setattr(module, "nats", lambda *_: next(nats))
    data = TokenDataModule(str(tmp_path / "tokens"), global_batch_size=4, val_batch_size=4, num_workers=0)
    [values] = quiet_trainer(1, tmp_path, limit_val_batches=None).validate(module, data, verbose=False)
    assert values["val/bits_per_index"] == pytest.approx((10 + 60) / 40)


@pytest.fixture
def folder(tmp_path: Path, small_tokenizer: Callable[..., GSQTokenizer], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tokenizer, and tokens that say that they are of it."""
    tokenizer = small_tokenizer().eval()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for split, images in (("train", 8), ("val", 5)):
        write_tokens(tmp_path / "tokens" / split, images, codebook_size=32, tokenizer_hash=tokenizer.hash)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("masked", ["false", "true"])
def test_the_program_trains_and_writes_samples(folder: Path, masked: str) -> None:
    options = [*SMALL, f"--model.masked={masked}", "--model.tokenizer=tokenizer", "--model.samples=samples"]
    trained = main(["fit", *options])
    assert trained.trainer.global_step == 2
    assert trained.model.network.shape == TokenShape(2, 32, 2, 3, 2)
    assert list(folder.glob("runs/generator/version_0/samples/step=*.png"))
    checkpoint = "runs/generator/version_0/checkpoints/last.ckpt"

    Path("samples").mkdir()
    for name in ("000099-000", "000000-1000"):  # of a longer prediction, and of larger batches
        Path("samples", f"{name}.png").touch()
    drawn = {}
    for name in ("samples", "again"):
        main(["predict", *options, f"--ckpt_path={checkpoint}", f"--model.samples={name}"])
        drawn[name] = {path.name: path.read_bytes() for path in Path(name).iterdir()}
        assert Image.open(f"{name}.png").mode == "RGB"
    assert len(drawn["samples"]) == 5  # one for each image of val
    assert drawn["samples"] == drawn["again"]
    assert {Image.open(path).size for path in Path("samples").iterdir()} == {(12, 8)}

    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert not any("tokenizer" in name for name in state)


def test_the_recipe_for_tiny_imagenet_trains(folder: Path) -> None:
    """In its precision, with its clipping."""
    options = [option for option in SMALL if not option.startswith("--config")]
    recipe = f"--config={CONFIG.with_name('tiny_imagenet.yaml')}"
    steps = ["--trainer.val_check_interval=2", "--model.tokenizer=tokenizer", "--data.num_workers=0"]
    assert main(["fit", recipe, *options, *steps]).trainer.global_step == 2


def test_a_wrong_word_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", *SMALL, "--model.head=deep"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "gsq: error: model.head is deep; it must be one of: depth, independent; did you mean depth?"
    ]


def test_the_tokenizer_must_be_that_of_the_tokens(folder: Path, small_tokenizer: Callable[..., GSQTokenizer]) -> None:
    shutil.rmtree("tokenizer")
    small_tokenizer().save_pretrained("tokenizer")
    with pytest.raises(ValueError, match="not of the tokenizer"):
        main(["fit", *SMALL, "--model.tokenizer=tokenizer"])


def test_the_comparison_of_heads_sees_that_indices_depend_on_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the second index of a position repeats the first, only the depth head can save its bits."""
    from compare_heads import main as compare

    for split, images in (("train", 64), ("val", 16)):
        every = write_tokens(Path("tokens", split), images, images_per_shard=images, codebook_size=4)
        repeated = every.indices[..., :1].expand_as(every.indices)
        write_shard(Path("tokens", split, shard_name(0)), TokenShard.of(every._replace(indices=repeated), 4))
    options = [
        *SMALL,
        "--model.tokenizer=null",
        "--model.width=32",
        "--trainer.max_steps=60",
        "--model.optimizer.lr=0.01",
    ]
    options += ["--model.optimizer.lr=0.01", "--model.scheduler=null", "--trainer.check_val_every_n_epoch=100"]
    table = compare([*options, "--seeds=1", "--independent_layers=2", "--folder=runs/heads"])
    bits = {row.split("|")[1].strip(): float(row.split("|")[-3]) for row in table.splitlines()[2:4]}
    positions, bits_per_index = 6, 2
    assert bits["independent"] > 2 * positions * bits_per_index - 0.5
    assert bits["depth"] < 1.1 * positions * bits_per_index
    capsys.readouterr()

    assert compare(["--seeds=1", "--folder=runs/heads"]) == table  # nothing is trained again
    with pytest.raises(InputError, match=r"independent_0 is of other options: .* --model.width=32"):
        compare(["--seeds=1", "--folder=runs/heads", "--model.width=16"])
