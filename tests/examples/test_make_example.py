"""`make example`, in miniature: tokenizer, tokens, generator, pictures, and their distance from real ones."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from gsq_lightning.__main__ import main as gsq
from tests.conftest import WITHOUT_WEIGHTS, write_images
from token_generator.cli import main as generator

ROOT = Path(__file__).parents[2]
SMALL = {
    "gsq fit": [
        *WITHOUT_WEIGHTS,
        "--model.tokenizer.init_args.base_channels=8",
        "--data.image_size=32",
        "--data.global_batch_size=2",
        "--data.crops_per_epoch=4",
        "--data.num_workers=0",
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=1",
    ],
    "gsq predict": ["--data.image_size=32", "--data.crops_per_epoch=20", "--data.num_workers=0"],
    "gsq evaluate": ["--num_workers=0", "--metrics=[rfd_random]"],
    "generator fit": ["--model.width=16", "--model.layers=1", "--trainer.max_steps=2"],
    "generator predict": ["--model.width=16", "--model.layers=1", "--trainer.limit_predict_batches=0.12"],
}


def run(line: str) -> None:
    """A command of the Makefile or of a page, with small networks and few images."""
    words = line.split("#")[0].split()
    if words[0].endswith("gsq"):
        gsq([*words[1:], *SMALL[f"gsq {words[1]}"]])
    else:
        assert words[1] == "examples/generator/main.py"
        generator([*words[2:], *SMALL[f"generator {words[2]}"]])


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    arguments = ["make", "--dry-run", f"--makefile={ROOT / 'Makefile'}", "VENV=env", "example"]
    lines = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.replace("\\\n", " ")
    commands = [line for line in lines.splitlines() if re.match(r"env/bin/(gsq|python examples)", line)]
    assert len(commands) == 4

    for command in commands:
        run(command)
    samples = sorted(Path("runs/example/samples").iterdir())
    assert len(samples) == 28
    assert all(Image.open(path).size == (32, 32) for path in samples)
    assert Image.open("runs/example/samples.png").width > 5 * 32

    page = (ROOT / "examples" / "generator" / "README.md").read_text().replace("\\\n", " ")
    documented = [line.split("#")[0].split() for line in page.splitlines() if re.match("gsq|python examples", line)]
    for command in commands:  # those of the page, but for the place of the programs
        assert command.replace("env/bin/", "").split() in documented
    write_images(tmp_path / "real", 5, size=(32, 32))
    (evaluation,) = (words for words in documented if words[1] == "evaluate")
    places = {"/data/tiny-imagenet-200/val": "real", "samples": "runs/example/samples"}
    run(" ".join(places.get(word, word) for word in evaluation))
    assert "rfd_random" in capsys.readouterr().out
