"""Writing so that nothing is lost: whole files or none, one owner per folder, a full disk in plain words.

Temporary files always lie beside their target: a rename is atomic only within one file system. No torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ganlab.errors import DataError, EnvError, RunInUse

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # EFBIG: a limit on file size
STALE_FILE = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def disk_error(error: OSError, path: Path, num_bytes: int = 0) -> EnvError:
    """The one line for a write that failed. ``num_bytes``: how much the file needs (0 = unknown)."""
    if error.errno in FULL:
        free = "unknown"
        with contextlib.suppress(OSError):
            free = (
                f"{shutil.disk_usage(path.parent).free / 1e6:,.1f} MB"  # a quota can be full before the disk
            )
        needs = f"{num_bytes / 1e6:,.1f} MB" if num_bytes else "more room"
        reason = "" if error.errno == errno.ENOSPC else f" ({os.strerror(error.errno or 0)})"
        fix = "free some space, or write elsewhere with run_dir="
        return EnvError(f"disk full writing {path}", f"needs {needs}, {free} free{reason}", fix)
    return EnvError(
        str(path), f"can't write ({error.strerror or error})", "choose another folder with run_dir="
    )


def write_new(path: Path, data: bytes) -> None:
    """Create ``path``, which must not exist (a planted link is not followed), write it and fsync it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename inside it survives a power cut."""
    fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    except OSError as error:  # some network file systems know no fsync of folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: the old content or the new, never a mixture. Raises EnvError."""
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write_new(temp, data)
        os.replace(temp, path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path, len(data)) from error
    finally:
        with contextlib.suppress(OSError):
            temp.unlink()


def remove_stale_files(folder: Path) -> None:
    """Remove what a killed `write_atomic` left in ``folder``. Only for the folder's owner."""
    for entry in list(os.scandir(folder)):
        if STALE_FILE.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def strict(value: Any) -> Any:
    """The value as strict JSON can hold it: NaN and infinities become None, tuples lists, paths text."""
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Any) -> None:
    """Write strict, indented JSON atomically. NaN and infinities become null."""
    text = json.dumps(strict(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """The parsed file, or None if there is none. Raises DataError if it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(str(path), f"can't read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(str(path), "is not valid JSON", "restore the file or delete it") from error


class Lock:
    """The ownership of a folder: flock on ``path``, whose text names the owner; freed at process death.

    Raises RunInUse if somebody owns it. Where the file system knows no flock: numbered files ``path.N``.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.pid = path, os.getpid()
        self._me = f"{self.pid}@{socket.gethostname()}\n".encode()
        self._named: Path | None = None
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
        except OSError as error:
            raise disk_error(error, path) from error
        try:
            self._take()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the folder free. Does nothing the second time, nor in a forked child."""
        if self._fd < 0 or os.getpid() != self.pid:
            return
        if self._named:
            self._named.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # closing is not enough while a forked child holds a copy
        os.close(self._fd)
        self._fd = -1

    def _take(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(self._owner()) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                raise disk_error(error, self.path) from error
            self._take_by_name()
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, self._me, 0)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def _owner(self) -> str:
        for _ in range(20):  # between the owner's flock and its name lie microseconds
            text = os.pread(self._fd, 200, 0).decode(errors="replace")
            if text.strip() and _alive(text):
                return text.strip()
            time.sleep(0.01)
        return "another process"

    def _in_use(self, owner: str, fix: str = "") -> RunInUse:
        fix = fix or "wait for it, stop it, or choose another run_dir="
        return RunInUse(str(self.path.parent), f"in use by {owner}", fix)

    def _take_by_name(self) -> None:
        """Without flock: create ``path.N``, then withdraw if any other's owner lives. Safe, not fair."""
        dead = self._refuse_if_owned()
        mine = self.path.with_name(f"{self.path.name}.{max(dead, default=-1) + 1}")
        try:
            write_new(mine, self._me)
        except FileExistsError:
            raise self._in_use("another process that just started") from None
        except OSError as error:
            raise disk_error(error, mine) from error
        self._named = mine
        try:
            dead = self._refuse_if_owned()
        except BaseException:
            mine.unlink(missing_ok=True)
            raise
        for old in dead.values():
            old.unlink(missing_ok=True)

    def _refuse_if_owned(self) -> dict[int, Path]:
        """The files ``path.N`` of dead owners by number; RunInUse if somebody else's owner lives."""
        pattern, dead = re.compile(re.escape(self.path.name) + r"\.(\d+)"), {}
        for name in os.listdir(self.path.parent):
            path = self.path.with_name(name)
            if not (match := pattern.fullmatch(name)) or path == self._named:
                continue
            try:
                owner = path.read_text(errors="replace")[:200]
            except FileNotFoundError:
                continue
            if _alive(owner):
                fix = f"if that process is gone, delete {path}"
                raise self._in_use(owner.strip() or "another process", fix)
            dead[int(match[1])] = path
        return dead


def owner_of(path: Path) -> str | None:
    """The live owner of the lock at ``path`` as "pid@host", or None; asks without touching the lock."""
    try:
        text = path.read_text(errors="replace")[:200].strip()
    except OSError:
        return None
    return text if text and _alive(text) else None


def _alive(owner: str) -> bool:
    """Whether "pid@host" may live: unknown hosts and unreadable text count as alive."""
    pid, at, host = owner.strip().partition("@")
    if not at or not pid.isdigit() or host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)  # signal 0 only asks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
