"""What packing and downloading share: locks, disk errors in the user's words, and a progress bar."""

from __future__ import annotations

import errno
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ganlab.disk import FULL, Lock
from ganlab.errors import EnvError, RunInUse

log = logging.getLogger("ganlab.data")
WRITABLE = "set GANLAB_CACHE to a folder you can write"


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock file ``path``; wait, saying so once, while another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = False
    while True:
        try:
            lock = Lock(path)
            break
        except RunInUse as error:
            if not said:
                log.warning("%s: %s; waiting", doing, error.mistakes[0].what)
            said = True
            time.sleep(0.1)
        except EnvError as error:
            raise EnvError(str(path.parent), error.mistakes[0].what, WRITABLE) from None
    with lock:
        yield


@contextmanager
def writing(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Turn what the disk refuses while writing below ``folder`` into an EnvError; ``needed`` is in bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            wants = f"; needs {megabytes(needed)}" if needed else ""
            what = f"the disk is full ({megabytes(free_bytes(folder))} free{wants})"
            raise EnvError(str(folder), what, "make room, or set GANLAB_CACHE to another disk") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
            what = f"cannot be written ({error.strerror})"
            raise EnvError(str(folder), what, WRITABLE) from None
        raise


def check_room(folder: Path, needed: int) -> None:
    """Raise EnvError if fewer than ``needed`` bytes are free below ``folder``."""
    if free_bytes(folder) < needed:
        what = f"{megabytes(needed)} needed, {megabytes(free_bytes(folder))} free"
        raise EnvError(str(folder), what, "make room, or set GANLAB_CACHE to another disk")


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of ``folder`` or of the nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def megabytes(size: int) -> str:
    """1 MB is 10^6 bytes; one decimal below 10."""
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


@contextmanager
def progress(title: str, total: int | None, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """A bar on stderr if that is a terminal; yields ``advance(n)``. ``unit`` "bytes" shows sizes."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)
