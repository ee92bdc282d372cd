"""``metrics.jsonl``: one record per line, intact after a kill at any byte. No torch."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ganlab.errors import EnvError
from ganlab.system.files import (
    NO_FOLLOW,
    TRANSIENT,
    disk_error,
    read_regular,
    retry_transient_io,
    to_strict_json,
    write_atomic,
)

MAX_BYTES = 1 << 31


class Metrics:
    """``metrics.jsonl``: one strict JSON object per line, steps strictly increasing within each ``kind``.

    Opening it drops a partial line left by a kill. Call `truncate_after` before resuming. ``failing``: the
    error that keeps lines buffered, or None. ``lost``: complete lines dropped because they were no records.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._fd, self.lost = Path(path), -1, 0
        self.failing: EnvError | None = None
        self._buffer = b""
        self._open()

    def append(self, record: Mapping[str, Any]) -> bool:
        """Write ``{"step": n, "kind": text, ...}`` as a line; NaN and infinities become null.

        Returns False, with nothing written, if that kind already has this step or a later one (repeated after
        a resume). On a full disk the file is unchanged and the line buffered until the next append or sync.
        """
        step, kind = int(record["step"]), str(record["kind"])
        if step <= self._last.get(kind, -1):
            return False
        first = not self._buffer
        self._buffer += json.dumps(to_strict_json(record), allow_nan=False).encode() + b"\n"
        self._last[kind] = step
        try:
            retry_transient_io(self._write) if first else self._write()
        except OSError as error:
            self.failing = disk_error(error, self.path, len(self._buffer))
        return True

    def _write(self) -> None:
        """Write the buffer. Raises OSError and leaves only complete lines in the file."""
        written = 0
        try:
            if os.fstat(self._fd).st_size != self._end:  # left by a failed write
                os.ftruncate(self._fd, self._end)
            while written < len(self._buffer):
                written += os.write(self._fd, self._buffer[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise
        self._end += written
        self._buffer, self.failing = b"", None

    def truncate_after(self, step: int) -> int:
        """Drop all lines beyond ``step`` (-1: every line), atomically; return their number."""
        return self._open(step)

    def sync(self) -> None:
        """fsync, before each checkpoint, so that the file is never behind it.

        Raises EnvError if the disk is full or keeps failing.
        """
        try:
            retry_transient_io(self._write)
            try:
                os.fsync(self._fd)
            except OSError as error:
                if error.errno not in TRANSIENT:
                    raise
                write_atomic(self.path, self.path.read_bytes())  # rewrite the pages that failed to sync
                self._open()
        except OSError as error:
            raise disk_error(error, self.path, len(self._buffer)) from error

    def here(self) -> bool:
        """Whether the file still exists at its path, neither deleted nor moved."""
        try:
            return os.path.samestat(os.fstat(self._fd), retry_transient_io(lambda: os.stat(self.path)))
        except OSError:
            return False

    def close(self) -> None:
        """Write the buffer if possible; later calls do nothing."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._write()
            os.close(self._fd)
        self._fd = -1

    def _open(self, last_step: int | None = None) -> int:
        """(Re)open with only the valid lines up to ``last_step``; return the number of others."""
        self.close()
        lines = _lines(self.path)
        self.lost += sum(record is None and raw.endswith(b"\n") for raw, record in lines)
        kept = [
            (raw.lstrip(b"\0"), record)
            for raw, record in lines
            if record is not None and (last_step is None or record["step"] <= last_step)
        ]
        data = b"".join(raw for raw, _ in kept)
        if len(data) < sum(len(raw) for raw, _ in lines):
            write_atomic(self.path, data)
        self._end = len(data)
        self._last: dict[str, int] = {}
        for _, record in kept:
            self._last[record["kind"]] = max(record["step"], self._last.get(record["kind"], -1))
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_FOLLOW, 0o666)
        except OSError as error:
            raise disk_error(error, self.path) from error
        return len(lines) - len(kept)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl`` that may be in use; partial lines are skipped."""
    return [record for _, record in _lines(path) if record is not None]


def parse_line(raw: bytes) -> Any:
    """A line as JSON, ignoring leading NUL bytes, which some file systems leave after a power cut.

    Raises ValueError or RecursionError.
    """
    return json.loads(raw.lstrip(b"\0"))


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Each line with its newline, and its record or None if it is partial or invalid."""
    try:
        lines = read_regular(path, MAX_BYTES).splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EnvError(str(path), f"can't read ({error.strerror})") from error
    return [(raw, _record(raw)) for raw in lines]


def _record(raw: bytes) -> dict[str, Any] | None:
    try:
        record = parse_line(raw)
    except (ValueError, RecursionError):
        return None
    complete = raw.endswith(b"\n") and isinstance(record, dict)
    valid = complete and type(record.get("step")) is int and isinstance(record.get("kind"), str)
    return record if valid else None
