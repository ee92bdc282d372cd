"""One owner per folder: flock where the file system knows it, else numbered files; freed by death. No torch.

An owner who has long work touches its lock's file (``beats``) for those on other hosts, who can't ask whether
its process lives: flock may hold on one host alone (a mount option of some cluster file systems).
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
from pathlib import Path

from ganlab.errors import RunInUse
from ganlab.system.files import NO_FOLLOW, disk_error, open_regular, retry_transient_io, write_new

BEAT_S = 20.0  # seconds between two touches of a lock's file
SILENT_S = 300.0  # seconds without a touch after which an owner on another host may be gone


class Lock:
    """The ownership of a folder: flock on ``path``, whose text names the owner; freed at process death.

    The text: "pid@host start", the start of the process in the kernel's ticks, for a pid may live again.

    Raises RunInUse if somebody owns it. Where the file system knows no flock: numbered files ``path.N``.
    ``beats``: touch the file while it is held, and refuse one of another host that was touched lately.
    """

    def __init__(self, path: Path, beats: bool = False) -> None:
        self.path, self.pid, self._beats = path, os.getpid(), beats
        self._me = f"{self.pid}@{socket.gethostname()} {_started(self.pid)}".strip().encode() + b"\n"
        self._named: Path | None = None
        self._over = threading.Event()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
        except OSError as error:
            raise disk_error(error, path) from error
        try:
            self._take()
            folder = os.stat(self.path.parent)
        except BaseException:
            os.close(self._fd)
            raise
        self._place = folder.st_dev, folder.st_ino
        # A thread, for a run may be busy for minutes; it dies with the process.
        self._thread = threading.Thread(target=self._beat, name="ganlab-lock", daemon=True)
        if beats:
            self._thread.start()

    def here(self) -> bool:
        """Whether the lock's folder is still found under its path: neither deleted nor moved, nor another."""
        try:
            folder = retry_transient_io(lambda: os.stat(self.path.parent))
        except OSError:
            return False
        return (folder.st_dev, folder.st_ino) == self._place

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def fileno(self) -> int:
        """The descriptor that holds it: a child that has it too holds it as long as it lives."""
        return self._fd

    def release(self) -> None:
        """Give the folder free. Does nothing the second time, nor in a forked child."""
        if self._fd < 0 or os.getpid() != self.pid:
            return
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(1.0)
        if self._named:
            self._named.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # closing is not enough while a forked child holds a copy
        os.close(self._fd)
        self._fd = -1

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a moved or deleted folder, a closed descriptor
                os.utime(self._named or self._fd)

    def _take(self) -> None:
        try:
            self._flock()
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                raise disk_error(error, self.path) from error
            self._take_by_name()
        else:
            self._refuse_if_touched()
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, self._me, 0)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def _refuse_if_touched(self) -> None:
        """With flock: RunInUse if the file names an owner on another host who lived lately."""
        owner = os.pread(self._fd, 200, 0).decode(errors="replace").strip()
        if self._beats and _elsewhere(owner) and (silent := _silence(self.path)) < SILENT_S:
            wait = (
                f"it is free {SILENT_S / 60:.0f} min after its owner's last sign of life, {silent:.0f} s ago"
            )
            raise self._in_use(_name(owner), f"{wait}; if that process is gone, delete {self.path}")

    def _flock(self) -> None:
        """Raises RunInUse, naming the owner: it holds the lock microseconds before its name stands there.

        Who only looks (``owner_of``) holds it for as long, and leaves no name.
        """
        for _ in range(20):
            try:
                return fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = os.pread(self._fd, 200, 0).decode(errors="replace")
                if text.strip() and _alive(text):
                    raise self._in_use(_name(text)) from None
                time.sleep(0.01)
        raise self._in_use("another process")

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
                owner = _text(path)
            except FileNotFoundError:
                continue
            if _alive(owner):
                told = _name(owner) or "another process"
                if _elsewhere(owner) and (silent := _silence(path)) > SILENT_S:
                    told += f", silent for {silent / 60:,.0f} min"
                raise self._in_use(told, f"if that process is gone, delete {path}")
            dead[int(match[1])] = path
        return dead


def owner_of(path: Path) -> str | None:
    """The live owner of the lock at ``path`` as "pid@host", or None. Changes nothing.

    One on this host must hold the lock, where flock is known: its pid may be another process's by now. One on
    another host counts as alive until it was silent for ``SILENT_S``.
    """
    try:
        text = _text(path).strip()
    except OSError:
        return None
    if not text or not _alive(text):
        return None
    gone = _silence(path) > SILENT_S if _elsewhere(text) else _unlocked(path)
    return None if gone else _name(text)


def _text(path: Path) -> str:
    with open(path, "rb", opener=open_regular) as file:
        return file.read(200).decode(errors="replace")


def _parts(owner: str) -> tuple[int, str, str] | None:
    """Pid, host and start of "pid@host start"; the start is "" where none is told, as by older versions."""
    match = re.fullmatch(r"(\d+)@(\S+)(?: (\d+))?", owner.strip())
    return (int(match[1]), match[2], match[3] or "") if match else None


def _name(owner: str) -> str:
    """An owner as people read it: "pid@host"."""
    return f"{parts[0]}@{parts[1]}" if (parts := _parts(owner)) else owner.strip()


def _elsewhere(owner: str) -> bool:
    """Whether "pid@host" names another host."""
    parts = _parts(owner)
    return parts is not None and parts[1] != socket.gethostname()


def _started(pid: int) -> str:
    """When a process began, in ticks since the machine did; "" where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _silence(path: Path) -> float:
    """Seconds since the file was touched; 0 if it lies in the future, by a clock that is not ours."""
    try:
        return max(0.0, time.time() - os.stat(path).st_mtime)
    except OSError:
        return 0.0


def _alive(owner: str) -> bool:
    """Whether "pid@host" may live: unknown hosts and unreadable text count as alive."""
    if (parts := _parts(owner)) is None or _elsewhere(owner):
        return True
    pid, _, start = parts
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return not start or _started(pid) in ("", start)


def _unlocked(path: Path) -> bool:
    """Whether nobody holds the lock at ``path``; False where the file system can't tell."""
    try:
        fd = os.open(path, os.O_RDONLY | NO_FOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
        return not any(path.parent.glob(f"{path.name}.[0-9]*"))  # locks where flock is unknown
    except OSError:
        return False
    finally:
        os.close(fd)
