"""Signals that ask a run to stop; they are recorded, and obeyed after the step at hand."""

import logging
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

from gsq_lightning.errors import RunStopped

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Handles SIGTERM and SIGINT during a training, and the signal that a cluster sends before it preempts a job.

    A second SIGINT stops at once.

    Attributes:
        received: the first signal that asked to stop, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install_immediate(self) -> None:
        """Installs handlers that raise RunStopped at once: for validation, test and prediction."""
        self._set_handlers(SIGNALS, self._stop)

    def install(self, requeue_signal: signal.Signals | None = None) -> None:
        """Installs handlers that record the first signal.

        Args:
            requeue_signal: sent by the cluster before it preempts a job that may be requeued.
        """
        self._set_handlers(SIGNALS if requeue_signal is None else (*SIGNALS, requeue_signal), self._note)

    def restore(self) -> None:
        """Restores the handlers that were installed before."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def requeue(self) -> None:
        """Asks SLURM to start the job again, if its signal is what came. Lightning's own handler does that as well, but
        leaves a checkpoint of its own behind, which later restarts would prefer to a newer `last.ckpt`."""
        if self.received is None or self.received in SIGNALS:
            return
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
        try:
            subprocess.run(["scontrol", "requeue", job], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            logger.error("the job %s could not be requeued: %s; start it again by hand", job, error)

    def _set_handlers(self, numbers: tuple[signal.Signals, ...], handler: Any) -> None:
        """Does nothing outside the main thread, where Python allows no handlers, or when installed already."""
        if threading.current_thread() is not threading.main_thread() or self._before:
            return
        self.received = None
        self._before = {number: signal.signal(number, handler) for number in numbers}

    def _stop(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        raise RunStopped(f"stopped by {name} before the end; files that were written are whole", number, agreed=False)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)
            # not print, which may be in the middle of printing
            os.write(2, f"\n{self.received.name}: stopping after this step, with a checkpoint\n".encode())
