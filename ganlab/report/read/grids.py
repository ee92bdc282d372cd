"""What ``ganlab sweep`` says of a grid in its ``grid.json``: title, scale, and the cells it should have.

The file is read as any other of a run folder: bounded, cleaned, and never needed. What is wrong is noted.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ganlab.report.read.collect import Run
from ganlab.system.files import open_regular
from ganlab.text import clean

NAME = "grid.json"
MAX_BYTES = 8 << 20
MAX_CELLS = 5000
MAX_AXES = 40


@dataclass(frozen=True)
class Place:
    """A cell as ``grid.json`` lists it. axes, chosen: labels by axis, and of a random set's member by key."""

    name: str
    folder: Path
    axes: dict[str, str]
    chosen: dict[str, str]


@dataclass(frozen=True)
class Grid:
    """A grid's folder in words. updates, width: fractions of the paper's, None if not told.

    pairs: the axis along which its cells are compared two by two, how (``count``), and whose ``paper``'s
    counts are beside. random: how its random set was drawn (``n``, ``seed``, ``of`` how many).
    """

    title: str
    updates: float | None = None
    width: float | None = None
    cells: int = 0
    missing: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    folder: Path = Path()
    places: list[Place] = field(default_factory=list)
    pairs: dict[str, str] = field(default_factory=dict)
    random: dict[str, int] = field(default_factory=dict)

    def axes(self) -> dict[str, list[str]]:
        """Every axis with its labels, in the order of the cells."""
        found: dict[str, dict[str, None]] = {}
        for place in self.places:
            for axis, label in place.axes.items():
                found.setdefault(axis, {})[label] = None
        return {axis: list(labels) for axis, labels in found.items()}

    @property
    def scale(self) -> str:
        """``0.01 of the paper's updates, 0.125 of its width``; "" at full scale, or if it is not told."""
        parts = []
        if self.updates is not None and self.updates != 1:
            parts.append(f"{self.updates:g} of the paper's updates")
        if self.width is not None and self.width != 1:
            parts.append(f"{self.width:g} of its width" if parts else f"{self.width:g} of the paper's width")
        return ", ".join(parts)

    @property
    def heading(self) -> str:
        return f"{self.title} (reduced scale: {self.scale})" if self.scale else self.title

    @property
    def summary(self) -> str:
        """``48 cells: 45 finished, 2 diverged, 1 not begun``."""
        if self.problem:
            return self.problem
        told = [f"{n} {status}" for status, n in sorted(self.counts.items())]
        told += [f"{len(self.missing)} not begun"] if self.missing else []
        return f"{self.cells} cells: {', '.join(told)}"


def find(runs: Iterable[Run], paths: Sequence[Path]) -> list[Grid]:
    """The grids whose folders hold the runs, or were named themselves, in the order of their folders."""
    folders = {up for run in runs for up in (run.folder.parent, run.folder.parent.parent)}
    folders |= {p.resolve() for p in paths}
    by_folder = {run.folder: run for run in runs}
    return [read(folder, by_folder) for folder in sorted(folders) if (folder / NAME).is_file()]


def read(folder: Path, runs: dict[Path, Run]) -> Grid:
    """One ``grid.json``; a damaged one gives the folder's name and says what is wrong."""
    name = clean(folder.name, 80)
    try:
        with open(folder / NAME, "rb", opener=open_regular) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MB")
        told = json.loads(data)
        if not isinstance(told, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as e:
        return Grid(name, problem=f"{NAME} can't be read: {clean(e, 120)}")
    scale = told.get("scale")
    scale = scale if isinstance(scale, dict) else {}
    listed = told.get("cells")
    cells = [c for c in listed if isinstance(c, dict)] if isinstance(listed, list) else []
    counts: Counter[str] = Counter()
    missing, places = [], []
    for cell in cells[:MAX_CELLS]:
        place = str(cell.get("run") or cell.get("name") or "")[:200]
        run = runs.get(folder / place)  # only runs that were found count, whatever path the file has
        shown = clean(cell.get("name") or place or "unnamed", 60)
        places.append(Place(shown, folder / place, _labels(cell.get("axes")), _labels(cell.get("chosen"))))
        if run is not None:
            counts["unreadable" if run.problem else run.status] += 1
        else:
            missing.append(shown)
    title = clean(told.get("title") or told.get("grid") or name, 160)
    updates, width = (_fraction(scale.get(key)) for key in ("updates", "width"))
    pairs, drawn = _labels(told.get("pairs")), told.get("random")
    numbers = {k: v for k, v in drawn.items() if type(v) is int} if isinstance(drawn, dict) else {}
    random = {key: numbers[key] for key in ("n", "seed", "of") if key in numbers}
    about = (title, updates, width, min(len(cells), MAX_CELLS), missing, dict(counts))
    return Grid(*about, folder=folder, places=places, pairs=pairs, random=random)


def _labels(told: object) -> dict[str, str]:
    """Names and their labels, as clean text."""
    pairs = list(told.items())[:MAX_AXES] if isinstance(told, dict) else []
    return {clean(key, 60): clean(value, 60) for key, value in pairs}


def _fraction(value: Any) -> float | None:
    """A positive finite number, or None for whatever else a file may hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        return None
    return float(value) if math.isfinite(value) else None
