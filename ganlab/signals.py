"""SIGINT, SIGTERM and SIGUSR1 ask a run to stop: it saves at its next step and exits 128 + N. No torch."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from ganlab.errors import Stopped

SIGNALS = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, n))


class StopFlag:
    """A context manager: inside it the handlers only raise a flag, which every loop asks for with ``poll``.

    Before `training_started` there is nothing to save, and the handler raises Stopped at once. A second
    SIGINT raises KeyboardInterrupt at once. Save inside the ``with``: a save is not interrupted then.
    The old handlers come back at the end. Off the main thread, where Python has no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._training = False
        self._num_interrupts = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                self._old[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, old in self._old.items():
            with contextlib.suppress(TypeError, ValueError):  # None: a handler that Python did not install
                signal.signal(signum, old)
        self._old.clear()

    def training_started(self) -> None:
        """From now on there is something to save. Raises Stopped if a signal came before."""
        self._training = True
        self.poll()

    def poll(self) -> None:
        """Raises Stopped if a signal has come; again at each call."""
        if self.signum is not None:
            what = "stopped" if self._training else "stopped before training began"
            raise Stopped(self.signum, what, "the same command continues the run")

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum  # the first one is the exit code
        self._num_interrupts += signum == signal.SIGINT
        if self._num_interrupts > 1:
            raise KeyboardInterrupt
        if not self._training:
            self.poll()
