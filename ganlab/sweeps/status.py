"""``ganlab status``: progress of all runs below a folder, read from their files. Imports no torch."""

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
from ganlab.tables import print_table

DEPTH = 4  # levels of subfolders searched
TAIL = 4096  # bytes at the end of metrics.jsonl that hold its last line
REFRESH_S = 5.0  # seconds between two tables with watch=true
HEADS = ("run", "state", "step", "of", "it/s", "left", "last scores")


def show_status(folders: Sequence[str], watch: bool = False) -> int:
    """Print a table of the runs below ``folders``; with ``watch``, repeat it until all are over.

    Raises DataError if a folder does not exist, or none holds a run.
    """
    roots = [Path(p) for p in folders or ["outputs"]]
    for root in roots:
        if not root.is_dir():
            raise DataError(str(root), "is not a folder", "name a run, a grid's folder, or a parent folder")
    while True:
        runs = [row for root in roots for row in rows(root)]
        for line in dict.fromkeys(line for root in roots for line in grid_warnings(root)):
            print(f"ganlab: warning: {line}", file=sys.stderr)
        if not runs:
            where = " ".join(map(str, roots))
            raise DataError(where, "contains no runs", "start one with ganlab train or sweep")
        print_table(_title(roots), HEADS, (_shorten(row, roots).values() for row in runs))
        print(summary(runs))
        if not watch or not any(row["state"] in ("running", "pending") for row in runs):
            return 0
        time.sleep(REFRESH_S)


def _title(roots: Sequence[Path]) -> str:
    grid = process.read_json_leniently(roots[0] / "grid.json") if len(roots) == 1 else {}
    if not grid:
        return " ".join(map(str, roots))
    scale = grid.get("scale")
    scales = [f"{v:g} of the {k}" for k, v in scale.items() if v != 1] if isinstance(scale, dict) else []
    return ", ".join([f"{grid.get('title')}", *scales])


def rows(root: Path) -> list[dict[str, Any]]:
    """A row for each run at or below ``root``, and for each cell of a grid that has not started."""
    by_folder = {folder: _row(folder) for folder in _run_folders(root, DEPTH)}
    order: dict[Path, tuple[str, int]] = {}  # cells are listed in the grid's order
    for path in _grids(root):
        cells = process.read_json_leniently(path).get("cells")
        for number, cell in enumerate(cells if isinstance(cells, list) else []):
            if not isinstance(cell, dict):
                continue
            folder = Path(os.path.normpath(path.parent / str(cell.get("run"))))
            order[folder] = (str(path.parent), number)
            if folder not in by_folder and _is_run(folder):  # of train -m, whose record lies elsewhere
                by_folder[folder] = _row(folder)
            elif folder not in by_folder:
                row = dict.fromkeys(HEADS, "") | {"run": str(folder), "state": "pending", "step": 0}
                by_folder[folder] = row | {"of": cell.get("steps", "")}
    return [by_folder[folder] for folder in sorted(by_folder, key=lambda f: order.get(f, (str(f), 0)))]


def _grids(root: Path) -> list[Path]:
    """The ``grid.json`` files of ``root`` and its subfolders."""
    return [p for p in [root / "grid.json", *sorted(root.glob("*/grid.json"))] if p.is_file()]


def grid_warnings(root: Path) -> list[str]:
    """A warning for each damaged ``grid.json``."""
    return [
        f"{path}: damaged, so cells that have not started are missing; the sweep's command rewrites it"
        for path in _grids(root)
        if not isinstance(process.read_json_leniently(path).get("cells"), list)
    ]


def _shorten(row: dict[str, Any], roots: Sequence[Path]) -> dict[str, Any]:
    """The row with the run's path relative to the root, if there is one root."""
    path = Path(row["run"])
    is_below = len(roots) == 1 and path != roots[0] and path.is_relative_to(roots[0])
    return row | {"run": str(path.relative_to(roots[0]))} if is_below else row


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() or (folder / "result.json").is_file()


def _run_folders(root: Path, depth: int) -> Iterator[Path]:
    if _is_run(root):
        yield root
    elif depth:
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(root), key=lambda e: e.name):
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                    yield from _run_folders(Path(entry), depth - 1)


def _row(folder: Path) -> dict[str, Any]:
    result = process.read_json_leniently(folder / "result.json")
    state, step, steps = str(result.get("status", "running")), result.get("step", 0), result.get("steps", "")
    if state == "finished" and not RunFolder(folder).finished(result):
        state = "no checkpoint"  # at the result's step
    alive = owner_of(folder / ".lock") is not None
    if state == "running" and not alive:
        state = "killed"
    elif alive:
        state = "running"
    last = _last_line(folder / "metrics.jsonl")
    rate, left = result.get("it_per_s") or "", ""
    if state == "running":
        step = max(step if isinstance(step, int) else 0, last.get("step", 0))
        seconds = _seconds_since_update(result)
        speed = (step - result.get("step", 0)) / seconds if seconds > 1 else 0.0
        rate = round(speed, 2) if speed > 0 else rate
        if isinstance(rate, int | float) and rate > 0 and isinstance(steps, int):
            phases = result["phases"] if isinstance(result.get("phases"), list) else []
            end = next((p for p in phases if isinstance(p, int) and p > step), steps)
            left = _format_time((end - step) / rate) + ("" if end == steps else f" to step {end}")
    scores = process.format_scores(folder)
    values = (str(folder), state, step, steps, rate, left, scores)
    return dict(zip(HEADS, values, strict=True))


def _seconds_since_update(result: dict[str, Any]) -> float:
    """Seconds since the result was written; 0 if it does not say."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        written = datetime.fromisoformat(result["updated"])
        return (datetime.now(written.tzinfo) - written).total_seconds()
    return 0.0


def _last_line(path: Path) -> dict[str, Any]:
    """The last complete record of ``metrics.jsonl``; empty if there is none."""
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


def summary(runs: Sequence[dict[str, Any]]) -> str:
    """``48 runs: 31 finished, 2 running, 15 pending``."""
    counts: dict[str, int] = {}
    for row in runs:
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    parts = ", ".join(f"{n} {state}" for state, n in sorted(counts.items(), key=lambda p: -p[1]))
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {parts}"


def _format_time(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60:02d}" if minutes >= 60 else f"{minutes}:{int(seconds % 60):02d}"
