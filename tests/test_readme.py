"""What README and docs say, done."""

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from gsq_lightning import GSQTokenizer
from gsq_lightning.__main__ import main
from tests.conftest import write_images, write_page_files

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))]
CHECKPOINT = "runs/f8/version_0/checkpoints/last.ckpt"


def blocks(language: str) -> list[str]:
    found = [block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)]
    return list(dict.fromkeys(found))


def commands(program: str) -> list[list[str]]:
    """Arguments of each line that starts a program, `gsq` through torchrun too."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    texts = (re.sub(r"^torchrun .* -m gsq_lightning ", "gsq ", line.split("#")[0]) for line in lines)
    found = [words[1:] for words in map(shlex.split, texts) if words and words[0] == program]
    return [list(words) for words in dict.fromkeys(map(tuple, found))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint of a small f8 tokenizer where the README has one, and the files that pages show."""
    folder = tmp_path_factory.mktemp("readme")
    for page in PAGES:
        write_page_files(page, folder)
    for split in ("train", "val"):
        images = write_images(folder / "images" / split, 4)
    shutil.copy(images[0], folder / "photograph.jpg")  # what a file is, is seen by its content
    small = ["base_channels=8", "norm_groups=4", "encoder_blocks=1", "decoder_blocks=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(
            ["fit", "--config", "f8.yaml", "--data.root=images", "--data.image_size=16", "--data.global_batch_size=2"]
            + [f"--model.tokenizer.{option}" for option in small]
            + ["--model.discriminator=null", "--model.perceptual_loss=null", "--model.metrics.names=[psnr,codebook]"]
            + ["--data.num_workers=0", "--trainer.max_steps=1", "--trainer.precision=32", "--trainer.accelerator=cpu"]
        )
        GSQTokenizer.from_pretrained(CHECKPOINT).save_pretrained("my-tokenizer")
        shutil.copytree("runs/f8", "runs/photos")
        main(["predict", f"--ckpt_path={CHECKPOINT}", "--data.root=images", "--tokens.split=all"])
    return folder


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    exec(compile(code, "page", "exec"), {"__name__": "page"})


WITHOUT_CONFIG = ("evaluate", "compare")


@pytest.mark.parametrize(
    "arguments", [words for words in commands("gsq") if words[0] not in WITHOUT_CONFIG], ids=" ".join
)
def test_commands_parse(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as exit_info:
        main([*arguments, "--print_config"])
    assert exit_info.value.code in (0, None)
    assert "tokenizer:" in capsys.readouterr().out


def test_commands_without_a_config_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On small images, and with metrics that need no weights."""
    monkeypatch.chdir(folder)
    main(["validate", f"--ckpt_path={CHECKPOINT}", "--data.root=images", "--model.metrics.names=[psnr,codebook]"])
    for name in ("reconstructions", "samples"):
        write_images(folder / name, 4, size=(16, 16))
    small = {"/data/imagenet/val": "images/val", "256": "16"}
    for arguments in (words for words in commands("gsq") if words[0] in WITHOUT_CONFIG):
        metric = "rfd_random" if "--unpaired" in arguments else "psnr"
        extra = [f"--metrics=[{metric}]", "--num_workers=0"] if arguments[0] == "evaluate" else []
        main([*(small.get(word, word) for word in arguments), *extra])
    output = capsys.readouterr().out
    assert "| reconstructions " in output
    assert "Table 14" in output
    assert (folder / "rd.png").is_file()


def test_make_targets_exist() -> None:
    targets = {words[0] for words in commands("make")}
    assert targets == {"quickstart", "test"}
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["preferred-citation"]["url"] in README


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)(#[^)]*)?\)", README)
    for link, _ in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_map_of_the_code_names_what_is_there() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("## Where things are")[1].split("```")[1]
    inside = {name.rstrip("/") for name in re.findall(r"^  (\S+) ", tree, flags=re.MULTILINE)}
    package = {path.name for path in (ROOT / "src" / "gsq_lightning").iterdir()}
    assert package - inside <= {"__init__.py", "py.typed", "__pycache__"}
    assert inside <= package
    for name in re.findall(r"^(\S+/) ", tree, flags=re.MULTILINE):
        assert (ROOT / name).is_dir(), name


def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: a link that leads nowhere, or a name that does not exist, is an error."""
    pytest.importorskip("mkdocstrings", reason="comes with the extra `dev`")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        check=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")},
    )
    assert "GroupedSphericalQuantizer" in (tmp_path / "api" / "index.html").read_text()


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_run(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two steps of each training, in a folder that lies beside those that notebooks read."""
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="comes with the extra `notebooks`")
    pyplot.switch_backend("agg")
    for name in ("benchmarks", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict[str, object] = {}
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level  # which notebooks change
    try:
        for cell in json.loads(notebook.read_text())["cells"]:
            if cell["cell_type"] == "code":
                code = re.sub(r"^STEPS = \d+", "STEPS = 2", "".join(cell["source"]), flags=re.MULTILINE)
                exec(compile(code, notebook.name, "exec"), names)
    finally:
        lightning.setLevel(level)
        pyplot.close("all")


def test_notebooks_are_kept_with_their_pictures_and_without_noise() -> None:
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = notebook.read_text()
        cells = json.loads(text)["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert any("image/png" in output.get("data", {}) for output in outputs), notebook.name
        assert {output.get("name", "stdout") for output in outputs} == {"stdout"}, notebook.name
        assert len(text) < 400_000, notebook.name
