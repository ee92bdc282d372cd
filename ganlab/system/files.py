"""Atomic file writes, plain messages for full disks, and retries of transient I/O errors.

Temporary files lie beside their target: a rename is atomic only within one file system. Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ganlab.errors import DataError, EnvError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # EFBIG: a limit on file size
TRANSIENT = frozenset(
    {errno.EIO, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT}
)  # a network disk may recover from them
PAUSES = (0.1, 0.5, 2.0)  # seconds before each retry
STALE_FILE = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
MAX_BYTES = 1 << 26  # of a JSON file; that of a thousand cells has 1 MB
T = TypeVar("T")


def retry_transient_io(action: Callable[[], T]) -> T:
    """Call ``action`` and return its result; retry it after each of ``PAUSES`` on errors of ``TRANSIENT``.

    It must write the whole file again: if fsync fails, pages of the old file may be lost.
    """
    for pause in PAUSES:
        try:
            return action()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
            time.sleep(pause)
    return action()


def disk_error(error: OSError, path: Path, num_bytes: int = 0) -> EnvError:
    """The error for a failed write. ``num_bytes``: size of the file (0: unknown)."""
    if error.errno in DISK_FULL:
        free = "unknown"
        with contextlib.suppress(OSError):
            free = f"{shutil.disk_usage(path.parent).free / 1e6:,.1f} MB"
        needs = f"{num_bytes / 1e6:,.1f} MB" if num_bytes else "more space"
        reason = "" if error.errno == errno.ENOSPC else f" ({os.strerror(error.errno or 0)})"
        fix = "free some space, or write elsewhere with run_dir="
        return EnvError(f"disk full writing {path}", f"needs {needs}, {free} free{reason}", fix)
    fix = "choose another folder with run_dir="
    if error.errno == errno.EEXIST:  # from a rename that should have replaced its target
        return EnvError(str(path), "this file system can't replace a file in one step (File exists)", fix)
    return EnvError(str(path), f"can't write ({error.strerror or error})", fix)


def folder_gone_error(folder: Path) -> EnvError:
    """The error for a run folder that disappeared during the run."""
    what = "was deleted or moved during the run"
    return EnvError(str(folder), what, "put it back and run the same command again, or use run_dir=")


def write_new(path: Path, data: bytes, durable: bool = True) -> None:
    """Create ``path``, write ``data`` and fsync it. The file must not exist; symlinks are not followed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def open_regular(path: str | os.PathLike[str], flags: int = 0) -> int:
    """An opener for ``open(path, "rb", opener=open_regular)`` that does not block on a pipe.

    Raises OSError (EINVAL) for anything but a regular file, such as a pipe, a socket or a device.
    """
    fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return fd


def read_regular(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a file. Raises OSError if it is not a regular file or has more than ``max_bytes`` bytes."""
    with open(path, "rb", opener=open_regular) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"has more than {max_bytes:,} bytes", os.fspath(path))
    return data


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename inside it survives a power failure."""
    fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    except OSError as error:  # some network file systems do not support fsync of folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, durable: bool = True) -> None:
    """Replace the content of ``path`` atomically. Raises EnvError.

    ``durable``: wait for the disk, so that it holds after a power failure too.
    """
    try:
        retry_transient_io(lambda: _replace(path, data, durable))
    except OSError as error:
        raise disk_error(error, path, len(data)) from error


def _replace(path: Path, data: bytes, durable: bool) -> None:
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write_new(temp, data, durable)
        os.replace(temp, path)
        if durable:
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temp.unlink()


def ensure_room(folder: Path, size: int, count: int) -> None:
    """Raise EnvError unless ``count`` more files of ``size`` bytes fit into ``folder``.

    They are allocated and removed again, because a quota or a striped file system may refuse space that the
    disk reports as free. ``Checkpoints.clean`` removes what a killed process leaves.
    """
    temp = folder / f".tmp-0-{uuid.uuid4().hex}"
    try:
        temp.mkdir()
        for number in range(count):
            fd = os.open(temp / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666)
            try:
                _allocate(fd, size, count - number)
            finally:
                os.close(fd)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise disk_error(error, folder) from error
        mistake = disk_error(error, folder / "new", count * size).mistakes[0]
        what = mistake.what.replace("needs", f"{count} more checkpoints need", 1)
        fix = "free some space, set keep_checkpoints lower, or write elsewhere with run_dir="
        raise EnvError(f"disk full writing {folder}", what, fix) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _allocate(fd: int, size: int, count: int) -> None:
    """Allocate ``size`` bytes for a file. Raises OSError if ``count`` such files don't fit."""
    try:
        os.posix_fallocate(fd, 0, max(size, 1))
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        disk = os.fstatvfs(fd)
        if disk.f_bavail * disk.f_frsize < size * count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


def remove_stale_files(folder: Path) -> None:
    """Remove temporary files that a killed `write_atomic` left in ``folder``, which the caller must own."""
    for entry in list(os.scandir(folder)):
        if STALE_FILE.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def to_strict_json(value: Any) -> Any:
    """Convert a value to strict JSON types: NaN and infinities become None, tuples lists, paths strings."""
    if isinstance(value, Mapping):
        return {str(k): to_strict_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_strict_json(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Any) -> None:
    """Write strict, indented JSON atomically. NaN and infinities become null."""
    text = json.dumps(to_strict_json(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """The parsed file, or None if it does not exist. Raises DataError if it is not JSON."""
    try:
        return json.loads(read_regular(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(str(path), f"can't read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(str(path), "is not valid JSON", "restore the file or delete it") from error
