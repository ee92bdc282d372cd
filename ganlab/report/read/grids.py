"""Reads ``grid.json``, in which ``ganlab sweep`` and ``ganlab train -m`` record a grid: title, scale, cells.

The file is optional and untrusted like all of a run folder: its size is bounded, its text cleaned, and a
mistake in it becomes a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ganlab.report.read.collect import GRID, Run, cell_folder, grid_cells, number, read_object
from ganlab.report.read.history import mapping
from ganlab.text import clean

MAX_AXES = 40


@dataclass(frozen=True)
class GridCell:
    """A cell listed in ``grid.json``. axes: axis -> label. choices: key -> value of a random set's member."""

    name: str
    folder: Path
    axes: dict[str, str]
    choices: dict[str, str]


@dataclass(frozen=True)
class Grid:
    """A grid. updates, width: fractions of the paper's, None if not recorded.

    counts: how many runs by status. missing: cells without a run.
    pairs: ``axis`` along which cells are compared in pairs, what to ``count``, and the ``paper`` that
    published such counts. random: ``n`` members of a random set, drawn with ``seed`` out of ``of``.
    command: that of an unnamed grid.
    """

    title: str
    updates: float | None = None
    width: float | None = None
    missing: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    folder: Path = Path()
    cells: list[GridCell] = field(default_factory=list)
    pairs: dict[str, str] = field(default_factory=dict)
    random: dict[str, int] = field(default_factory=dict)
    command: str = ""

    def axes(self) -> dict[str, list[str]]:
        """Axis -> its labels, in the order of the cells."""
        by_axis: dict[str, dict[str, None]] = {}
        for cell in self.cells:
            for axis, label in cell.axes.items():
                by_axis.setdefault(axis, {})[label] = None
        return {axis: list(labels) for axis, labels in by_axis.items()}

    @property
    def scale(self) -> str:
        """``0.01× the paper's updates, 0.125× its width``; "" at full scale, or if not recorded."""
        parts = []
        if self.updates is not None and self.updates != 1:
            parts.append(f"{self.updates:g}× the paper's updates")
        if self.width is not None and self.width != 1:
            parts.append(f"{self.width:g}× its width" if parts else f"{self.width:g}× the paper's width")
        return ", ".join(parts)

    @property
    def heading(self) -> str:
        return f"{self.title} (reduced scale: {self.scale})" if self.scale else self.title

    @property
    def summary(self) -> str:
        """``48 cells: 45 finished, 2 diverged, 1 not started``."""
        if self.problem:
            return self.problem
        parts = [f"{n} {status}" for status, n in sorted(self.counts.items())]
        parts += [f"{len(self.missing)} not started"] if self.missing else []
        command = f" ({self.command})" if self.command else ""
        return f"{len(self.cells)} cell{'s' * (len(self.cells) != 1)}: {', '.join(parts)}{command}"


def find(runs: Iterable[Run], paths: Sequence[Path]) -> list[Grid]:
    """The grids that contain the runs, or whose folders are in ``paths``, sorted by folder."""
    folders = {up for run in runs for up in (run.folder.parent, run.folder.parent.parent)}
    folders |= {p.resolve() for p in paths}
    by_folder = {run.folder: run for run in runs}
    return [read(folder, by_folder) for folder in sorted(folders) if (folder / GRID).is_file()]


def read(folder: Path, runs: dict[Path, Run]) -> Grid:
    """Read one ``grid.json``; a damaged one gives the folder's name as title, and a ``problem``."""
    name = clean(folder.name, 80)
    try:
        record = read_object(folder / GRID)
    except (OSError, ValueError, RecursionError) as e:
        return Grid(name, problem=f"{GRID} can't be read: {clean(e, 120)}")
    scale = mapping(record.get("scale"))
    counts: Counter[str] = Counter()
    missing, cells = [], []
    for entry in grid_cells(record):
        path, axes = cell_folder(folder, entry), _labels(entry.get("axes"))
        run = runs.get(path)  # only runs of this report count, whatever path the file names
        label = clean(entry.get("name") or path.name or "unnamed", 60)
        if record.get("grid") == "" and axes:  # the cells of an unnamed grid have numbers for names
            label = clean(" ".join(f"{key}={value}" for key, value in axes.items()), 80)
        cells.append(GridCell(label, path, axes, _labels(entry.get("chosen"))))
        if run is not None:
            counts["unreadable" if run.problem else run.status] += 1
        else:
            missing.append(label)
    title, command = clean(record.get("title") or record.get("grid") or name, 160), ""
    swept = dict.fromkeys(axis for cell in cells for axis in cell.axes)
    if record.get("grid") == "" and swept:
        title, command = f"Sweep over {', '.join(swept)}", title
    fractions = [number(scale.get(key)) for key in ("updates", "width")]
    updates, width = (f if f is not None and 0 < f < 1e9 else None for f in fractions)
    pairs, draw = _labels(record.get("pairs")), mapping(record.get("random"))
    random = {key: draw[key] for key in ("n", "seed", "of") if type(draw.get(key)) is int}
    return Grid(title, updates, width, missing, dict(counts), "", folder, cells, pairs, random, command)


def _labels(node: object) -> dict[str, str]:
    """A mapping of names to labels, as clean text."""
    return {clean(key, 60): clean(value, 60) for key, value in list(mapping(node).items())[:MAX_AXES]}
