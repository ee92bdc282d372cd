"""Watchdog of a sweep's subprocess: forwards signals, terminates it if it hangs, kills what it leaves.

Signs of progress are the run's heartbeat file (``system/signals.py``) and its growing log. Imports no torch.
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

GRACE = 60.0  # seconds from SIGTERM of a hanging process to SIGABRT, which writes its traceback
LAST_GRACE = 10.0  # and from there to SIGKILL
MAX_INTERVAL = 5.0  # seconds that one poll may count for: a suspended machine is not a hanging cell


class Liveness(NamedTuple):
    """How to tell that a process is alive: its heartbeat file, and the seconds it may stall (0: no limit)."""

    heartbeat: Path | None = None
    stall_s: float = 0.0


NO_LIVENESS = Liveness()


class Watchdog:
    """Watches one process. ``stall_reason``: why it was terminated, or an empty string."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, liveness: Liveness = NO_LIVENESS) -> None:
        self.process, self.log, self.liveness = process, log, liveness
        self.num_forwarded = 0
        self.stall_reason = ""
        self._marks: Sequence[object] = ()
        self._polled = time.monotonic()
        self._idle_s = 0.0
        self._num_kills = 0  # signals sent because the process hangs
        if liveness.heartbeat is not None:
            with contextlib.suppress(OSError):
                liveness.heartbeat.touch()

    def poll(self, signals: Sequence[int]) -> bool:
        """Forward new signals, the third as SIGKILL; terminate a hanging process. True: it has ended.

        Once it has, the rest of its session (data workers) is killed.
        """
        if self._has_ended():
            self._kill()  # before its process group's number can be reused
            self.process.wait()
            return True
        for signum in signals[self.num_forwarded :]:
            self.num_forwarded += 1
            if self.num_forwarded > 2:
                self._kill()
            else:
                self.process.send_signal(signum)
        if self.liveness.stall_s:
            self._end_if_stalled()
        return False

    @property
    def code(self) -> int:
        """The exit code; 128 + N if signal N killed it."""
        code = self.process.returncode
        return 128 - code if code < 0 else code

    def _has_ended(self) -> bool:
        if self.process.returncode is None and hasattr(os, "waitid"):
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT  # without reaping it
            return os.waitid(os.P_PID, self.process.pid, options) is not None
        return self.process.poll() is not None

    def _end_if_stalled(self) -> None:
        now = time.monotonic()
        marks = (_mtime(self.liveness.heartbeat), _size(self.log))
        idle = marks == self._marks or self._num_kills > 0
        self._idle_s = self._idle_s + min(now - self._polled, MAX_INTERVAL) if idle else 0.0
        self._polled, self._marks = now, marks
        limit = self.liveness.stall_s
        for count, (after, signum) in enumerate(
            [(limit, signal.SIGTERM), (limit + GRACE, signal.SIGABRT), (limit + GRACE + LAST_GRACE, None)]
        ):
            if self._num_kills == count and self._idle_s >= after:
                self._num_kills += 1
                self.stall_reason = f"no progress for {limit / 60:g} minutes"
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
