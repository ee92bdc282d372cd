"""Folder locks: flock where the file system supports it, else numbered files; freed when the owner dies.

A long-running owner touches its lock file (``heartbeat``) for other hosts, which can't check its process:
flock may work only within a host (a mount option of some cluster file systems). Not the package filelock:
its locks can't be inherited by a child, name no owner, and fall back for one of the errors of file systems
without flock. Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ganlab.errors import RunInUse
from ganlab.system.files import NO_FOLLOW, disk_error, open_regular, retry_transient_io, write_new
from ganlab.system.signals import beat

BEAT_S = 20.0  # seconds between two touches of a lock file
SILENT_S = 300.0  # seconds without a touch after which an owner on another host counts as dead
NO_FLOCK = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL})


class Lock:
    """Ownership of a folder: flock on ``path``, whose text names the owner; freed when the process dies.

    The text is "pid@host start", with the process's start in kernel ticks because pids are reused. Where the
    file system has no flock, numbered files ``path.N`` are used. Raises RunInUse if the folder is owned.
    ``heartbeat``: touch the file while it is held, and respect recent touches by owners on other hosts.
    """

    def __init__(self, path: Path, heartbeat: bool = False) -> None:
        self.path, self.pid = path, os.getpid()
        self._owner = f"{self.pid}@{socket.gethostname()} {_start_ticks(self.pid)}".strip().encode() + b"\n"
        self._numbered: Path | None = None
        self._released = threading.Event()
        # A thread, because a run may be busy for minutes; it dies with the process.
        self._thread = threading.Thread(target=self._beat, name="ganlab-lock", daemon=True)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
            try:
                if not self._flock():
                    self._take_number()
                elif heartbeat:
                    self._check_other_host()
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, self._owner, 0)
                self._folder_id = _identity(path.parent)
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as error:
            raise disk_error(error, path) from error
        if heartbeat:
            self._thread.start()

    def folder_exists(self) -> bool:
        """Whether the folder is still at its path: neither deleted, nor moved, nor replaced."""
        try:
            return retry_transient_io(lambda: _identity(self.path.parent)) == self._folder_id
        except OSError:
            return False

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def fileno(self) -> int:
        """The lock's file descriptor; a child that inherits it holds the lock as long as it lives."""
        return self._fd

    def release(self) -> None:
        """Release the lock. Does nothing if it is released already, or in a forked child."""
        if self._fd < 0 or os.getpid() != self.pid:
            return
        self._released.set()
        if self._thread.is_alive():
            self._thread.join(1.0)
        if self._numbered:
            self._numbered.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # closing is not enough if a forked child has a copy
        os.close(self._fd)
        self._fd = -1

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a moved or deleted folder, a closed descriptor
                os.utime(self._numbered or self._fd)

    def _in_use(self, owner: str, fix: str = "") -> RunInUse:
        fix = fix or "wait for it, stop it, or choose another run_dir="
        return RunInUse(str(self.path.parent), f"in use by {owner or 'another process'}", fix)

    def _flock(self) -> bool:
        """Take the flock; False where there is none. Raises RunInUse, naming the owner.

        Retries while the file names none: the owner writes its name microseconds after taking the flock, and
        ``owner_of`` takes it as briefly without writing a name.
        """
        for _ in range(20):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                text = os.pread(self._fd, 200, 0).decode(errors="replace")
                if text.strip() and _is_alive(text):
                    raise self._in_use(_name(text)) from None
                time.sleep(0.01)
            except OSError as error:
                if error.errno not in NO_FLOCK:
                    raise
                return False
        raise self._in_use("")

    def _check_other_host(self) -> None:
        """With flock: raise RunInUse if the file names an owner on another host with a recent heartbeat."""
        owner = os.pread(self._fd, 200, 0).decode(errors="replace")
        if _is_on_other_host(owner) and (silence := _silence(self.path)) < SILENT_S:
            fix = f"it is freed {SILENT_S / 60:.0f} min after its last heartbeat, {silence:.0f} s ago"
            raise self._in_use(_name(owner), f"{fix}; if that process is dead, delete {self.path}")

    def _take_number(self) -> None:
        """Without flock: create ``path.N``, and withdraw if another owner is alive. Safe, but not fair."""
        own = self.path.with_name(f"{self.path.name}.{max(self._dead_owners(), default=-1) + 1}")
        try:
            write_new(own, self._owner)
        except FileExistsError:
            raise self._in_use("another process that just started") from None
        self._numbered = own
        try:
            for old in self._dead_owners().values():
                old.unlink(missing_ok=True)
        except BaseException:
            own.unlink(missing_ok=True)
            raise

    def _dead_owners(self) -> dict[int, Path]:
        """The files ``path.N`` of dead owners, by number. Raises RunInUse if another owner is alive."""
        pattern, dead = re.compile(re.escape(self.path.name) + r"\.(\d+)"), dict[int, Path]()
        for name in os.listdir(self.path.parent):
            path = self.path.with_name(name)
            if not (match := pattern.fullmatch(name)) or path == self._numbered:
                continue
            try:
                owner = _read_owner(path)
            except FileNotFoundError:
                continue
            if _is_alive(owner):
                user = _name(owner)
                if _is_on_other_host(owner) and (silence := _silence(path)) > SILENT_S:
                    user += f", no heartbeat for {silence / 60:,.0f} min"
                raise self._in_use(user, f"if that process is dead, delete {path}")
            dead[int(match[1])] = path
        return dead


def wait_for_lock(path: Path, on_wait: Callable[[RunInUse], None] = lambda error: None) -> Lock:
    """Take the lock at ``path`` once it is free; ``on_wait`` is called at each try. Raises like ``Lock``."""
    while True:
        try:
            return Lock(path)
        except RunInUse as error:
            on_wait(error)
            beat()  # a long wait is not a hang
            time.sleep(0.1)


def owner_of(path: Path) -> str | None:
    """The live owner of the lock at ``path`` as "pid@host", or None. Changes nothing.

    An owner on this host must hold the flock, because its pid may have been reused. One on another host
    counts as alive until it has sent no heartbeat for ``SILENT_S``.
    """
    try:
        text = _read_owner(path).strip()
    except OSError:
        return None
    if not text or not _is_alive(text):
        return None
    gone = _silence(path) > SILENT_S if _is_on_other_host(text) else _is_unlocked(path)
    return None if gone else _name(text)


def _read_owner(path: Path) -> str:
    with open(path, "rb", opener=open_regular) as file:
        return file.read(200).decode(errors="replace")


def _parse(owner: str) -> tuple[int, str, str] | None:
    """Pid, host and start of "pid@host start"; the start is "" if missing, as from older versions."""
    match = re.fullmatch(r"(\d+)@(\S+)(?: (\d+))?", owner.strip())
    return (int(match[1]), match[2], match[3] or "") if match else None


def _name(owner: str) -> str:
    """An owner without its start: "pid@host"."""
    return owner.strip().partition(" ")[0]


def _is_on_other_host(owner: str) -> bool:
    parts = _parse(owner)
    return parts is not None and parts[1] != socket.gethostname()


def _identity(folder: Path) -> tuple[int, int]:
    info = os.stat(folder)
    return info.st_dev, info.st_ino


def _start_ticks(pid: int) -> str:
    """When a process started, in ticks since boot; "" where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _silence(path: Path) -> float:
    """Seconds since the file was touched; 0 if another host's clock put that in the future."""
    try:
        return max(0.0, time.time() - os.stat(path).st_mtime)
    except OSError:
        return 0.0


def _is_alive(owner: str) -> bool:
    """Whether "pid@host" may be alive: other hosts and unreadable text count as alive."""
    if (parts := _parse(owner)) is None or _is_on_other_host(owner):
        return True
    pid, _, start = parts
    try:
        os.kill(pid, 0)  # signal 0 only checks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return not start or _start_ticks(pid) in ("", start)


def _is_unlocked(path: Path) -> bool:
    """Whether nobody holds the flock at ``path``; False where the file system can't tell."""
    try:
        fd = os.open(path, os.O_RDONLY | NO_FOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
        return not any(path.parent.glob(f"{path.name}.[0-9]*"))  # locks without flock
    except OSError:
        return False
    finally:
        os.close(fd)
