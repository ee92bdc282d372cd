"""A power cut: what was recorded of the order of writes, syncs and renames."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import launching
from .base import Case, Figure
from .launching import begin

GAME = (*launching.GAME, "steps=12")


def order(place: Path) -> None:
    """What a power cut leaves: each renamed file was synced before, and its folder after."""
    run, happened = place / "run", place / "happened"

    def before() -> None:
        note = os.open(happened, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        fsync, rename, replace, write = os.fsync, os.rename, os.replace, os.write

        def say(*words: object) -> None:
            write(note, (json.dumps([str(w) for w in words]) + "\n").encode())

        def noted(call: Callable[..., Any], what: str) -> Callable[..., Any]:
            def noting(*args: Any, **kwargs: Any) -> Any:
                found = call(*args, **kwargs)
                paths = [
                    os.readlink(f"/proc/self/fd/{a}") if isinstance(a, int) else Path(a).absolute()
                    for a in args[: 2 if what == "rename" else 1]
                ]
                say(what, *paths)
                return found

            return noting

        os.write, os.fsync = noted(write, "write"), noted(fsync, "fsync")
        os.rename, os.replace = noted(rename, "rename"), noted(replace, "rename")

    done = begin(place, *GAME, before=before).wait()
    assert done.code == 0, done.err[-300:]
    events = [json.loads(line) for line in happened.read_text().splitlines()]
    commits = 0
    for i, (what, *paths) in enumerate(events):
        if what != "rename" or ".trash-" in paths[1] or "/samples/" in paths[1]:
            continue
        old, new = paths
        commits += 1
        earlier = events[:i]
        files = {
            p[0] for kind, *p in earlier if kind == "write" and (p[0] == old or p[0].startswith(old + "/"))
        }
        assert files, f"{new} was written by nobody"
        for file in files:
            last_write = max(j for j, e in enumerate(earlier) if e[0] == "write" and e[1] == file)
            assert ["fsync", file] in earlier[last_write:], f"{file} was renamed before it was synced"
        if "/step-" in new:
            last_file = max(j for j, e in enumerate(earlier) if e[0] == "fsync" and e[1] in files)
            assert ["fsync", old] in earlier[last_file:], f"{old} was renamed before the folder was synced"
            manifest = max(j for j, e in enumerate(earlier) if e[0] == "write" and e[1] in files)
            assert earlier[manifest][1].endswith("MANIFEST.json"), "the manifest is not the last"
            lines = [j for j, e in enumerate(earlier) if e[1].endswith("metrics.jsonl") and e[0] == "write"]
            synced = [j for j, e in enumerate(earlier) if e[1].endswith("metrics.jsonl") and e[0] == "fsync"]
            assert not lines or synced[-1] > lines[-1], "a checkpoint is ahead of its metrics"
        following = [e for e in events[i + 1 :] if e[0] in ("fsync", "rename")]
        assert following[0] == ["fsync", str(Path(new).parent)], (
            f"{Path(new).parent} was not synced after {new}"
        )
    assert commits >= 15, f"only {commits} renames were seen"
    assert run.is_dir()


def cases() -> list[Case]:
    return [Case("every rename of a run", order)]


FIGURES = [Figure("power", "Power cut: synced before its rename, its folder after", (2,), 1, cases)]
