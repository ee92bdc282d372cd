"""Disks that are too small and calls that fail, in a child."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import Done
from .launching import finish


def fails(
    call: str, code: int, which: Callable[[str], bool], first: int, times: int, once: bool = True
) -> Callable[[], None]:
    """In the child ``os.<call>`` fails ``times`` times, from its ``first`` on a path that ``which`` names."""

    def patch() -> None:
        real, count = getattr(os, call), 0

        def broken(on: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            path = os.readlink(f"/proc/self/fd/{on}") if isinstance(on, int) else os.fsdecode(on)
            if which(path):
                count += 1
                if first <= count < first + times:
                    raise OSError(code, os.strerror(code), path)
            return real(on, *args, **kwargs)

        setattr(os, call, broken)
        if once:
            from ganlab.system import files

            files.PAUSES = (0.01, 0.02, 0.05)  # the patience, in less time

    return patch


def of_checkpoint(path: str) -> bool:
    return "/checkpoints" in path


def named(name: str) -> Callable[[str], bool]:
    return lambda path: name in os.path.basename(path)


def warned(done: Done, pattern: str) -> int:
    """How often; what is said of the game itself (a G so small collapses) does not count."""
    lines = [line for line in done.err.splitlines() if line.startswith("ganlab: warning: ")]
    return sum(pattern in line and "collapsed" not in line for line in lines)


class small_disk:  # noqa: N801 - a context
    """A tmpfs at ``place/run`` of a size that is chosen inside; told the size of the game's checkpoint."""

    def __init__(self, place: Path, *words: str) -> None:
        self.run = place / "run"
        self.words = words

    def __enter__(self) -> tuple[Callable[[int], None], int]:
        size = checkpoint_bytes(*self.words)
        self.run.mkdir()
        return self.mount, size

    def mount(self, size: int) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "ganlab-test", str(self.run)]
        subprocess.run(command, check=True, capture_output=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.run)], check=False, capture_output=True)


@functools.cache
def checkpoint_bytes(*words: str) -> int:
    """Of a run that has its optimisers' slots."""
    found: list[int] = []

    def look(place: Path) -> None:
        finish(place, *words)
        newest = max((place / "run" / "checkpoints").iterdir())
        found.append(sum(p.stat().st_size for p in newest.iterdir()))

    import tempfile

    from .base import inside

    with tempfile.TemporaryDirectory(dir=Path.cwd().parent) as folder, inside(Path(folder)):
        look(Path(folder))
    return found[0]


@functools.cache
def can_mount() -> bool:
    """Whether a small disk can be made here: root may."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "ganlab-test", folder], check=False, capture_output=True
        )
        if made.returncode == 0:
            subprocess.run(["umount", folder], check=True)
    return made.returncode == 0
