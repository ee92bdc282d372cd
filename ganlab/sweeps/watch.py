"""A process of a sweep under watch: signals passed on, an end to one that hangs, nothing of it left behind.

Progress is what the run itself shows: its heartbeat (``heartbeat.py``) or a word in its log. No torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

GRACE = 60.0  # seconds from a hanging process's SIGTERM to its SIGABRT, which writes where it hangs
LAST_GRACE = 10.0  # and from there to its SIGKILL
LEAP = 5.0  # seconds between two looks that count, at most: a machine asleep is no hanging cell


class Vitals(NamedTuple):
    """What tells that a process lives: its heartbeat file, and after how many seconds without (0: never)."""

    beat: Path | None = None
    stall_s: float = 0.0


NONE = Vitals()


class Watch:
    """One process, looked at again and again. ``stalled``: why it was ended, or nothing."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, vitals: Vitals = NONE) -> None:
        self.process, self.log, self.vitals = process, log, vitals
        self.passed = 0
        self.stalled = ""
        self.heard = 0  # the caller's count of other signs of life
        self._marks: Sequence[object] = ()
        self._looked = time.monotonic()
        self._still = 0.0  # seconds without a sign
        self._asked = 0  # signals that a hanging process has had
        if vitals.beat is not None:
            with contextlib.suppress(OSError):
                vitals.beat.touch()

    def look(self, signals: Sequence[int]) -> bool:
        """Pass on what has come since, the third time as SIGKILL; end what hangs. True: it has ended.

        Once it has, whatever it left behind in its session (data workers) is killed.
        """
        if self._ended():
            self._kill()  # before its number is free for another
            self.process.wait()
            return True
        for signum in signals[self.passed :]:
            self.passed += 1
            if self.passed > 2:
                self._kill()
            else:
                self.process.send_signal(signum)
        if self.vitals.stall_s:
            self._end_if_stalled()
        return False

    @property
    def code(self) -> int:
        """The exit code; 128 + N if signal N killed it."""
        code = self.process.returncode
        return 128 - code if code < 0 else code

    def _ended(self) -> bool:
        if self.process.returncode is None and hasattr(os, "waitid"):
            asked = os.WEXITED | os.WNOHANG | os.WNOWAIT  # not reaped yet
            return os.waitid(os.P_PID, self.process.pid, asked) is not None
        return self.process.poll() is not None

    def _end_if_stalled(self) -> None:
        now, marks = time.monotonic(), (_mtime(self.vitals.beat), _size(self.log), self.heard)
        same = marks == self._marks or self._asked > 0
        self._still = self._still + min(now - self._looked, LEAP) if same else 0.0
        self._looked, self._marks = now, marks
        limit = self.vitals.stall_s
        for count, (after, signum) in enumerate(
            [(limit, signal.SIGTERM), (limit + GRACE, signal.SIGABRT), (limit + GRACE + LAST_GRACE, None)]
        ):
            if self._asked == count and self._still >= after:
                self._asked += 1
                self.stalled = f"no progress for {limit / 60:g} minutes"
                if signum is None:
                    self._kill()
                else:
                    self.process.send_signal(signum)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _mtime(path: Path | None) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns if path else 0
    return 0


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
