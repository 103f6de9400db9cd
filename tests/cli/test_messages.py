"""What somebody reads who mistypes something, or asks for help."""

import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import get_args

import pytest

from gsq_lightning.__main__ import main
from gsq_lightning.cli.help import EVALUATION, FOLDERS, METRICS, TOKENS, TRAINING
from gsq_lightning.cli.weights import Objects
from gsq_lightning.metrics import MetricName, SampleMetricName
from tests.cli.test_fit import TINY, error_of, images
from tests.conftest import write_images

FIT = ["fit", "--config", "quickstart.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fti"], "there is no fti; did you mean fit?"),
        (["fit", "--confg", "f8.yaml"], "there is no option --confg; did you mean --config?"),
        (["fit", "--config", "f9"], "did you mean f8.yaml"),
        (["fit", "--config", "t7_nld_nv"], "goes before it: --config f8.yaml --config t7_nld_nv"),
        (
            ["fit", "--config=fast.yaml", "--config=f16.yaml", "--config=offline.yaml"],
            "goes before it: --config f16.yaml --config fast.yaml --config offline.yaml",
        ),
        ([*FIT, "--trainer.max_step=3"], "did you mean --trainer.max_steps?"),
        ([*FIT, "--data.imagesize=3"], "there is no option data.imagesize; did you mean --data.image_size?"),
        ([*FIT, "--data.batch_size=3"], "set data.global_batch_size, over all devices, or data.val_batch_size"),
        ([*FIT, "--model.lr=3"], "set model.tokenizer_optimizer.lr and model.discriminator_optimizer.lr"),
        (
            [*FIT, "--model.tokenizer.quantizer.codebok_size=3"],
            "mean --model.tokenizer.quantizer.codebook_size?",
        ),
        ([*FIT, "--data.image_size=x"], "data.image_size is x; it must be a whole number"),
        ([*FIT, "--model.ema_decay=a"], "model.ema_decay is a; it must be a number or null"),
        ([*FIT, "--model.discriminator=PatchDiscriminatr"], "no such class; did you mean PatchDiscriminator?"),
        ([*FIT, "--model.adversarial_loss=Hinge"], "one of: vanilla, hinge, non_saturating; did you mean hinge?"),
        ([*FIT, "--model.metrics.names=[fid]"], "; did you mean rfid?"),
        ([*FIT, "--model.metrics.names=[psnr,ssmi]"], "; did you mean ssim?"),
        ([*FIT, "--model.metrics.names=psnr,ssim"], "; a list is written [psnr,ssim]"),
    ],
)
def test_a_slip_is_named_in_full_and_what_was_meant_is_suggested(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(arguments, capsys)


OWN = """
import torch
from lightning.pytorch.loggers import CSVLogger

class L1(torch.nn.Module):
    def forward(self, image, reconstruction):
        return (image - reconstruction).abs().mean()

class Broken(torch.nn.Module):
    def __init__(self):
        raise ValueError("boom")

class Bug(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = self.lair

class BuggyAdamW(torch.optim.AdamW):
    def __init__(self, params, lr: float = 0.1):
        super().__init__(params, lr)
        self.param_groups[7]

class BuggyLogger(CSVLogger):
    def __init__(self, save_dir: str):
        super().__init__(save_dir, nam="mine")
"""


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model.perceptual_loss=slips.L1", "perceptual_loss is slips.L1; it must be a subclass of PerceptualLoss"),
        ("--model.tokenizer.quantizer=slips.L1", "quantizer is slips.L1; it must be a subclass of Quantizer"),
        ("--model.perceptual_loss=slips.L2", "model.perceptual_loss is slips.L2, and there is no L2 in slips"),
        ("--model.discriminator=slops.L1", "is slops.L1, and there is no module slops, here or installed"),
        ("--model.tokenizer=slops.L1", "is slops.L1, and there is no module slops, here or installed"),
        ("--model.discriminator=./slips.py:L1", "is ./slips.py:L1; a class is written module.Class"),
        ("--model.discriminator=slips.Broken", "slips.Broken cannot be made: boom"),
        ("--trainer.logger=WandbLogger", "WandbLogger cannot be made: ModuleNotFoundError: no wandb ("),
    ],
)
def test_a_class_that_cannot_be_used_is_told_why(
    flag: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slips.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", Missing())
    assert message in error_of([*FIT, flag], capsys)


@pytest.mark.parametrize(
    ("flag", "error", "line"),
    [
        ("--model.discriminator=slips.Bug", AttributeError, "self.layer = self.lair"),
        ("--trainer.logger={class_path: slips.BuggyLogger, init_args: {save_dir: runs}}", TypeError, 'nam="mine"'),
        ("--model.tokenizer_optimizer=slips.BuggyAdamW", IndexError, "self.param_groups[7]"),
    ],
)
def test_a_bug_in_a_class_of_ones_own_is_shown_with_its_traceback(
    flag: str, error: type[Exception], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the parser's, which is long."""
    (tmp_path / "slips.py").write_text(OWN)
    write_images(tmp_path / "images" / "train", 4)
    write_images(tmp_path / "images" / "val", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slips", raising=False)
    with pytest.raises(error) as caught:
        main([*FIT, *TINY, *images(Path("images")), flag])
    shown = "".join(traceback.format_exception(caught.value))
    assert line in shown
    assert "jsonargparse" not in shown.partition("in make")[0]


class Missing:
    """As Lightning has it of a package that is not installed."""

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return "no wandb"


def test_the_first_page_of_help_names_options_that_there_are() -> None:
    """It is written by hand; all but those that depend on the command are options of a recipe."""
    pages = TRAINING + EVALUATION.format(command="validate", purpose="", own=METRICS + TOKENS)
    named = set(re.findall(r"--((?:data|model|trainer|tokens)\.[\w.]+)", pages))
    config = Objects("weights", ["--config", "f8.yaml"]).config
    for name in named - {"trainer.logger.name"}:  # of no logger, outside of training
        section, *path = name.split(".")
        found = config[section]
        for part in path:
            found = found.get("init_args", found)[part]
    assert len(named) > 15


def test_the_help_of_evaluate_names_its_options_and_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help", "all"])
    options = set(re.findall(r"\n  --(\w+)", capsys.readouterr().out))
    named = set(re.findall(r"\n  --(\w+)", FOLDERS))
    assert named < options
    left_out = {name for name in options - named if not name.endswith("_weights")}
    assert left_out == {"antialias", "ssim_rim"}
    of_pairs, of_sets = (
        set(re.findall(r"\w+", text)) for text in (FOLDERS.partition("--unpaired")[0], FOLDERS.partition("Metrics:")[2])
    )
    assert set(get_args(MetricName)) - of_pairs == {"codebook", "rfd_random"}
    assert set(get_args(SampleMetricName)) - of_sets == {"rfd_random"}


def test_in_a_terminal_an_error_takes_the_place_of_a_progress_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for in_terminal, start in ((True, "\r\x1b[Kgsq: error: there is no fti"), (False, "gsq: error: there is no fti")):
        monkeypatch.setattr(sys.stderr, "isatty", lambda in_terminal=in_terminal: in_terminal)
        with pytest.raises(SystemExit):
            main(["fti"])
        assert capsys.readouterr().err.startswith(start)


def test_help_and_slips_need_no_torch() -> None:
    for arguments in (["fit", "--help"], ["evaluate", "--help"], ["predict", "-h"], ["fit", "--confg"], ["fti"]):
        program = (
            "import sys\nfrom gsq_lightning.__main__ import main\n"
            f"try: main({arguments})\nexcept SystemExit: print('torch' in sys.modules)"
        )
        output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
        assert output.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    "flags",
    [
        ["--help", "all"],
        ["--trainer.default_root_dir", "all", "--help", "all"],
        ["--data.help", "ImageNetDataModule"],
        ["--model.tokenizer.help"],
    ],
)
def test_all_options_can_be_seen_without_a_config(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", *flags])
    assert exit_info.value.code in (0, None)
    shown = capsys.readouterr().out
    assert 40 < len(shown.splitlines()) < 600
    assert "gradient_clip_val" not in shown


@pytest.mark.parametrize(
    ("flags", "options"),
    [(["--help", "all"], 80), (["--data.help", "ImageNetDataModule"], 15), (["--model.tokenizer.help"], 10)],
)
def test_each_option_is_explained_in_words_of_its_own(
    flags: list[str], options: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those that a docstring explains together; none in Lightning's words, none with all classes of torch."""
    with pytest.raises(SystemExit):
        main(["fit", *flags])
    shown = capsys.readouterr().out
    for word in (
        ":paramref:",
        "torch.nn",
        "torchmetrics",
        "Union[",
        "(type: ",
        "standardizes",
        "barebones",
        "__main__",
    ):
        assert word not in shown, word
    lines = [line for line in re.split(r"\n  (?=-)", shown) if "." in line.split()[0]]
    assert len(lines) >= options
    for option in lines:
        text = " ".join(option.split("\n\n")[0].split()[2:])
        assert len(text) > 8, option
        assert not text.startswith(("Of ", "Or ", "As ")), option  # sentences have a subject
