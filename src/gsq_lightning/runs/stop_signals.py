"""Signals that ask a run to stop, noted until it is at a place where it can be resumed."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from gsq_lightning.errors import RunStopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Takes SIGTERM and SIGINT, and what a cluster sends before it requeues a job, for the time of a training.

    The second SIGINT is obeyed at once.

    Attributes:
        received: the first signal that asked to stop, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._requeue: Any = None

    def take_at_once(self) -> None:
        """Installs handlers that raise RunStopped where they are: for what has no state to keep."""
        self._install(SIGNALS, self._stop)

    def take(self, requeue_signal: signal.Signals | None = None) -> None:
        """Installs handlers that note what comes.

        Args:
            requeue_signal: what the cluster sends; what handled it before is called by `requeue`.
        """
        if requeue_signal is None:
            self._install(SIGNALS, self._note)
        elif self._install((*SIGNALS, requeue_signal), self._note):
            self._requeue = self._before[requeue_signal]

    def give_back(self) -> None:
        """Installs what handled the signals before."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def requeue(self) -> None:
        """Does what the cluster's plugin does upon its signal, if that is what came."""
        if self.received is not None and self.received not in SIGNALS and callable(self._requeue):
            self._requeue(self.received, None)

    def _install(self, numbers: tuple[signal.Signals, ...], handler: Any) -> bool:
        """Whether it was done: not outside the main thread, which alone may, and not twice."""
        if threading.current_thread() is not threading.main_thread() or self._before:
            return False
        self.received = None
        self._before = {number: signal.signal(number, handler) for number in numbers}
        return True

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
