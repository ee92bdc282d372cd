"""A sweep's ledger: which process runs each cell, and how each try ended. Safe to share.

``sweep.jsonl`` is append-only: a line for each start and end of a try (``grid.json`` has the cells). Beside
it, for each cell: ``CELL.lock``, held by the process that runs it; ``CELL.json``, how its last try ended;
``CELL.log``, the output of all tries; ``CELL.beat``, touched while it makes progress. Several sweeps of one
folder, on one machine or many, share one ledger.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ganlab.errors import EnvError, RunInUse
from ganlab.runs.metrics_file import parse_line
from ganlab.sweeps import process
from ganlab.sweeps.plan import Job, final_status
from ganlab.system.files import NO_FOLLOW, disk_error, sync_folder, to_strict_json, write_json
from ganlab.system.lock import Lock, owner_of

TABLE = "sweep.jsonl"
MAX_TRIES = 2  # of a cell within one sweep
IN_USE_RETRY_S = 20.0  # seconds before retrying a cell whose folder was in use


class Ledger:
    """The ledger in ``folder``. ``stall_s``: see ``Rules``. Raises EnvError if it can't be created."""

    def __init__(
        self, folder: Path, stall_s: float = 0.0, previous_ids: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.stall_s = folder, stall_s
        self.previous_ids = dict(previous_ids or {})  # by cell: id of the last try before this sweep
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fix = "fix its permissions, or choose another out="
            raise EnvError(str(folder), f"can't be created ({error.strerror})", fix) from error
        self._last_progress: dict[str, tuple[object, float]] = {}

    def begin(self, cells: Sequence[Job]) -> None:
        """Remember each cell's last try before this sweep."""
        self.previous_ids = {cell.name: self.last_try(cell.name).get("id") for cell in cells}

    # ---- one cell

    def log(self, name: str) -> Path:
        """Path of the output of its tries."""
        return self.folder / f"{name}.log"

    def heartbeat(self, name: str) -> Path:
        """Path of the file that it touches while it makes progress."""
        return self.folder / f"{name}.beat"

    def last_try(self, name: str) -> dict[str, Any]:
        """How its last try ended (``state``, ``code``, ``error``, ``tries``, ...); empty before the first."""
        return process.read_json_leniently(self.folder / f"{name}.json")

    def failed_tries(self, name: str) -> int:
        """Failed tries since this sweep began, by any sweep; MAX_TRIES if a retry can't help."""
        last = self.last_try(name)
        if last.get("state") != "failed" or last.get("id") == self.previous_ids.get(name):
            return 0
        return MAX_TRIES if last.get("code") in process.FINAL else int(last.get("tries", 1))

    def num_starts(self) -> Counter[str]:
        """How many tries of each cell have started, ever."""
        return Counter(str(r.get("cell")) for r in read_records(self.folder) if r.get("event") == "started")

    def claim(self, name: str) -> Lock | None:
        """Lock a cell for running it, until released or until all holders are dead; None if it is taken."""
        with contextlib.suppress(RunInUse):
            return Lock(self.folder / f"{name}.lock")
        return None

    def holder(self, cell: Job) -> str | None:
        """The process that holds the cell's run folder, as "pid@host"; it may have outlived its sweep."""
        return owner_of(cell.folder / ".lock")

    def idle_seconds(self, cell: Job) -> float:
        """Seconds since this process last saw another sweep's cell make progress."""
        signs = [self.log(cell.name), self.heartbeat(cell.name)]
        signs += [cell.folder / "result.json", cell.folder / "metrics.jsonl"]
        marks = [process.stamp(path) for path in signs]
        if cell.name not in self._last_progress or self._last_progress[cell.name][0] != marks:
            self._last_progress[cell.name] = (marks, time.monotonic())
        return time.monotonic() - self._last_progress[cell.name][1]

    def record_start(self, name: str) -> None:
        """Record that a try starts."""
        tries = self.failed_tries(name) + 1
        with contextlib.suppress(OSError), open(self.log(name), "a", encoding="utf-8") as log:
            if log.tell():
                log.write(f"---- try {tries}, {_now()}\n")
        self._append({"event": "started", "cell": name, **_origin()})

    def record_end(self, cell: Job, end: process.ProcessResult, stopping: bool) -> str:
        """Record that a try ended; returns the state, "failed" if the result contradicts the exit code.

        ``stopping``: whether the sweep is stopping; a cell that stops on its own has failed.
        """
        state, error = process.state_of_code(end.code), end.error
        if state in ("finished", "diverged") and final_status(cell.folder, cell.steps) != state:
            state, error = "failed", f"exit code {end.code}, but its result is not marked {state}"
        if state == "stopped" and not stopping:
            state = "failed"
        if state == "elsewhere":
            return state
        outcome = {"state": state, "code": end.code, "error": error, "seconds": round(end.seconds, 1)}
        tries, log = self.failed_tries(cell.name) + 1, str(self.log(cell.name))
        last = {"id": os.urandom(8).hex(), **outcome, "tries": tries, "log": log, **_origin()}
        write_json(self.folder / f"{cell.name}.json", last)
        self._append({"event": "ended", "cell": cell.name, **outcome, **_origin()})
        return state

    def row(self, cell: Job, state: str) -> dict[str, Any]:
        """A cell's row in a table: progress, scores, and its error and log if it failed."""
        result, last = process.read_json_leniently(cell.folder / "result.json"), self.last_try(cell.name)
        unfinished = state in ("failed", "stopped", "diverged")
        error = (last.get("error") or str(result.get("error") or "")) if unfinished else ""
        if state == "elsewhere":
            error = f"being run by {self.holder(cell) or 'another sweep'}"
        return {
            "cell": cell.name,
            **({"overrides": cell.label} if cell.label else {}),
            "state": state,
            "step": result.get("step", 0),
            "of": cell.steps,
            "it/s": result.get("it_per_s", ""),
            "last scores": process.format_scores(cell.folder),
            "exit": last.get("code") if unfinished or state == "finished" else None,
            "error": error,
            "run folder": str(cell.folder),
            "log": str(self.log(cell.name)) if self.log(cell.name).exists() else "",
        }

    def _append(self, record: Mapping[str, Any]) -> None:
        """Append a record in one write, and fsync. Raises EnvError."""
        path, text = self.folder / TABLE, json.dumps(to_strict_json(record)) + "\n"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_FOLLOW, 0o666)
            try:
                end = os.fstat(fd).st_size
                torn = end and os.pread(fd, 1, end - 1) != b"\n"  # an incomplete line, left by a full disk
                data = (b"\n" if torn else b"") + text.encode()
                if os.write(fd, data) < len(data):  # the next append starts a new line
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(fd)
            finally:
                os.close(fd)
            sync_folder(self.folder)
        except OSError as error:
            raise disk_error(error, path, len(text)) from error


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records of a ledger, without incomplete lines."""
    records = []
    with contextlib.suppress(OSError):
        for line in (folder / TABLE).read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                record = parse_line(line)
                if isinstance(record, dict):
                    records.append(record)
    return records


def _origin() -> dict[str, str]:
    return {"by": f"{os.getpid()}@{socket.gethostname()}", "at": _now()}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
