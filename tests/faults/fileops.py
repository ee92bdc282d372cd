"""kill -9 before every file operation of whole runs, new and resumed behind a damaged checkpoint."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import Case, Failed, Figure
from .runs import assert_identical, begin, committed, finish, whole

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
LEAST = {"new run": 140, "resumed run": 88}  # operations that there are at least
WORDS = ("normalization=[sn]", "steps=3", "save_every=1", "keep_checkpoints=2", "log_every=2")


def die_at(k: int, inside: str, counted: list[int] | None = None) -> None:
    """From now on this process kills itself before its ``k``-th change to a file below ``inside``.

    Python's audit events are the operations on names; writes, half writes and cuts are seen by wrappers.
    ``counted``: count them there instead of killing.
    """
    count = 0
    write, truncate, pwrite = os.write, os.ftruncate, os.pwrite

    def reached() -> None:
        nonlocal count
        if counted is not None:
            counted[0] += 1
        elif count == k:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def audited(event: str, args: tuple[Any, ...]) -> None:
        if event not in CHANGES or not isinstance(args[0], str | bytes | os.PathLike):
            return
        if event == "open" and not args[2] & FOR_WRITING:
            return
        name = os.fsdecode(args[0])
        at = args[-1] if event in ("os.remove", "os.rmdir") else -1  # a folder's descriptor
        if os.path.realpath(os.readlink(f"/proc/self/fd/{at}") if at >= 0 else name).startswith(inside):
            reached()

    def below(fd: int) -> bool:
        try:
            return os.readlink(f"/proc/self/fd/{fd}").startswith(inside)
        except OSError:
            return False

    def write_in_halves(fd: int, data: Any) -> int:
        if not below(fd):
            return write(fd, data)
        reached()
        half = write(fd, data[: max(1, len(data) // 2)])
        reached()
        return half + (write(fd, data[half:]) if half < len(data) else 0)

    def seen(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(fd: int, *args: Any) -> Any:
            if isinstance(fd, int) and below(fd):
                reached()
            return call(fd, *args)

        return wrapped

    os.write, os.ftruncate, os.pwrite = write_in_halves, seen(truncate), seen(pwrite)
    sys.addaudithook(audited)


def stopped_run(place: Path) -> Path:
    """A run killed after step 2 of 3, its newest checkpoint damaged, temporary files about."""
    made, killed = place / "made", [0]

    def before() -> None:
        from ganlab.runs.checkpoint import Checkpoints

        prune = Checkpoints.prune

        def dies(self: Checkpoints, keep_also: Any = ()) -> None:
            prune(self, keep_also)
            killed[0] += 1
            if killed[0] == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        Checkpoints.prune = dies  # type: ignore[method-assign]

    assert begin(place, *WORDS, before=before).wait().code == -signal.SIGKILL
    (place / "run").rename(made)
    (made / "checkpoints" / "step-000000002" / "state.json").write_bytes(b"damaged")
    (made / "checkpoints" / (".tmp-3-" + "0" * 32)).mkdir()
    (made / f".result.json.{'0' * 32}.tmp").write_bytes(b"half")
    return made


def operations(place: Path, made: Path | None) -> int:
    """How many there are in a whole run from ``made`` on (None: from nothing)."""
    if made:
        shutil.copytree(made, place / "run")
    note = place / "count"

    def before() -> None:
        counted = [0]
        exit_, path = os._exit, str(place / "run")
        die_at(-1, path, counted)

        def noted(code: int) -> None:
            note.write_text(str(counted[0]))
            exit_(code)

        os._exit = noted  # type: ignore[assignment]

    done = begin(place, *WORDS, before=before).wait()
    assert done.code == 0, done.err[-300:]
    shutil.rmtree(place / "run")
    return int(note.read_text())


def whole_run(again: bool, every: int, first: int, place: Path) -> None:
    """A whole run, from nothing or resumed, killed before its operations ``first``, ``first + every``, ..."""
    whole(*WORDS)
    made = stopped_run(place) if again else None
    total, failed = operations(place, made), list[str]()
    points = range(first, total, every)
    for k in points:
        if made:
            shutil.copytree(made, place / "run")
        try:
            process = begin(place, *WORDS, before=lambda: die_at(k, str(place / "run")))  # noqa: B023
            done = process.wait()
            assert done.code == -signal.SIGKILL, f"exit code {done.code}: {done.err[-200:]}"
            if not made:
                committed(place / "run")
            finish(place, *WORDS)
            assert_identical(place, *WORDS)
        except Exception as error:
            failed.append(f"operation {k} of {total}: {error}")
        shutil.rmtree(place / "run", ignore_errors=True)
    if failed:
        raise Failed(len(failed), failed[0])
    name = "resumed run" if again else "new run"
    assert total >= LEAST[name], f"{name} has only {total} file operations: are they seen?"


def cases() -> list[Case]:
    kinds = [(name, again, first) for again, name in enumerate(LEAST) for first in range(4)]
    return [
        Case(
            f"{name}, every 4th from {first}",
            functools.partial(whole_run, bool(again), 4, first),
            LEAST[name] // 4,
        )
        for name, again, first in kinds
    ]


FIGURES = [Figure("fileops", "kill -9 before every file operation: recoverable, resume identical", cases)]
