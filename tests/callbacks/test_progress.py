"""What a terminal shows while a training runs, and what it shows afterwards."""

import fcntl
import logging
import os
import pty
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar

from gsq_lightning import GSQTokenizer, TokenizerModule
from gsq_lightning.callbacks import StepProgressBar, progress
from gsq_lightning.callbacks.lightning_output import ParameterCount, replace_defaults
from gsq_lightning.callbacks.progress import Field, Speed, duration, fitting
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.metrics import ReconstructionMetrics

Build = Callable[..., GSQTokenizer]
FIELDS = [
    Field("epoch 3", "epoch 3"),
    Field("step 12345/50000", "step 12345/50000"),
    Field("1234 images/s", "1234 img/s"),
    Field("11:23:45 left", "11:23:45 left"),
    Field("reconstruction 0.0123", "rec 0.0123"),
    Field("perceptual 0.4567", "perc 0.4567"),
]


class Terminal:
    """A pseudo-terminal in place of stdout and stderr."""

    def __init__(self, columns: int) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
        attributes = termios.tcgetattr(slave)
        attributes[1] &= ~termios.OPOST  # newlines as they are written
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        self.stream: TextIO = os.fdopen(slave, "w", buffering=1)
        self.written = b""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self.master, 1 << 16):
                self.written += data
        except OSError:  # the other end was closed
            os.close(self.master)

    def take_output(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the test itself: pytest sets both streams between a fixture and its test."""
        monkeypatch.setattr(sys, "stdout", self.stream)
        monkeypatch.setattr(sys, "stderr", self.stream)

    def close(self) -> None:
        self.stream.close()
        self.reader.join()

    def shown(self) -> tuple[list[str], list[str]]:
        """Lines that stand on the screen in the end, and all that stood in its last line meanwhile."""
        lines, column, last = [""], 0, []
        for character in self.written.decode():
            if character == "\r":
                last.append(lines[-1].rstrip())
                column = 0
            elif character == "\n":
                lines.append("")
                column = 0
            else:
                lines[-1] = lines[-1][:column] + character + lines[-1][column + 1 :]
                column += 1
        return [line.rstrip() for line in lines], last


@pytest.fixture(params=[80, 0], ids=["80 columns", "columns unknown"])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    terminal = Terminal(request.param)
    monkeypatch.setattr(progress, "REFRESH", 0.0)
    yield terminal
    terminal.close()


def data(root: Path) -> ImageNetDataModule:
    return ImageNetDataModule(str(root), 16, global_batch_size=2, val_batch_size=4, num_workers=0)


def trainer(folder: Path, **settings: Any) -> Trainer:
    return Trainer(default_root_dir=folder, accelerator="cpu", logger=False, enable_checkpointing=False, **settings)


def test_a_training_shows_steps_of_all_steps_and_leaves_the_messages(
    small_tokenizer: Build, image_root: Path, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Trainer as anybody makes it: the bar comes with the module."""
    terminal.take_output(monkeypatch)
    handler = logging.StreamHandler()  # keeps the stderr of now, as Lightning's and those of other libraries
    other = logging.getLogger("another_library")
    other.addHandler(handler)

    class Talk(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            print("printed", trainer.global_step)
            other.warning("logged %d", trainer.global_step)
            sys.stderr.write(f"warned {trainer.global_step}\nin two parts, ")
            sys.stderr.write(f"of which this is {trainer.global_step}\n")

    module = TokenizerModule(small_tokenizer(), metrics=ReconstructionMetrics(["psnr"]))
    try:
        trainer(tmp_path, max_steps=4, callbacks=[Talk()]).fit(module, data(image_root))
    finally:
        other.removeHandler(handler)
    assert sys.stdout is terminal.stream
    assert handler.stream is terminal.stream
    print("afterwards")
    terminal.close()

    lines, last = terminal.shown()
    drawn = [line for line in last if "step " in line]
    assert list(dict.fromkeys(line.split("step ")[1].split()[0] for line in drawn)) == ["1/4", "2/4", "3/4", "4/4"]
    for text in ("epoch 0", "/s  ", "0:00 left", "rec", "quant"):
        assert text in drawn[-1], drawn[-1]
    assert max(map(len, last)) <= 79
    assert any("validation 1/" in line for line in last)
    for step in (1, 2, 3, 4):
        assert {f"printed {step}", f"logged {step}", f"warned {step}"} <= set(lines)
        assert f"in two parts, of which this is {step}" in lines
    assert "afterwards" in lines
    assert not [line for line in lines if "step 4/4" in line or "[#" in line]


def test_a_resumed_training_knows_its_end(
    small_tokenizer: Build, image_root: Path, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch, and where the end is given in epochs."""

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "middle.ckpt", weights_only=False)

    trainer(tmp_path, max_steps=2, callbacks=[Save()]).fit(TokenizerModule(small_tokenizer()), data(image_root))
    terminal.take_output(monkeypatch)
    trainer(tmp_path, max_epochs=3).fit(
        TokenizerModule(small_tokenizer()), data(image_root), ckpt_path=str(tmp_path / "middle.ckpt")
    )
    terminal.close()
    steps = [line for line in terminal.shown()[1] if "step " in line]
    per_epoch = -(-len(data_set(image_root)) // 2)
    assert f"step 3/{3 * per_epoch}" in steps[0]
    assert all(" left" in line for line in steps)
    assert f"step {3 * per_epoch}/{3 * per_epoch}" in steps[-1]


def data_set(root: Path) -> Any:
    images = data(root)
    images.setup("fit")
    return images.train_dataloader().dataset


def test_a_log_file_gets_a_line_now_and_then(
    small_tokenizer: Build,
    image_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "LOGGED_EVERY", 2)
    trainer(tmp_path, max_steps=4, limit_val_batches=0).fit(TokenizerModule(small_tokenizer()), data(image_root))
    lines = [line for line in capsys.readouterr().err.splitlines() if "step " in line]
    assert [line.split("  ")[1] for line in lines] == ["step 2/4", "step 4/4"]
    assert not [line for line in lines if "\r" in line]


def test_bars_and_summaries_with_options_of_their_own_stay(tmp_path: Path) -> None:
    mine = [TQDMProgressBar(refresh_rate=7), ModelSummary(max_depth=3)]
    kept = trainer(tmp_path, callbacks=list(mine))
    replace_defaults(kept)
    assert [one for one in kept.callbacks if one in mine] == mine  # type: ignore[attr-defined]
    plain = trainer(tmp_path)
    replace_defaults(plain)
    assert {StepProgressBar, ParameterCount} <= {type(one) for one in plain.callbacks}  # type: ignore[attr-defined]


def test_what_does_not_fit_is_shortened_before_it_is_left_out() -> None:
    assert fitting(FIELDS, 0.25, 200).startswith(
        "[" + "#" * 8 + "-" * 22 + "]  epoch 3  step 12345/50000  1234 images/s"
    )
    assert fitting(FIELDS, 0.25, 79) == "epoch 3  step 12345/50000  1234 img/s  11:23:45 left  rec 0.0123  perc 0.4567"
    assert fitting(FIELDS, 0.25, 39) == "epoch 3  step 12345/50000  1234 img/s"
    assert fitting(FIELDS, None, 4) == "epoc"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.4, "0:07"), (59.6, "1:00"), (3723, "1:02:03"), (47 * 3600, "47:00:00"), (3e5, "3 d 11 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_speed_leaves_the_time_of_validations_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    speed = Speed()
    speed.start()
    speed.add(30)
    now[0] = 2.0
    speed.stop()
    now[0] = 100.0
    speed.start()
    now[0] = 101.0
    assert speed.per_second() == 10.0
    speed.add(8)
    now[0] = 105.0
    assert speed.per_second() == 2.0
