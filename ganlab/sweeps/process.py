"""Runs in processes of their own: started, watched, signalled, and what is left of them.

A crash, a leak or a divergence stays in its process. Knows nothing of grids, of Hydra or of torch.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from ganlab.errors import Diverged, RunInUse
from ganlab.sweeps.watch import NONE, Vitals, Watch
from ganlab.system import signals
from ganlab.system.files import read_regular, write_atomic
from ganlab.system.paths import python_path
from ganlab.system.signals import SIGNALS, handled

_PYTHON = [sys.executable, "-P", "-m"]  # -P: a yaml.py in the working folder is not the library
COMMAND = [*_PYTHON, "ganlab", "train"]
PACK = [*_PYTHON, "ganlab.sweeps.packed"]  # and how many cells at once
POLL = 0.2  # seconds between looks at a running process
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
FINAL = frozenset({2, 3, 4})  # config, data or checkpoint at fault: another try would end the same


class ProcessResult(NamedTuple):
    """How a process ended: its exit code (128 + N if signal N killed it), seconds, and why if it failed."""

    code: int
    seconds: float
    error: str = ""


def run(
    command: Sequence[str],
    log: Path,
    *,
    cwd: str | Path,
    env: Mapping[str, str],
    asked: Callable[[], Sequence[int]],
    heard: Callable[[str], None] = lambda line: None,
    vitals: Vitals = NONE,
    keep: Sequence[int] = (),
) -> ProcessResult:
    """Run ``command``, its output added to ``log``, and return how it ended.

    ``asked()`` gives the signals to pass on, all so far; from the third on the process is killed. ``heard``
    gets each line that it says. ``keep``: descriptors that it holds too. Raises OSError if it can't start.
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
            env=_env(env, vitals),
            pass_fds=[*keep],
            start_new_session=True,  # a terminal's Ctrl-C must not reach it twice
        )
    watch = Watch(process, log, vitals)
    with open(log, "rb") as said:
        said.seek(start)
        while True:
            ended = watch.look(asked())
            for raw in said.readlines() if ended else _whole_lines(said):
                heard(raw.decode("utf-8", "replace").rstrip())
            if ended:
                break
            time.sleep(POLL)
    return ProcessResult(
        watch.code, time.monotonic() - began, watch.stalled or failure_reason(watch.code, log, start)
    )


def run_with_replies(
    command: Sequence[str],
    log: Path,
    *,
    cwd: str | Path,
    env: Mapping[str, str],
    asked: Callable[[], Sequence[int]],
    answer: Callable[[Mapping[str, Any]], str | None],
    vitals: Vitals = NONE,
) -> ProcessResult:
    """As ``run``, with a process that says JSON objects, one a line, on its stdout: ``answer`` hears each.

    What it returns goes to the process's stdin as a line. Its stderr goes to ``log``.
    """
    began = time.monotonic()
    with open(log, "ab") as file:
        start = os.fstat(file.fileno()).st_size
        process = subprocess.Popen(
            [*command],
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            env=_env(env, vitals),
            bufsize=0,  # or closing a dead process's stdin would try to write once more
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    watch, rest, open_ = Watch(process, log, vitals), b"", True
    with process.stdin, process.stdout:
        while not watch.look(asked()):
            if not open_:
                time.sleep(POLL)
            elif select.select([process.stdout], [], [], POLL)[0]:
                got = os.read(process.stdout.fileno(), 1 << 16)
                open_ = bool(got)  # nothing: it has ended, or closed its stdout
                rest = _answered(rest + got, process.stdin, answer)
                watch.heard += 1
        while open_ and select.select([process.stdout], [], [], POLL)[0]:  # its last words
            got = os.read(process.stdout.fileno(), 1 << 16)
            open_, rest = bool(got), _answered(rest + got, process.stdin, answer)
    return ProcessResult(
        watch.code, time.monotonic() - began, watch.stalled or failure_reason(watch.code, log, start)
    )


def _answered(said: bytes, stdin: IO[bytes], answer: Callable[[Mapping[str, Any]], str | None]) -> bytes:
    """Answer the whole lines; what is left of ``said``."""
    *lines, rest = said.split(b"\n")
    for line in lines:
        if (reply := answer(_event(line))) is not None:
            left = reply.encode() + b"\n"
            with contextlib.suppress(BrokenPipeError):  # it has ended: what it held is lost, and found so
                while left:
                    left = left[stdin.write(left) :]
    return rest


def _env(env: Mapping[str, str], vitals: Vitals) -> dict[str, str]:
    """With this ganlab's place and the heartbeat's file; a death in C tells in the log where."""
    own = {"PYTHONFAULTHANDLER": "1", **env, "PYTHONPATH": python_path(env)}
    return own | ({signals.VARIABLE: str(vitals.beat.absolute())} if vitals.beat else {})


def _event(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        return found if isinstance(found, dict) else {}
    return {}


def _whole_lines(file: Any) -> Iterator[bytes]:
    while True:
        here = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(here)
            return
        yield line


@contextlib.contextmanager
def forward_signals_to(note: Callable[[int], None]) -> Iterator[None]:
    """Inside, a signal that asks to stop calls ``note`` with its number instead (in the main thread)."""
    with handled(lambda signum, _: note(signum)):
        yield


def queued_again() -> bool:
    """Whether SLURM, which sent this job SIGTERM, will start it again: it was preempted, not cancelled.

    A job that ends within its time of grace has ended well, for SLURM: we have it queued again ourselves.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    try:
        show = ["scontrol", "show", "job", "-o", job]
        said = subprocess.run(show, capture_output=True, text=True, timeout=60, check=False).stdout
        facts = dict(word.partition("=")[::2] for word in said.split())
        if int(facts.get("Restarts") or 0) > int(os.environ.get("SLURM_RESTART_COUNT") or 0):
            return True
        if facts.get("PreemptTime", "None") == "None":
            return False
        return not subprocess.run(["scontrol", "requeue", job], timeout=60, check=False).returncode
    except (OSError, subprocess.SubprocessError, ValueError):
        return False


def state(code: int | None) -> str:
    """``finished``, ``diverged``, ``stopped``, ``failed``, ``pending``; ``elsewhere``: in use."""
    known = {0: "finished", Diverged.code: "diverged", RunInUse.code: "elsewhere", None: "pending"}
    return known.get(code) or ("stopped" if (code or 0) - 128 in SIGNALS else "failed")


def read_json_leniently(path: Path) -> dict[str, Any]:
    """A JSON object that may be written meanwhile, or be damaged: empty then."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(read_regular(path))
        return found if isinstance(found, dict) else {}
    return {}


def scores(folder: Path) -> str:
    """``fid 21.3 is 7.9`` of the last evaluation in a run folder, or nothing."""
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
        values = (read_json_leniently(folder / "result.json")["scores"].get("last") or {}).get("values") or {}
        return " ".join(f"{k} {v:.4g}" for k, v in values.items() if "_std" not in k and v is not None)
    return ""


def pack_size(result: Mapping[str, Any]) -> str:
    """How many runs shared the process of this one, itself included; nothing for a run alone."""
    found = result.get("packed")
    return str(found.get("runs", "")) if isinstance(found, dict) else ""


def failure_reason(code: int, log: Path, start: int = 0) -> str:
    """Why a process failed: its last one-line error after ``start`` bytes of its log, or how it died."""
    if code == 0:
        return ""
    if state(code) == "failed" and code > 128:
        with contextlib.suppress(ValueError):
            name = signal.Signals(code - 128).name
            return f"died of {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
    said = list[str]()
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(start)
        said = file.read().decode("utf-8", "replace").splitlines()
    errors = [s.partition("ganlab: error: ")[2] for s in said if "ganlab: error: " in s]
    if errors:
        return table_text(errors[-1].strip())
    words = next((f": {s.strip()}" for s in reversed(said) if s.strip()), "")
    return table_text(f"ended with exit code {code}{words[:200]}")


def table_text(value: Any) -> str:
    """As text for a table: nothing for None, and what would steer a terminal as question marks."""
    return "" if value is None else _CONTROL.sub("?", str(value))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV, atomically; what a spreadsheet would run as a formula is quoted."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(rows[0])
    for row in rows:
        cells = [table_text(v) for v in row.values()]
        writer.writerow(["'" + c if c.startswith(("=", "+", "-", "@")) else c for c in cells])
    write_atomic(path, text.getvalue().encode())


def print_table(title: str, heads: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows on the screen, cells folded where it is too narrow."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(table_text(v)) for v in row.values()))
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(table)


def print_failures(rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """A line on the screen for each row that failed: which, its own error, its exit code and its log."""
    for row in rows:
        if row["state"] == "failed":
            print_status(table_text(f"{row[name]}: {row['error']} (exit code {row['exit']}); {row['log']}"))


def print_status(text: str) -> None:
    """A line on stderr, whatever became of it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
