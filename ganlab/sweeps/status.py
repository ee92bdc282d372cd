"""``ganlab status``: how far the runs below a folder are, by their files alone. No torch."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ganlab.errors import DataError
from ganlab.runs.folder import RunFolder
from ganlab.runs.metrics_file import parse_line
from ganlab.sweeps import process
from ganlab.system.files import open_regular
from ganlab.system.lock import owner_of

DEPTH = 4  # folders below the one that is named
TAIL = 4096  # bytes of metrics.jsonl that hold its last line
EVERY = 5.0  # seconds between looks with watch=true
HEADS = ("run", "state", "step", "of", "it/s", "packed", "left", "last scores")


def status(places: Sequence[str], watch: bool = False) -> int:
    """Print a table of the runs below ``places``; with ``watch`` again and again until all are over.

    Raises DataError if there is no such folder, or none holds a run.
    """
    roots = [Path(p) for p in places or ["outputs"]]
    for root in roots:
        if not root.is_dir():
            raise DataError(str(root), "is no folder", "name a run, a grid's folder, or a folder of them")
    while True:
        shown = [row for root in roots for row in rows(root)]
        for line in dict.fromkeys(line for root in roots for line in damage(root)):
            print(f"ganlab: warning: {line}", file=sys.stderr)
        if not shown:
            raise DataError(
                " ".join(map(str, roots)), "holds no runs", "start one with ganlab train or sweep"
            )
        process.print_table(_title(roots), HEADS, [_short(row, roots) for row in shown])
        print(summary(shown))
        if not watch or not any(row["state"] in ("running", "pending") for row in shown):
            return 0
        time.sleep(EVERY)


def _title(roots: Sequence[Path]) -> str:
    grid = process.read_json_leniently(roots[0] / "grid.json") if len(roots) == 1 else {}
    if not grid:
        return " ".join(map(str, roots))
    scale = grid.get("scale")
    small = [f"{v:g} of the {k}" for k, v in scale.items() if v != 1] if isinstance(scale, dict) else []
    return ", ".join([f"{grid.get('title')}", *small])


def rows(root: Path) -> list[dict[str, Any]]:
    """A row for each run at or below ``root``, and for each cell of a grid that has not begun."""
    found = {folder: _row(folder) for folder in _folders(root, DEPTH)}
    ranks: dict[Path, tuple[str, int]] = {}  # a grid's cells in the grid's order
    for path in _grids(root):
        cells = process.read_json_leniently(path).get("cells")
        for number, cell in enumerate(cells if isinstance(cells, list) else []):
            if not isinstance(cell, dict):
                continue
            folder = path.parent / str(cell.get("run"))
            ranks[folder] = (str(path.parent), number)
            if folder not in found:
                row = dict.fromkeys(HEADS, "") | {"run": str(folder), "state": "pending", "step": 0}
                found[folder] = row | {"of": cell.get("steps", "")}
    return [found[folder] for folder in sorted(found, key=lambda f: ranks.get(f, (str(f), 0)))]


def _grids(root: Path) -> list[Path]:
    """The grid files at or just below ``root``."""
    return [p for p in [root / "grid.json", *sorted(root.glob("*/grid.json"))] if p.is_file()]


def damage(root: Path) -> list[str]:
    """What can't be told because a grid's file is damaged, with the fix: cells that have not begun."""
    return [
        f"{path}: damaged; cells that have not begun are not shown; the sweep's command writes it anew"
        for path in _grids(root)
        if not isinstance(process.read_json_leniently(path).get("cells"), list)
    ]


def _short(row: dict[str, Any], roots: Sequence[Path]) -> dict[str, Any]:
    """With the run named from the one root, which the title names."""
    path = Path(row["run"])
    return row if len(roots) > 1 or path == roots[0] else row | {"run": str(path.relative_to(roots[0]))}


def _folders(root: Path, depth: int) -> Iterator[Path]:
    if (root / "run.json").is_file() or (root / "result.json").is_file():
        yield root
    elif depth:
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(root), key=lambda e: e.name):
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                    yield from _folders(Path(entry), depth - 1)


def _row(folder: Path) -> dict[str, Any]:
    result = process.read_json_leniently(folder / "result.json")
    state, step, steps = str(result.get("status", "running")), result.get("step", 0), result.get("steps", "")
    if state == "finished" and not RunFolder(folder).finished(result):
        state = "no checkpoint"  # of the step that the result names
    alive = owner_of(folder / ".lock") is not None
    if state == "running" and not alive:
        state = "killed"  # the same command continues it
    elif alive:
        state = "running"
    last = _last_line(folder / "metrics.jsonl")
    rate, left = result.get("it_per_s") or "", ""
    if state == "running":
        step = max(step if isinstance(step, int) else 0, last.get("step", 0))
        speed = (step - result.get("step", 0)) / seconds if (seconds := _since(result)) > 1 else 0.0
        rate = round(speed, 2) if speed > 0 else rate
        if isinstance(rate, int | float) and rate > 0 and isinstance(steps, int):
            left = _told((steps - step) / rate)
    scores = process.scores(folder)
    told = (str(folder), state, step, steps, rate, process.pack_size(result), left, scores)
    return dict(zip(HEADS, told, strict=True))


def _since(result: dict[str, Any]) -> float:
    """Seconds since the result was written, when its step was the newest."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        written = datetime.fromisoformat(result["updated"])
        return (datetime.now(written.tzinfo) - written).total_seconds()
    return 0.0


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole record of ``metrics.jsonl``, or nothing."""
    try:
        with open(path, "rb", opener=open_regular) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            record = parse_line(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                return record
    return {}


def summary(shown: Sequence[dict[str, Any]]) -> str:
    """``48 runs: 31 finished, 2 running, 15 pending``."""
    counts: dict[str, int] = {}
    for row in shown:
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    parts = ", ".join(f"{n} {state}" for state, n in sorted(counts.items(), key=lambda p: -p[1]))
    return f"{len(shown)} run{'s' if len(shown) > 1 else ''}: {parts}"


def _told(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60:02d}" if minutes >= 60 else f"{minutes}:{int(seconds % 60):02d}"
