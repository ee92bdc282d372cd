"""Runs in processes of their own: started, watched, signalled, and what is left of them.

A crash, a leak or a divergence stays in its process. Knows nothing of grids, of Hydra or of torch.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ganlab.disk import write_atomic
from ganlab.errors import Diverged, RunInUse
from ganlab.signals import SIGNALS, handled

COMMAND = [sys.executable, "-m", "ganlab", "train"]
PACK = [sys.executable, "-m", "ganlab.pack"]  # and how many cells at once
STOPPED = frozenset(128 + number for number in SIGNALS)  # exit codes
POLL = 0.2  # seconds between looks at a running process
STATES = {0: "finished", Diverged.code: "diverged", RunInUse.code: "elsewhere", None: "pending"}


def run(
    command: Sequence[str],
    log: Path,
    *,
    cwd: str | Path,
    env: Mapping[str, str],
    asked: Callable[[], list[int]],
    heard: Callable[[str], None] = lambda line: None,
) -> int:
    """Run ``command``, its output to ``log``, and return its exit code (128 + N if signal N killed it).

    ``asked()`` gives the signals to pass on, all so far; from the third on the process is killed. ``heard``
    gets each line that it says.
    """
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [*command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,  # a terminal's Ctrl-C must not reach it twice
        )
    passed = 0
    with open(log, "rb") as said:
        while True:
            ended = process.poll() is not None
            for raw in said.readlines() if ended else _whole_lines(said):
                heard(raw.decode("utf-8", "replace").rstrip())
            if ended:
                break
            passed = _pass_on(process, asked(), passed)
            time.sleep(POLL)
    return _code(process)


def converse(
    command: Sequence[str],
    log: Path,
    *,
    cwd: str | Path,
    env: Mapping[str, str],
    asked: Callable[[], list[int]],
    answer: Callable[[Mapping[str, Any]], str | None],
) -> int:
    """As ``run``, with a process that says JSON objects, one a line, on its stdout: ``answer`` hears each.

    What it returns goes to the process's stdin as a line. Its stderr goes to ``log``.
    """
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [*command],
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            env=dict(env),
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    passed, rest, open_ = 0, b"", True
    with process.stdin, process.stdout:
        while open_:
            if select.select([process.stdout], [], [], POLL)[0]:
                got = os.read(process.stdout.fileno(), 1 << 16)
                open_ = bool(got)  # nothing: it has ended, or closed its stdout
                *lines, rest = (rest + got).split(b"\n")
                for line in lines:
                    if (reply := answer(_event(line))) is not None:
                        with contextlib.suppress(BrokenPipeError):
                            process.stdin.write(reply.encode() + b"\n")
                            process.stdin.flush()
            passed = _pass_on(process, asked(), passed)
        while process.poll() is None:
            passed = _pass_on(process, asked(), passed)
            time.sleep(POLL)
    return _code(process)


def _event(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        return found if isinstance(found, dict) else {}
    return {}


def _pass_on(process: subprocess.Popen[bytes], signals: Sequence[int], passed: int) -> int:
    """Send what has come since ``passed`` signals; how many there are now. The third kills."""
    for count, signum in enumerate(signals[passed:], passed + 1):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL if count > 2 else signum)
    return len(signals)


def _code(process: subprocess.Popen[bytes]) -> int:
    code = process.returncode
    return 128 - code if code < 0 else code


def _whole_lines(file: Any) -> Iterator[bytes]:
    while True:
        here = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(here)
            return
        yield line


@contextlib.contextmanager
def signals_to(note: Callable[[int], None]) -> Iterator[None]:
    """Inside, a signal that asks to stop calls ``note`` with its number instead (in the main thread)."""
    with handled(lambda signum, _: note(signum)):
        yield


def state(code: int | None) -> str:
    """``finished``, ``diverged``, ``stopped``, ``failed``, ``pending``; ``elsewhere``: in use."""
    return STATES.get(code) or ("stopped" if code in STOPPED else "failed")


def peek(path: Path) -> dict[str, Any]:
    """A JSON object that may be written meanwhile, or be damaged: empty then."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def scores(folder: Path) -> str:
    """``fid 21.3 is 7.9`` of the last evaluation in a run folder, or nothing."""
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
        values = (peek(folder / "result.json")["scores"].get("last") or {}).get("values") or {}
        return " ".join(f"{k} {v:.4g}" for k, v in values.items() if "_std" not in k and v is not None)
    return ""


def packed(result: Mapping[str, Any]) -> str:
    """How many runs shared the process of this one, itself included; nothing for a run alone."""
    found = result.get("packed")
    return str(found.get("runs", "")) if isinstance(found, dict) else ""


def last_error(log: Path) -> str:
    """The last one-line error that a process told, or its last words."""
    with contextlib.suppress(OSError):
        said = log.read_text("utf-8", "replace").splitlines()
        errors = [s.partition("ganlab: error: ")[2] for s in said if "ganlab: error: " in s]
        return (errors or [s for s in said if s.strip()] or [""])[-1].strip()
    return ""


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV, atomically; what a spreadsheet would run as a formula is quoted."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(rows[0])
    for row in rows:
        cells = ["" if v is None else str(v) for v in row.values()]
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
        table.add_row(*(Text("" if v is None else str(v)) for v in row.values()))
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(table)


def say(text: str) -> None:
    """A line on stderr, whatever became of it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
