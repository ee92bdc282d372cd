"""Who owns a run folder: many starts at once, dead and foreign owners."""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import launching
from .base import Case, Done, Figure, nothing_lost, one_line, until
from .launching import assert_identical, begin, finish, last_told, stop_soon

GAME = (*launching.GAME, "steps=8")
ME = f"{os.getpid()}@{socket.gethostname()}"


def together(place: Path, count: int, words: Callable[[int], tuple[str, ...]], hold: bool) -> list[Done]:
    """``count`` processes that are let go at once; with ``hold`` the owner waits for the others' end."""
    gate, over = place / "go", place / "over"

    def before() -> None:
        deadline = time.monotonic() + 60
        while not gate.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        if hold:
            from ganlab.training import trainer

            prepare = trainer.prepare

            def waiting(*args: Any) -> Any:
                while not over.exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                return prepare(*args)

            trainer.prepare = waiting

    started = [begin(place, *words(i), before=before) for i in range(count)]
    gate.touch()
    if hold:
        until(lambda: sum(p.running() for p in started) <= 1)
    over.touch()
    return [p.wait(120) for p in started]


def one_owner(count: int, place: Path) -> None:
    """One of many runs, the others end with 7 and name it; the run is what it would be alone."""
    finish(place, *GAME, "steps=2")  # a folder that exists: its lock is asked for before anything is loaded
    (place / "run" / "result.json").unlink()
    done = together(place, count, lambda _: (*GAME, "steps=8"), hold=True)
    codes = sorted(d.code for d in done)
    assert codes == [0] + [7] * (count - 1), codes
    for one in done:
        if one.code:
            one_line(
                one, 7, rf"^ganlab: error: run: in use by \d+@{re.escape(socket.gethostname())}", "run_dir="
            )
    nothing_lost(place / "run")


def many_folders(count: int, place: Path) -> None:
    """As many launches in one second as seeds: each has a folder of its own, named by its config."""
    done = together(place, count, lambda i: (*GAME[:1], "steps=1", f"seed={i}", "run_dir=null"), hold=False)
    assert [d.code for d in done] == [0] * count, [d.err[-200:] for d in done if d.code][:1]
    folders = [p.parent for p in (place / "outputs").rglob("run.json")]
    assert len(folders) == count, f"{len(folders)} folders"
    assert len({(f / "run.json").read_text() for f in folders}) == count
    for folder in folders:
        assert json.loads((folder / "result.json").read_text())["status"] == "finished"


def one_folder(count: int, place: Path) -> None:
    """The same launch many times in one second means one run: the first runs it, or has run it."""
    words = (*GAME, "run_dir=null")
    done = together(place, count, lambda _: words, hold=False)
    assert {d.code for d in done} <= {0, 7}, [d.err[-200:] for d in done if d.code not in (0, 7)]
    assert any(d.code == 0 for d in done)
    (folder,) = [p.parent for p in (place / "outputs").rglob("run.json")]
    finish(place, *words)
    shutil.move(folder, place / "run")
    assert_identical(place, *GAME)


# ---- locks


def dead_owner(place: Path) -> None:
    """The lock of a killed owner is free at once."""
    process = begin(place, *GAME)
    until(lambda: last_told(place / "run") >= 3, process)
    process.kill(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    assert (place / "run" / ".lock").read_text().startswith(f"{process.pid}@{socket.gethostname()} ")
    finish(place, *GAME)
    assert_identical(place, *GAME)


def no_flock() -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = refuse  # type: ignore[assignment]


def foreign_owner(flock: bool, silent: float, place: Path) -> None:
    """Another host's name in the lock: refused while it lives or may live, with what to delete."""
    run = place / "run"
    run.mkdir()
    lock = run / (".lock" if flock else ".lock.0")
    lock.write_text("4242@some-other-host\n")
    os.utime(lock, (time.time() - silent,) * 2)
    done = begin(place, *GAME, before=None if flock else no_flock).wait()
    if flock and silent > 300:  # nobody holds it, nobody has touched it
        assert done.code == 0, done.err[-300:]
        assert_identical(place, *GAME)
        return
    told = "" if flock or silent < 300 else ", no heartbeat for"
    one_line(
        done, 7, f"run: in use by 4242@some-other-host{told}", f"delete {run.name}/{re.escape(lock.name)}"
    )
    assert sorted(os.listdir(run)) == sorted({".lock", lock.name})
    lock.unlink()
    finish(place, *GAME)
    assert_identical(place, *GAME)


def without_flock(place: Path) -> None:
    """A file system without flock: one owner, and the lock of a killed one does not stand in the way."""
    first = begin(place, *GAME, "steps=1000000", before=no_flock)
    until(lambda: last_told(place / "run") >= 3, first)
    done = begin(place, *GAME, "steps=1000000", before=no_flock).wait()
    one_line(done, 7, rf"in use by {first.pid}@", "delete run/.lock.0")
    first.kill(signal.SIGKILL)
    first.wait()
    done = begin(place, *GAME, "steps=1000001", before=lambda: (no_flock(), stop_soon())).wait()
    assert done.code == 143, done.err[-300:]
    assert [n for n in os.listdir(place / "run") if n.startswith(".lock")] == [".lock"]
    nothing_lost(place / "run")


def owners() -> list[Case]:
    rounds, starts, launches = 20, 16, 50
    found = [Case(f"{starts} starts, round {i}", functools.partial(one_owner, starts)) for i in range(rounds)]
    found.append(Case(f"{launches} seeds at once", functools.partial(many_folders, launches), launches))
    found.append(Case(f"one launch {launches} times at once", functools.partial(one_folder, launches)))
    return found


def locks() -> list[Case]:
    found = [Case("owner killed", dead_owner), Case("no flock", without_flock)]
    for flock in (True, False):
        for silent in (0, 290, 400):
            name = f"owner on another host, silent for {silent} s, {'flock' if flock else 'no flock'}"
            found.append(Case(name, functools.partial(foreign_owner, flock, silent)))
    return found


FIGURES = [
    Figure("owners", "16 starts -> owners, same-second launches -> folders", (19, 20), 71, owners),
    Figure("locks", "Stale and foreign locks", (22, 26), 8, locks),
]
