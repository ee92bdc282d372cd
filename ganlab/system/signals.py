"""Stop signals: a run saves at its next step and exits with 128 + N. Also the heartbeat file of a run."""

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
    """A signal ends a command that has nothing to save. Not an Exception, so that nothing swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Inside, ``handler(signum, frame)`` handles ``SIGNALS``, except ignored ones; restores the old ones.

    Does nothing off the main thread, where Python can't set handlers.
    """
    with restored() as handlers:
        for signum, original in handlers.items():
            if original is not signal.SIG_IGN:
                signal.signal(signum, handler)
        yield


@contextlib.contextmanager
def restored() -> Iterator[dict[int, Any]]:
    """At the end, ``SIGNALS`` have the handlers that they had before; yields those (none off the main one).

    Whatever a library has set inside is undone.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS if is_main}
    try:
        yield handlers
    finally:
        for signum, handler in handlers.items():
            with contextlib.suppress(TypeError, ValueError):  # None: not installed by Python
                signal.signal(signum, handler)


def interrupting() -> contextlib.AbstractContextManager[None]:
    """Inside, each stop signal raises Interrupted, so that clean-up runs as after Ctrl-C."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    return handled(interrupt)


class StopFlag:
    """A context manager whose signal handlers only set a flag, which loops check with ``poll``.

    Before `training_started` there is nothing to save, and the handler raises Stopped at once. A second
    SIGINT raises KeyboardInterrupt at once. Save inside the ``with``, so that a save is not interrupted.
    The old handlers are restored at the end. Does nothing off the main thread.
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
        """Only set the flag from now on. Raises Stopped if a signal arrived before."""
        self._training = True
        self.poll(agree)

    def poll(self, agree: Agree = None) -> None:
        """Raise Stopped if a signal has arrived, at each call; touch the heartbeat file.

        ``agree``: combines the signals (or None) of all ranks of a run into one.
        """
        beat()
        signum = agree(self.signum) if agree else self.signum
        if signum is not None:  # a signal that arrives in between is handled by the next call
            self.signum = signum
            what = "stopped" if self._training else "stopped before training began"
            raise Stopped(signum, what, "the same command continues the run")

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum  # the first one decides the exit code
        self._num_interrupts += signum == signal.SIGINT
        if self._num_interrupts > 1:
            raise KeyboardInterrupt
        if not self._training:
            self.poll()


VARIABLE = "GANLAB_HEARTBEAT"
EVERY = 1.0  # minimum seconds between touches
_last = 0.0


def beat() -> None:
    """Touch the heartbeat file, if there is one and the last touch is long enough ago. Raises nothing."""
    global _last
    path = os.environ.get(VARIABLE)
    if not path or (now := time.monotonic()) - _last < EVERY:
        return
    _last = now
    with contextlib.suppress(OSError):  # the run continues even if the sweep's folder was deleted
        os.utime(path)
