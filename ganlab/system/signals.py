"""Signals ask a run to stop: it saves at its next step and exits 128 + N. A heartbeat file shows life."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from ganlab.errors import Stopped

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, n) for n in NAMES if hasattr(signal, n))
Agree = Callable[[int | None], int | None] | None


class Interrupted(KeyboardInterrupt):
    """A signal ends a command that has nothing to save. No ``except Exception`` on the way swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Inside, ``handler(signum, frame)`` hears of ``SIGNALS``, but for those ignored; then the old ones do.

    Off the main thread, where Python has no signals, it does nothing.
    """
    old: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                old[signum] = signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, before in old.items():
            with contextlib.suppress(TypeError, ValueError):  # None: a handler that Python did not install
                signal.signal(signum, before)


def interrupting() -> contextlib.AbstractContextManager[None]:
    """Inside, each signal raises Interrupted, as Ctrl-C does anyway: clean-up runs, nothing is saved."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    return handled(interrupt)


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
        self._handling: contextlib.AbstractContextManager[None] | None = None

    def __enter__(self) -> StopFlag:
        self._handling = handled(self._handle)
        self._handling.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handling is not None:
            self._handling.__exit__(None, None, None)
        self._handling = None

    def training_started(self, agree: Agree = None) -> None:
        """From now on there is something to save. Raises Stopped if a signal came before."""
        self._training = True
        self.poll(agree)

    def poll(self, agree: Agree = None) -> None:
        """Raises Stopped if a signal has come; again at each call. A sign of life (``heartbeat.py``).

        ``agree``: makes one answer of the signals, or None, that the ranks of a run have heard.
        """
        beat()
        signum = agree(self.signum) if agree else self.signum
        if signum is not None:  # one that came meanwhile is for the next call
            self.signum = signum
            what = "stopped" if self._training else "stopped before training began"
            raise Stopped(signum, what, "the same command continues the run")

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum  # the first one is the exit code
        self._num_interrupts += signum == signal.SIGINT
        if self._num_interrupts > 1:
            raise KeyboardInterrupt
        if not self._training:
            self.poll()


VARIABLE = "GANLAB_HEARTBEAT"
EVERY = 1.0  # seconds between touches, at least
_last = 0.0


def beat() -> None:
    """Touch the file, if there is one and the last touch is long enough ago. Raises nothing."""
    global _last
    path = os.environ.get(VARIABLE)
    if not path or (now := time.monotonic()) - _last < EVERY:
        return
    _last = now
    with contextlib.suppress(OSError):  # a sweep's folder may be gone: the run goes on
        os.utime(path)
