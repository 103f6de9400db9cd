"""The progress of a run: one line at the bottom of a terminal, or a line now and then in a log file."""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from gsq_lightning.pixels import image_of

REFRESH = 0.2  # seconds between two drawings of the line; values are read from the device only then
LOGGED_EVERY = 100  # batches between two lines in a log file
SMOOTHING = 0.3  # weight of the newest measurement of the speed
USUAL_WIDTH = 80  # columns, where a terminal does not say
BAR = range(8, 31)  # characters
# the first two of these that there are, under their long and short names
SHOWN_LOSSES = {
    "reconstruction": "rec",
    "perceptual": "perc",
    "adversarial": "adv",
    "discriminator": "disc",
    "quantizer": "quant",
}


class Field(NamedTuple):
    """A text of the line, for wide and for narrow terminals."""

    long: str
    short: str


class Speed:
    """Counts images and the time in which they were seen, without the time of validations."""

    def __init__(self) -> None:
        self._images = 0
        self._seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        self.stop()
        self._since = time.monotonic()

    def stop(self) -> None:
        if self._since is not None:
            self._seconds += time.monotonic() - self._since
            self._since = None

    def add(self, images: int) -> None:
        self._images += images

    def per_second(self) -> float:
        """Images per second since the last call; 0 where nothing was counted."""
        if self._since is not None:
            self.start()
        speed = self._images / self._seconds if self._seconds > 0 else 0.0
        self._images, self._seconds = 0, 0.0
        return speed


class StepProgressBar(ProgressBar):
    """Epoch, step of all steps, images per second, time left and two losses, in one line that fits the terminal.

    Messages and results stand above the line. It is gone when training ends. Where stderr is no terminal, such a line
    is printed every 100 batches. Losses are read at most five times a second, so that steps do not wait for them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._line: StatusLine | None = None
        self._drawn = 0.0  # when
        self._speed = Speed()
        self._images = 0  # of the stage at hand
        self._images_per_second = 0.0
        self._interrupted = (0, 0.0)  # both, of the training that a validation interrupts
        self._first_step = 0

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False
        self._close()

    # ---------------------------------------------------------------------------------------------- stages

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_stage()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._count(trainer, batch)
        step, steps = trainer.global_step, steps_in_all(trainer, getattr(pl_module, "accumulate_batches", 1))

        def fields() -> list[Field]:
            per_step = self._images / max(step - self._first_step, 1)
            left = None if steps is None else (steps - step) * per_step
            return [
                same(f"epoch {trainer.current_epoch}"),
                same(f"step {step}" if steps is None else f"step {step}/{steps}"),
                *self._pace(left),
                *loss_fields(trainer.callback_metrics),
            ]

        self._show(fields, step / steps if steps else None, batch_idx + 1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._speed.stop()
        if trainer.state.fn == "fit":
            self._interrupted = self._images, self._images_per_second
        self._start_stage()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(trainer, batch)
        name, of_loaders = batches_of(trainer)
        batches, done = of_loaders[dataloader_idx], batch_idx + 1
        known = batches < math.inf

        def fields() -> list[Field]:
            place = f"{name} {done}/{int(batches)} batches" if known else f"{name} {done} batches"
            return [same(place), *self._pace((batches - done) * self._images / done if known else None)]

        self._show(fields, done / batches if known else None, done)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._close()
            return
        self._speed.per_second()
        self._speed.start()
        self._images, self._images_per_second = self._interrupted

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_stage()

    on_predict_start = on_test_start

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    on_predict_end = on_train_end = on_test_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    # ------------------------------------------------------------------------------------------------ drawing

    def _start_stage(self) -> None:
        self._images, self._images_per_second = 0, 0.0
        self._speed.per_second()
        self._speed.start()

    def _count(self, trainer: Trainer, batch: Any) -> None:
        images = len(image_of(batch)) * trainer.world_size
        self._images += images
        self._speed.add(images)

    def _pace(self, images_left: float | None) -> list[Field]:
        """Images per second and the time left, where they are known."""
        newest = self._speed.per_second()
        weight = SMOOTHING if self._images_per_second else 1.0
        self._images_per_second += weight * (newest - self._images_per_second)
        if self._images_per_second <= 0:
            return []
        speed = f"{self._images_per_second:.{0 if self._images_per_second >= 10 else 1}f}"
        pace = [Field(f"{speed} images/s", f"{speed} img/s")]
        if images_left is not None:
            pace.append(same(f"{duration(images_left / self._images_per_second)} left"))
        return pace

    def _show(self, fields: Callable[[], list[Field]], share: float | None, batches: int) -> None:
        if not self._enabled:
            return
        if self._line is None and not sys.stderr.isatty():
            if batches % LOGGED_EVERY == 0:
                print("  ".join(field.long for field in fields()), file=sys.stderr, flush=True)
            return
        now = time.monotonic()
        if now - self._drawn < REFRESH:
            return
        if self._line is None:
            self._line = StatusLine(sys.stderr)
        self._drawn = now
        self._line.show(fitting(fields(), share, self._line.width - 1))  # the last column may wrap

    def _close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line, self._drawn = None, 0.0


def batches_of(trainer: Trainer) -> tuple[str, list[int | float]]:
    """What the Trainer goes over outside of training: its name, and how many batches each loader has."""
    if trainer.testing:
        return "test", trainer.num_test_batches
    if trainer.predicting:
        return "prediction", trainer.num_predict_batches
    if trainer.sanity_checking:
        return "trying validation", trainer.num_sanity_val_batches
    return "validation", trainer.num_val_batches


def steps_in_all(trainer: Trainer, accumulate_batches: int) -> int | None:
    """Steps at which training ends, where that is known."""
    ends = [trainer.max_steps] if trainer.max_steps > 0 else []
    if (trainer.max_epochs or -1) > 0 and trainer.num_training_batches < math.inf:
        ends.append(int(trainer.max_epochs * math.ceil(trainer.num_training_batches / accumulate_batches)))  # type: ignore[operator]
    return min(ends, default=None)


def loss_fields(metrics: Mapping[str, Any]) -> list[Field]:
    """The first two losses that were logged."""
    there = [(name, short) for name, short in SHOWN_LOSSES.items() if f"train/loss_{name}" in metrics][:2]
    values = [f"{float(metrics[f'train/loss_{name}']):.4f}"[:6] for name, _ in there]
    return [Field(f"{name} {value}", f"{short} {value}") for (name, short), value in zip(there, values, strict=True)]


def same(text: str) -> Field:
    """A field that is the same in wide and in narrow terminals."""
    return Field(text, text)


def fitting(fields: list[Field], share: float | None, width: int) -> str:
    """The fields in one line, with a bar where there is room for it; the last ones are left out where there is none.

    Args:
        fields: from the first on.
        share: of the work that is done, in [0, 1], where that is known.
        width: columns.
    """
    for form in (0, 1):
        text = "  ".join(field[form] for field in fields)
        room = min(width - len(text) - 4, BAR.stop - 1)
        if room >= BAR.start and share is not None:
            done = round(share * room)
            return f"[{'#' * done}{'-' * (room - done)}]  {text}"
        if len(text) <= width:
            return text
    return fitting(fields[:-1], share, width) if len(fields) > 1 else text[:width]


def duration(seconds: float) -> str:
    """Such as 0:07, 1:02:03, or 3 d 4 h."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# ---------------------------------------------------------------------------------------------- the terminal


class StatusLine:
    """A line at the bottom of a terminal; what is printed, warned of or logged meanwhile stands above it.

    Args:
        terminal: stderr, or what stands for it.
    """

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        # tqdm draws nothing in a terminal that does not say its size, and lines that we shorten need no cutting
        self._line = _Line(bar_format="{desc}", file=terminal, leave=False, ncols=sys.maxsize, nrows=2)
        self._streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
        self._above = {id(stream): _Above(stream, terminal) for stream in self._streams.values()}
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
        for name, stream in self._streams.items():
            setattr(sys, name, self._above[id(stream)])
        for handler in stream_handlers():  # which keep the stream that there was when they were made
            if id(handler.stream) in self._above:
                self._handlers.append((handler, handler.stream))
                handler.setStream(self._above[id(handler.stream)])

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        try:
            width = os.get_terminal_size(self._terminal.fileno()).columns
        except (OSError, ValueError):
            width = 0
        return width or USUAL_WIDTH

    def show(self, text: str) -> None:
        self._line.set_description_str(text)

    def close(self) -> None:
        """Removes the line, and lets messages go where they went before."""
        self._line.close()
        for name, stream in self._streams.items():
            if getattr(sys, name) is self._above[id(stream)]:
                setattr(sys, name, stream)
        for handler, stream in self._handlers:
            handler.setStream(stream)
        for above in self._above.values():
            above.end()


class _Line(tqdm):
    monitor_interval = 0  # no thread, whose locks a forked worker would inherit


class _Above:
    """A stream whose whole lines are written above a line of tqdm's in the terminal."""

    def __init__(self, stream: TextIO, terminal: TextIO) -> None:
        self._stream = stream
        self._terminal = terminal
        self._held = ""

    def write(self, text: str) -> int:
        whole, newline, self._held = (self._held + text).rpartition("\n")
        if newline:
            with _Line.external_write_mode(file=self._terminal):
                self._stream.write(whole + newline)
                self._stream.flush()
        return len(text)

    def end(self) -> None:
        """Writes what had no end of line yet."""
        self._stream.write(self._held)
        self._held = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def stream_handlers() -> list["logging.StreamHandler[Any]"]:
    """Of all loggers that there are."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = [handler for one in loggers if isinstance(one, logging.Logger) for handler in one.handlers]
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]
