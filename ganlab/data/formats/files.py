"""Shared helpers of packing and downloading: locks, disk errors, progress bars, file types."""

from __future__ import annotations

import errno
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ganlab.errors import EnvError, RunInUse
from ganlab.system.files import DISK_FULL, open_regular
from ganlab.system.lock import wait_for_lock


class _Warnings(logging.Handler):
    """Print warnings to stderr, unless a run has its own log."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger("ganlab").handlers:
            print(f"ganlab: warning: {record.getMessage()}", file=sys.stderr, flush=True)


log = logging.getLogger("ganlab.data")
log.addHandler(_Warnings(logging.WARNING))
WRITABLE = "set GANLAB_CACHE to a folder you can write"
HEIF = (b"heic", b"heix", b"heif", b"mif1", b"avif", b"avis")
EVERY = 60.0  # seconds between progress lines without a terminal


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock file ``path``; while another process holds it, warn once and wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waited = list[RunInUse]()

    def on_wait(error: RunInUse) -> None:
        if not waited:
            log.warning("%s: %s; waiting", doing, error.mistakes[0].what)
        waited.append(error)

    try:
        lock = wait_for_lock(path, on_wait)
    except EnvError as error:
        raise EnvError(str(path.parent), error.mistakes[0].what, WRITABLE) from None
    with lock:
        yield


@contextmanager
def writing(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Turn disk errors while writing below ``folder`` into an EnvError; ``needed`` is in bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            wants = f"; needs {megabytes(needed)}" if needed else ""
            what = f"the disk is full ({megabytes(free_bytes(folder))} free{wants})"
            raise EnvError(str(folder), what, "free some space or set GANLAB_CACHE to another disk") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
            what = f"cannot be written ({error.strerror})"
            raise EnvError(str(folder), what, WRITABLE) from None
        raise


def check_room(folder: Path, needed: int) -> None:
    """Raise EnvError if fewer than ``needed`` bytes are free below ``folder``."""
    if free_bytes(folder) < needed:
        what = f"{megabytes(needed)} needed, {megabytes(free_bytes(folder))} free"
        raise EnvError(str(folder), what, "free some space or set GANLAB_CACHE to another disk")


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of ``folder`` or of the nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def megabytes(size: int) -> str:
    """Format bytes as MB (10^6 bytes), with one decimal below 10."""
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


@contextmanager
def progress(
    title: str, total: int | None, unit: str = "images", done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr, or a line per minute without a terminal; yields ``advance(n)``.

    total: None if unknown. unit: "bytes" shows sizes. done: number completed by an earlier attempt.
    """
    if not sys.stderr.isatty():
        yield _Lines(title, total, unit, done).advance
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "")

    amount, speed = (
        (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), Speed())
    )
    columns = (TextColumn("{task.description}"), BarColumn(), amount, speed, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda n: bar.advance(task, n)


class _Lines:
    """Progress lines for output to a file or a pipe."""

    def __init__(self, title: str, total: int | None, unit: str, done: int) -> None:
        self.title, self.total, self.unit, self.done, self.first = title, total, unit, done, done
        self.start = self.said = time.monotonic()

    def advance(self, number: int) -> None:
        self.done += number
        now = time.monotonic()
        if now < self.said + EVERY:
            return
        self.said = now
        amount, rate = f"{self.done:,}", (self.done - self.first) / (now - self.start)
        of = f" of {self.total:,}" if self.total else ""
        print(f"{self.title}: {amount}{of} {self.unit}, {rate:,.0f}/s", file=sys.stderr, flush=True)


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file for reading. Raises OSError, also for a pipe, which would block."""
    return open(path, "rb", opener=open_regular)


def kind_of(head: bytes) -> str:
    """Guess a file's type from its first bytes, for a message."""
    known = {
        b"\x89PNG": "a PNG image",
        b"\xff\xd8\xff": "a JPEG image",
        b"GIF8": "a GIF image",
        b"II*\0": "a TIFF image",
        b"MM\0*": "a TIFF image",
        b"\x89HDF": "an HDF5 file",
        b"\x93NUMPY": "a .npy array",
        b"Rar!": "a RAR archive",
        b"7z\xbc\xaf": "a 7z archive",
        b"(\xb5/\xfd": "zstd-compressed",
        b"\0\0\x08": "an IDX file",
        b"<": "an HTML or XML page",
    }
    if not head:
        return "empty"
    if head[4:8] == b"ftyp":
        return "a HEIC or AVIF image" if head[8:12] in HEIF else "a video"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "a PPM image"
    for magic, kind in known.items():
        if head.lstrip().startswith(magic):
            return kind
    return "text" if all(byte >= 32 or byte in b"\t\r\n" for byte in head) else "unknown binary data"
