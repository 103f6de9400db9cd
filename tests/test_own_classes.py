"""The page on classes of one's own: its files are written as they stand there, and used as it says."""

import re
import sys
from pathlib import Path

import pytest
import torch

from gsq_lightning import GSQTokenizer
from gsq_lightning.__main__ import main
from tests.conftest import write_images, write_page_files

PAGE = (Path(__file__).parents[1] / "docs" / "own-classes.md").read_text()
SMALL = (
    "--model.perceptual_loss=null",
    "--model.tokenizer_scheduler=null",
    "--model.tokenizer.init_args.base_channels=8",
    "--data.image_size=16",
    "--data.global_batch_size=2",
    "--data.crops_per_epoch=4",
    "--data.root=images",
    "--data.num_workers=0",
    "--trainer.max_steps=2",
    "--trainer.log_every_n_steps=1",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files, and a few images."""
    write_page_files(PAGE, tmp_path)
    for split in ("train", "val"):
        write_images(tmp_path / "images" / split, 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_classes", raising=False)
    return tmp_path


def test_a_recipe_with_own_classes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["--config=quickstart.yaml", "--config=mine.yaml", *SMALL]
    main(["fit", *recipe])
    assert re.search(r"largest_error +\d", capsys.readouterr().out)

    import my_classes  # type: ignore[import-not-found]

    checkpoint = "runs/quickstart/version_0/checkpoints/last.ckpt"
    quantizer = my_classes.RoundingQuantizer(6, 5)
    tokenizer = GSQTokenizer.from_pretrained(checkpoint, quantizer=quantizer)
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(tokenizer.decode_indices(tokenizer.encode_indices(image)), tokenizer(image))
    output = quantizer(torch.linspace(-3, 3, 60).view(2, 6, 5, 1))
    assert sorted(set(output.quantized.flatten().tolist())) == [-1, -0.5, 0, 0.5, 1]

    main(["validate", f"--ckpt_path={checkpoint}", *recipe])
    assert re.search(r"largest_error +\d", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main(["validate", f"--ckpt_path={checkpoint}"])
    assert "RoundingQuantizer" in capsys.readouterr().err


def test_own_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--trainer.max_steps=2", "--model.metrics.names=[psnr,codebook]", "--trainer.accelerator=cpu"]
    small += [
        "--model.discriminator=null",
        "--model.discriminator_start_step=0",
        "--model.perceptual_loss=null",
        "--model.tokenizer.base_channels=8",
    ]
    main(["fit", "--config=quickstart.yaml", "--config=waves.yaml", *small])
    assert re.search(r"images +40", capsys.readouterr().out)
    main(["validate", "--ckpt_path=runs/quickstart", "--config=waves.yaml"])
    assert re.search(r"images +40", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main(["predict", "--ckpt_path=runs/quickstart", "--config=waves.yaml"])
    line = capsys.readouterr().err
    assert "tokens are written of the images of" in line
    assert "such as ImageNetDataModule, not of a WavesDataModule" in line


def test_a_program_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import train  # type: ignore[import-not-found]

    options = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--data.num_workers=0"]
    cli = train.main(["fit", "--config=train.yaml", *options])
    assert cli.trainer.global_step == 2
    assert cli.trainer.callback_metrics["train/loss_edges"] > 0


def test_the_command_finds_classes_in_the_current_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an installed script, whose own path does not lead there."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(folder))])
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config=quickstart.yaml", "--config=mine.yaml", "--print_config"])
    assert "my_classes.LargestError" in capsys.readouterr().out
