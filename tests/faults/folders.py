"""Folders that go away, clocks that jump, odd renames of network disks."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import Case, Figure, nothing_lost, one_line, until
from .runs import EVENTFUL, assert_identical, begin, committed, finish, last_step, stop_soon

WORDS = (*EVENTFUL, "steps=8")


def gone(how: str, place: Path) -> None:
    """The run folder is deleted, moved or replaced while the run goes on: code 5, nothing is revived."""
    run, away = place / "run", place / "away"
    process = begin(place, *WORDS, "steps=100000", "sample_every=7")
    until(lambda: last_step(run) >= 5 and [*run.glob("events.*")], process)  # TensorBoard's is opened late
    run.rename(away)
    if how == "deleted":
        shutil.rmtree(away)
    if how == "replaced":
        run.mkdir()
        (run / "mine").write_text("precious")
    done = process.wait(60)
    one_line(done, 5, "^ganlab: error: run(/metrics.jsonl)?: was deleted or moved", "run_dir=|put it back")
    if how == "replaced":
        # what TensorBoard's thread has in its queue it may still write, to a file that it opens by name
        names = [name for name in os.listdir(run) if not name.startswith("events.")]
        assert names == ["mine"], f"it wrote into a stranger's folder: {names}"
        assert (run / "mine").read_text() == "precious"
        shutil.rmtree(run)
    assert not run.exists(), f"a half tree came back: {os.listdir(run)}"
    if how != "deleted":
        away.rename(run)
        assert committed(run)
        done = begin(place, *WORDS, "steps=100001", "sample_every=7", before=stop_soon).wait()
        assert done.code == 143, done.err[-300:]
        nothing_lost(run)


def clock(jump: Callable[[float], float], zone: str, place: Path) -> None:
    """The clock jumps in the middle: nothing is ordered by it, and no duration has it."""

    def before() -> None:
        real, calls = time.time, 0
        os.environ["TZ"] = zone
        time.tzset()

        def jumping() -> float:
            nonlocal calls
            calls += 1
            return jump(real()) if calls > 5 else real()

        time.time = jumping
        stop_at_second()

    begin(place, *WORDS, before=before).wait()
    seconds = json.loads((place / "run" / "result.json").read_text())["wall_s"]
    done = begin(place, *WORDS, before=before).wait()
    assert done.code == 0, done.err[-300:]
    result = json.loads((place / "run" / "result.json").read_text())
    assert 0 < seconds < result["wall_s"] < 100, (seconds, result["wall_s"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", result["updated"])
    walls = [
        json.loads(line).get("wall_s", 0)
        for line in (place / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert max(walls) < 100
    assert_identical(place, *WORDS)


def stop_at_second() -> None:
    """A SIGTERM at the second checkpoint of a run that began at step 0."""
    from ganlab.runs.checkpoint import Checkpoints

    save = Checkpoints.save

    def saved(self: Checkpoints, step: int, *args: Any) -> Path:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return save(self, step, *args)

    Checkpoints.save = saved  # type: ignore[method-assign]


def late_folder(place: Path) -> None:
    """A rename whose target is there after all, as a network disk reports it: kept, for it is sound."""

    def before() -> None:
        rename, lost = os.rename, list[Any]()

        def twice(old: Any, new: Any) -> None:
            rename(old, new)
            if "/step-" in str(new) and len(lost) < 2:  # it has worked, and the answer is lost
                lost.append(new)
                os.mkdir(old)
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

        os.rename = twice

    done = begin(place, *WORDS, before=before).wait()
    assert done.code == 0, done.err[-300:]
    assert_identical(place, *WORDS)


def no_replace(place: Path) -> None:
    """A file system that can't rename over a file: code 5 before training, and why."""

    def before() -> None:
        replace = os.replace

        def refuse(old: Any, new: Any) -> None:
            if os.path.lexists(new):
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            replace(old, new)

        os.replace = refuse

    done = begin(place, *WORDS, before=before).wait()
    one_line(done, 5, "run/result.json: this file system can't replace", "run_dir=")
    assert last_step(place / "run") <= 0, "it trained before the error"
    finish(place, *WORDS)
    assert_identical(place, *WORDS)


def cases() -> list[Case]:
    jumps: dict[str, tuple[Callable[[float], float], str]] = {
        "an hour back": (lambda now: now - 3600, "UTC"),
        "to 2100": (lambda now: now + 2.4e9, "UTC"),
        "back and forth": (lambda now: now + (-1) ** int(now * 100) * 1e5, "America/New_York"),
        "it stands still": (lambda now: 1.7e9, "CET-1CEST,M3.5.0,M11.4.0/3"),
    }
    ways = ("deleted", "moved", "replaced")
    return [
        *(Case(f"run folder {way}", functools.partial(gone, way)) for way in ways),
        *(Case(f"clock jumps: {name}", functools.partial(clock, *jump)) for name, jump in jumps.items()),
        Case("a rename's answer is lost", late_folder),
        Case("no rename over a file", no_replace),
    ]


FIGURES = [Figure("folders", "Folders that vanish, clocks that jump, renames that fail: nothing lost", cases)]
