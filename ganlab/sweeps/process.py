"""Subprocesses of a sweep: start them, forward signals, report how they ended; tables of the results.

A crash, a leak or a divergence stays in its process. Imports no Hydra and no torch.
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
from ganlab.sweeps.watch import NO_LIVENESS, Liveness, Watchdog
from ganlab.system.files import read_regular
from ganlab.system.paths import python_path
from ganlab.system.signals import SIGNALS, VARIABLE
from ganlab.text import clean

# -P: a yaml.py in the working folder must not shadow the library
COMMAND = [sys.executable, "-P", "-m", "ganlab", "train"]
POLL = 0.2  # seconds between polls of a running process
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
    liveness: Liveness = NO_LIVENESS,
    pass_fds: Sequence[int] = (),
) -> ProcessResult:
    """Run ``command``, append its output to ``log``, and return how it ended.

    ``signals()``: all signals so far; two are forwarded, the third kills the process. ``pass_fds``: file
    descriptors to inherit. Raises OSError if the process can't start.
    """
    began = time.monotonic()
    with open(log, "ab") as file:
        start = os.fstat(file.fileno()).st_size
        process = subprocess.Popen(
            [*command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_env(env, liveness),
            pass_fds=[*pass_fds],
            start_new_session=True,  # a terminal's Ctrl-C must not reach it twice
        )
    watchdog = Watchdog(process, log, liveness)
    while not watchdog.poll(signals()):
        time.sleep(POLL)
    reason = watchdog.stall_reason or failure_reason(watchdog.code, log, start)
    return ProcessResult(watchdog.code, time.monotonic() - began, reason)


def _env(env: Mapping[str, str], liveness: Liveness) -> dict[str, str]:
    """``env`` with ganlab's PYTHONPATH, the heartbeat file, and tracebacks of crashes in C."""
    own = {"PYTHONFAULTHANDLER": "1", **env, "PYTHONPATH": python_path(env)}
    return own | ({VARIABLE: str(liveness.heartbeat.absolute())} if liveness.heartbeat else {})


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
