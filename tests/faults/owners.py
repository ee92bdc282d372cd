"""Many starts at once: who owns a run folder."""

from __future__ import annotations

import functools
import json
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import Case, Done, Figure, nothing_lost, one_line, until
from .runs import EVENTFUL, assert_identical, begin, finish

WORDS = (*EVENTFUL, "steps=8")


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
    finish(place, *WORDS, "steps=2")  # a folder that exists: its lock is asked for before anything is loaded
    (place / "run" / "result.json").unlink()
    done = together(place, count, lambda _: (*WORDS, "steps=8"), hold=True)
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
    done = together(place, count, lambda i: (*WORDS[:1], "steps=1", f"seed={i}", "run_dir=null"), hold=False)
    assert [d.code for d in done] == [0] * count, [d.err[-200:] for d in done if d.code][:1]
    folders = [p.parent for p in (place / "outputs").rglob("run.json")]
    assert len(folders) == count, f"{len(folders)} folders"
    assert len({(f / "run.json").read_text() for f in folders}) == count
    for folder in folders:
        assert json.loads((folder / "result.json").read_text())["status"] == "finished"


def one_folder(count: int, place: Path) -> None:
    """The same launch many times in one second means one run: the first runs it, or has run it."""
    words = (*WORDS, "run_dir=null")
    done = together(place, count, lambda _: words, hold=False)
    assert {d.code for d in done} <= {0, 7}, [d.err[-200:] for d in done if d.code not in (0, 7)]
    assert any(d.code == 0 for d in done)
    (folder,) = [p.parent for p in (place / "outputs").rglob("run.json")]
    finish(place, *words)
    shutil.move(folder, place / "run")
    assert_identical(place, *WORDS)


def cases() -> list[Case]:
    starts, launches = 16, 50
    return [
        *(Case(f"{starts} starts, round {i}", functools.partial(one_owner, starts)) for i in range(10)),
        Case(f"{launches} seeds at once", functools.partial(many_folders, launches), launches),
        Case(f"one launch {launches} times at once", functools.partial(one_folder, launches)),
    ]


FIGURES = [Figure("owners", "Many starts at once: one owner, a folder for each config", cases)]
