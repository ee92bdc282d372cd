"""``metrics.jsonl``: what a run told of itself, a line a record, whole after a kill at any byte. No torch."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
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

LARGEST = 1 << 31  # bytes of a metrics.jsonl


class Metrics:
    """``metrics.jsonl``: one strict JSON object per line, steps strictly increasing within each ``kind``.

    Opening it drops a line that a kill left torn. Call `truncate_after` before resuming. ``failing``: why
    lines wait in memory, None where none does. ``lost``: whole lines that were no records, dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._fd, self.lost = Path(path), -1, 0
        self.failing: EnvError | None = None
        self._waiting = b""
        self._open(keep=lambda record: True)

    def append(self, record: Mapping[str, Any]) -> bool:
        """Write ``{"step": n, "kind": text, ...}`` as a line; NaN and infinities become null.

        False, with nothing written, if that kind already has this step or a later one: told again after a
        resume. On a full disk the file stays as it was, the line waits for the next one, or for ``sync``.
        """
        step, kind = int(record["step"]), str(record["kind"])
        if step <= self._last.get(kind, -1):
            return False
        first = not self._waiting
        self._waiting += json.dumps(to_strict_json(record), allow_nan=False).encode() + b"\n"
        self._last[kind] = step
        try:
            retry_transient_io(self._write) if first else self._write()
        except OSError as error:
            self.failing = disk_error(error, self.path, len(self._waiting))
        return True

    def _write(self) -> None:
        """Write what waits. Raises OSError, and leaves the file with whole lines."""
        written = 0
        try:
            if os.fstat(self._fd).st_size != self._end:  # what a failure left, and could not take back
                os.ftruncate(self._fd, self._end)
            while written < len(self._waiting):
                written += os.write(self._fd, self._waiting[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise
        self._end += written
        self._waiting, self.failing = b"", None

    def truncate_after(self, step: int) -> int:
        """Drop all lines beyond ``step`` (-1: every line), atomically; return how many went."""
        return self._open(keep=lambda record: bool(record["step"] <= step))

    def read(self) -> list[dict[str, Any]]:
        return read_metrics(self.path)

    def sync(self) -> None:
        """fsync; before each checkpoint, so that what a checkpoint has seen is on the disk too.

        Raises EnvError if the disk is full, or fails for longer than a moment.
        """
        try:
            retry_transient_io(self._write)
            try:
                os.fsync(self._fd)
            except OSError as error:
                if error.errno not in TRANSIENT:
                    raise
                write_atomic(self.path, self.path.read_bytes())  # what failed to sync is never tried again
                self._open(keep=lambda record: True)
        except OSError as error:
            raise disk_error(error, self.path, len(self._waiting)) from error

    def here(self) -> bool:
        """Whether the file is still found under its path: neither deleted nor moved."""
        try:
            return os.path.samestat(os.fstat(self._fd), retry_transient_io(lambda: os.stat(self.path)))
        except OSError:
            return False

    def close(self) -> None:
        """Write what waits, if that can be; later calls do nothing."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._write()
            os.close(self._fd)
        self._fd = -1

    def _open(self, keep: Callable[[dict[str, Any]], bool]) -> int:
        """(Re)open with only the sound lines that ``keep`` wants; return how many others there were."""
        self.close()
        lines = _lines(self.path)
        self.lost += sum(record is None and raw.endswith(b"\n") for raw, record in lines)
        kept = [(raw.lstrip(b"\0"), record) for raw, record in lines if record is not None and keep(record)]
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
    """The records of a ``metrics.jsonl`` that may be written meanwhile; torn lines are left out."""
    return [record for _, record in _lines(path) if record is not None]


def parsed(raw: bytes) -> Any:
    """A line as JSON. Raises ValueError or RecursionError.

    NUL bytes before it, which a power cut leaves where some file systems had not written, cost no record.
    """
    return json.loads(raw.lstrip(b"\0"))


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Each line with its newline, and its record: None if it is torn or is no record."""
    try:
        lines = read_regular(path, LARGEST).splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EnvError(str(path), f"can't read ({error.strerror})") from error
    return [(raw, _record(raw)) for raw in lines]


def _record(raw: bytes) -> dict[str, Any] | None:
    try:
        record = parsed(raw)
    except (ValueError, RecursionError):
        return None
    sound = (
        isinstance(record, dict) and type(record.get("step")) is int and isinstance(record.get("kind"), str)
    )
    return record if sound and raw.endswith(b"\n") else None
