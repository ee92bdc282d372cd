"""A sweep's books: which cells there are, who works on which, and how each try ended. Made to be shared.

``sweep.jsonl`` is the table: every cell with its identity and overrides, on the disk before the first starts,
and a line for each try that begins or ends; lines are only added. Beside it, for each cell: ``CELL.lock``,
held by who works on it; ``CELL.json``, how its last try ended; ``CELL.log``, what all its tries said;
``CELL.beat``, touched while it makes progress. Several sweeps of one folder, on one machine or many, keep the
same books.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ganlab.errors import EnvError, RunInUse
from ganlab.runs.metrics_file import parse_line
from ganlab.sweeps import process
from ganlab.sweeps.plan import Job, end_status
from ganlab.sweeps.watch import Vitals
from ganlab.system.files import NO_FOLLOW, disk_error, sync_folder, to_strict_json, write_json
from ganlab.system.lock import Lock, owner_of

TABLE = "sweep.jsonl"
TRIES = 2  # of a cell within one sweep
AFTER_IN_USE = 20.0  # seconds until a cell is tried again whose folder was in use


class Ledger:
    """The books in ``place``. ``stall_s``: as in ``planned.Rules``. Raises EnvError if there can be none."""

    def __init__(self, place: Path, stall_s: float = 0.0) -> None:
        self.place, self.stall_s = place, stall_s
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fix = "mend its permissions, or choose another out="
            raise EnvError(str(place), f"can't be made ({error.strerror})", fix) from error
        self.before: dict[str, Any] = {}
        self._seen: dict[str, tuple[object, float]] = {}

    def begin(self, cells: Sequence[Job]) -> None:
        """Write the table, and remember how each cell's last try ended: later ends are news."""
        self.before = {cell.name: self.noted(cell.name).get("id") for cell in cells}
        known = {(row.get("cell"), row.get("identity")) for row in rows(self.place)}
        new = [
            {
                "event": "cell",
                "cell": cell.name,
                "identity": cell.identity,
                "config": cell.config,
                "overrides": cell.overrides,
                "run": str(cell.folder),
                "steps": cell.steps,
            }
            for cell in cells
            if (cell.name, cell.identity) not in known
        ]
        self._add([*new, {"event": "sweep", "cells": len(cells), **_who()}])

    # ---- one cell

    def log(self, name: str) -> Path:
        """What its tries said."""
        return self.place / f"{name}.log"

    def vitals(self, name: str) -> Vitals:
        """What its process is watched by."""
        return Vitals(self.place / f"{name}.beat", self.stall_s)

    def noted(self, name: str) -> dict[str, Any]:
        """How its last try ended: ``state``, ``code``, ``error``, ``tries`` and more; empty if none has."""
        return process.read_json_leniently(self.place / f"{name}.json")

    def tries(self, name: str) -> int:
        """Failed tries since this sweep began, by whom ever; TRIES if another one would be of no use."""
        note = self.noted(name)
        if note.get("state") != "failed" or note.get("id") == self.before.get(name):
            return 0
        return TRIES if note.get("code") in process.FINAL else int(note.get("tries", 1))

    def claim(self, name: str) -> Lock | None:
        """The right to run a cell, until it is released or all that hold it are gone; None: taken."""
        with contextlib.suppress(RunInUse):
            return Lock(self.place / f"{name}.lock")
        return None

    def holder(self, cell: Job) -> str | None:
        """Who holds the cell's run folder, as a process that outlived its sweep may: "pid@host"."""
        return owner_of(cell.folder / ".lock")

    def still(self, cell: Job) -> float:
        """Seconds that a cell of others has shown no progress, as far as this process has looked."""
        signs = tuple(
            _stamp(path)
            for path in (
                self.log(cell.name),
                self.place / f"{cell.name}.beat",
                cell.folder / "result.json",
                cell.folder / "metrics.jsonl",
            )
        )
        if cell.name not in self._seen or self._seen[cell.name][0] != signs:
            self._seen[cell.name] = (signs, time.monotonic())
        return time.monotonic() - self._seen[cell.name][1]

    def started(self, name: str) -> None:
        """A try begins."""
        tries = self.tries(name) + 1
        with contextlib.suppress(OSError), open(self.log(name), "a", encoding="utf-8") as log:
            if log.tell():
                log.write(f"---- try {tries}, {_now()}\n")
        self._add([{"event": "started", "cell": name, **_who()}])

    def ended(self, cell: Job, end: process.ProcessResult, asked: bool) -> str:
        """A try has ended: note it. The state: "failed" too where an exit code promises what is not there.

        ``asked``: whether the sweep was asked to stop; a cell that stopped all the same has failed.
        """
        state, error = process.state(end.code), end.error
        if state in ("finished", "diverged") and end_status(cell.folder, cell.steps) != state:
            state, error = "failed", f"ended with exit code {end.code}, but its result does not say {state}"
        if state == "stopped" and not asked:
            state = "failed"
        if state == "elsewhere":
            return state
        tries = self.tries(cell.name) + 1
        what = {"state": state, "code": end.code, "error": error, "seconds": round(end.seconds, 1)}
        note = {"id": os.urandom(8).hex(), **what, "tries": tries, "log": str(self.log(cell.name)), **_who()}
        write_json(self.place / f"{cell.name}.json", note)
        self._add([{"event": "ended", "cell": cell.name, **what, **_who()}])
        return state

    def row(self, cell: Job, state: str) -> dict[str, Any]:
        """What a table says of a cell: how far, its scores, and if it failed its own line and its log."""
        result, note = process.read_json_leniently(cell.folder / "result.json"), self.noted(cell.name)
        told = state in ("failed", "stopped", "diverged")
        error = (note.get("error") or str(result.get("error") or "")) if told else ""
        if state == "elsewhere":
            error = f"{self.holder(cell) or 'another sweep'} works on it"
        return {
            "state": state,
            "step": result.get("step", 0),
            "of": cell.steps,
            "it/s": result.get("it_per_s", ""),
            "packed": process.pack_size(result),
            "last scores": process.scores(cell.folder),
            "exit": note.get("code") if told or state == "finished" else None,
            "error": error,
            "run folder": str(cell.folder),
            "log": str(self.log(cell.name)) if self.log(cell.name).exists() else "",
        }

    def _add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append to the table, in one write, and fsync. Raises EnvError."""
        path = self.place / TABLE
        text = "".join(json.dumps(to_strict_json(r), ensure_ascii=True) + "\n" for r in records)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_FOLLOW, 0o666)
            try:
                end = os.fstat(fd).st_size
                torn = end and os.pread(fd, 1, end - 1) != b"\n"  # a full disk's half line
                data = (b"\n" if torn else b"") + text.encode()
                if os.write(fd, data) < len(data):  # the next one to write begins a new line
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(fd)
            finally:
                os.close(fd)
            sync_folder(self.place)
        except OSError as error:
            raise disk_error(error, path, len(text)) from error


def rows(place: Path) -> list[dict[str, Any]]:
    """The records of a folder's table; torn lines are left out."""
    found = []
    with contextlib.suppress(OSError):
        for line in (place / TABLE).read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                record = parse_line(line)
                if isinstance(record, dict):
                    found.append(record)
    return found


def _who() -> dict[str, str]:
    return {"by": f"{os.getpid()}@{socket.gethostname()}", "at": _now()}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _stamp(path: Path) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size
    return 0, 0
