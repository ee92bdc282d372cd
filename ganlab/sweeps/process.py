"""Subprocesses of a sweep: start them, forward signals, end those that hang, report how they ended.

A crash, a leak or a divergence stays in its process. Signs of progress are the run's heartbeat file
(``system/signals.py``) and its growing log. Imports no Hydra and no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ganlab.errors import Diverged, RunInUse
from ganlab.system.files import read_regular
from ganlab.system.paths import python_path
from ganlab.system.signals import SIGNALS, VARIABLE
from ganlab.text import clean

# -P: a yaml.py in the working folder must not shadow the library
COMMAND = [sys.executable, "-P", "-m", "ganlab", "train"]
POLL = 0.2  # seconds between polls of a running process
GRACE = 60.0  # seconds from SIGTERM of a hanging process to SIGABRT, which writes its traceback
LAST_GRACE = 10.0  # and from there to SIGKILL
MAX_INTERVAL = 5.0  # seconds that one poll may count for: a suspended machine is not a hanging cell
FINAL = frozenset({2, 3, 4})  # exit codes of config, data and checkpoint errors, which a retry can't mend


class ProcessResult(NamedTuple):
    """Exit code of a process (128 + N if signal N killed it), seconds, and the reason if it failed."""

    code: int
    seconds: float
    error: str = ""


def run(
    command: Sequence[str],
    log: Path,
    *,
    cwd: str | Path,
    env: Mapping[str, str],
    signals: Callable[[], Sequence[int]],
    heartbeat: Path | None = None,
    stall_s: float = 0.0,
    pass_fds: Sequence[int] = (),
) -> ProcessResult:
    """Run ``command``, append its output to ``log``, and return how it ended.

    ``signals()``: all signals so far; two are forwarded, the third kills the process. ``heartbeat``,
    ``stall_s``: see ``Watchdog``. ``pass_fds``: file descriptors to inherit. Raises OSError if the process
    can't start.
    """
    began = time.monotonic()
    own = {"PYTHONFAULTHANDLER": "1", **env, "PYTHONPATH": python_path(env)}  # tracebacks of crashes in C
    if heartbeat is not None:
        own[VARIABLE] = str(heartbeat.absolute())
    with open(log, "ab") as file:
        start = os.fstat(file.fileno()).st_size
        process = subprocess.Popen(
            [*command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=own,
            pass_fds=[*pass_fds],
            start_new_session=True,  # a terminal's Ctrl-C must not reach it twice
        )
    watchdog = Watchdog(process, log, heartbeat, stall_s)
    while not watchdog.poll(signals()):
        time.sleep(POLL)
    reason = watchdog.stall_reason or failure_reason(watchdog.code, log, start)
    return ProcessResult(watchdog.code, time.monotonic() - began, reason)


class Watchdog:
    """Watches one process: its heartbeat file and log may stall for ``stall_s`` seconds (0: no limit).

    ``stall_reason``: why it was terminated, or an empty string.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], log: Path, heartbeat: Path | None = None, stall_s: float = 0.0
    ) -> None:
        self.process, self.stall_s, self.stall_reason = process, stall_s, ""
        self._signs = [path for path in (heartbeat, log) if path]
        self._marks: list[tuple[int, int]] = []
        self._polled, self._idle_s = time.monotonic(), 0.0
        self._num_forwarded = 0
        self._num_kills = 0  # signals sent because the process hangs
        if heartbeat is not None:
            with contextlib.suppress(OSError):
                heartbeat.touch()

    def poll(self, signals: Sequence[int]) -> bool:
        """Forward new signals, the third as SIGKILL; terminate a hanging process. True: it has ended.

        Once it has, the rest of its session (data workers) is killed.
        """
        if self._has_ended():
            self._kill()  # before its process group's number can be reused
            self.process.wait()
            return True
        for signum in signals[self._num_forwarded :]:
            self._num_forwarded += 1
            if self._num_forwarded > 2:
                self._kill()
            else:
                self.process.send_signal(signum)
        if self.stall_s:
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
        now, marks = time.monotonic(), [stamp(path) for path in self._signs]
        idle = marks == self._marks or self._num_kills > 0
        self._idle_s = self._idle_s + min(now - self._polled, MAX_INTERVAL) if idle else 0.0
        self._polled, self._marks = now, marks
        limits = (self.stall_s, self.stall_s + GRACE, self.stall_s + GRACE + LAST_GRACE)
        if self._num_kills < len(limits) and self._idle_s >= limits[self._num_kills]:
            self.stall_reason = f"no progress for {self.stall_s / 60:g} minutes"
            if self._num_kills == 2:
                self._kill()
            else:
                self.process.send_signal((signal.SIGTERM, signal.SIGABRT)[self._num_kills])
            self._num_kills += 1

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def stamp(path: Path) -> tuple[int, int]:
    """Time and size of a file, which change as it grows or is touched; zeros without one."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    return 0, 0


def will_be_requeued() -> bool:
    """Whether SLURM, which sent this job SIGTERM, will start it again: it was preempted, not canceled.

    SLURM counts a job that ends within its grace time as completed, so it is requeued here.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    try:
        show = ["scontrol", "show", "job", "-o", job]
        output = subprocess.run(show, capture_output=True, text=True, timeout=60, check=False).stdout
        record = dict(word.partition("=")[::2] for word in output.split())
        if int(record.get("Restarts") or 0) > int(os.environ.get("SLURM_RESTART_COUNT") or 0):
            return True
        if record.get("PreemptTime", "None") == "None":
            return False
        return not subprocess.run(["scontrol", "requeue", job], timeout=60, check=False).returncode
    except (OSError, subprocess.SubprocessError, ValueError):
        return False


def state_of_code(code: int) -> str:
    """State of a run by its exit code: finished, diverged, stopped, failed, or elsewhere (in use)."""
    states = {0: "finished", Diverged.code: "diverged", RunInUse.code: "elsewhere"}
    return states.get(code) or ("stopped" if code - 128 in SIGNALS else "failed")


def read_json_leniently(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it is missing, incomplete or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(read_regular(path))
        return content if isinstance(content, dict) else {}
    return {}


def format_scores(folder: Path) -> str:
    """``fid 21.3 is 7.9``: the last scores of a run folder, or an empty string."""
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
        values = (read_json_leniently(folder / "result.json")["scores"].get("last") or {}).get("values") or {}
        return " ".join(f"{k} {v:.4g}" for k, v in values.items() if "_std" not in k and v is not None)
    return ""


def failure_reason(code: int, log: Path, start: int = 0) -> str:
    """Why a process failed: the last error line after ``start`` bytes of its log, or signal or exit code."""
    if code == 0:
        return ""
    if state_of_code(code) == "failed" and code > 128:
        with contextlib.suppress(ValueError):
            name = signal.Signals(code - 128).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    lines = list[str]()
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", "replace").splitlines()
    errors = [s.partition("ganlab: error: ")[2] for s in lines if "ganlab: error: " in s]
    if errors:
        return clean(errors[-1].strip(), 500)
    last = next((f": {s.strip()}" for s in reversed(lines) if s.strip()), "")
    return clean(f"exit code {code}{last[:200]}", 500)


def print_status(text: str) -> None:
    """Print a line to stderr, ignoring errors."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
