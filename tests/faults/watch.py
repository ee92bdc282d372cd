"""Watching what a command does to the machine: files it writes, programs it starts, sockets it opens."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2}
CHANGES |= {"os.chmod": 1, "os.truncate": 1, "shutil.rmtree": 1}
PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn")
HARMLESS = ("/dev/", "/proc/self/", "/sys/")  # /dev/null, /dev/shm of torch's own


class Watch:
    """What was not allowed: ``writes`` outside ``allowed``, ``programs``, ``sockets`` (AF_UNIX aside)."""

    def __init__(self, allowed: Sequence[Path]) -> None:
        own = (os.environ.get(name) for name in ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"))
        self.allowed = [os.path.realpath(p) for p in (*allowed, *filter(None, own))]
        self.writes, self.programs, self.sockets = list[str](), list[str](), list[str]()

    def outside(self, path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return False
        name = os.fsdecode(path)
        if name.startswith(HARMLESS):
            return False
        real = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(name))), os.path.basename(name))
        return not any(real == a or real.startswith(a + os.sep) for a in self.allowed)

    def event(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "open":
            path, _, flags = (*args, None, 0)[:3]
            follows = isinstance(flags, int) and not flags & os.O_NOFOLLOW
            through = follows and self._through(path)
            if isinstance(flags, int) and flags & WRITING and (self.outside(path) or through):
                self.writes.append(f"open {path!r}")
        elif name in CHANGES:
            last = args[-1] if name not in ("os.chmod", "os.truncate") else -1  # a dir_fd
            under = os.path.realpath(f"/proc/self/fd/{last}") if isinstance(last, int) and last >= 0 else ""
            paths = [
                p if isinstance(p, int) else os.path.join(under, os.fsdecode(p))
                for p in args[: CHANGES[name]]
            ]
            self.writes += [f"{name} {p!r}" for p in paths if self.outside(p)]
        elif name in PROGRAMS and not self._git(args):
            self.programs.append(f"{name} {args!r:.200}")
        elif name in ("socket.bind", "socket.connect") and isinstance(args[1], tuple):
            self.sockets.append(f"{name} {args[1]!r}")

    def _through(self, path: Any) -> bool:
        """Whether a link leads out."""
        return isinstance(path, str) and os.path.islink(path) and self.outside(os.path.realpath(path))

    @staticmethod
    def _git(args: tuple[Any, ...]) -> bool:
        """The checkout's commit is asked of git; torch and matplotlib ask for the CPU and for fonts."""
        words = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else args
        return bool(words) and str(words[0]) in ("git", "lscpu", "uname", "fc-list")

    def summary(self) -> str:
        return "; ".join([*self.programs, *self.sockets, *self.writes][:5])


_watchers: list[Watch] = []
_installed = False


def _hook(name: str, args: tuple[Any, ...]) -> None:
    for watch in _watchers:
        watch.event(name, args)


@contextlib.contextmanager
def watching(*allowed: Path) -> Iterator[Watch]:
    """Inside, everything that is done outside the folders ``allowed`` is recorded."""
    global _installed
    if not _installed:
        sys.addaudithook(_hook)  # it can't be taken away again
        _installed = True
    watch = Watch(allowed)
    _watchers.append(watch)
    try:
        yield watch
    finally:
        _watchers.remove(watch)
