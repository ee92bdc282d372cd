"""Samples of a grid's cells, one axis down and one across, as in WGAN-GP's Figure 2."""

from __future__ import annotations

from collections.abc import Iterable

from ganlab import text
from ganlab.papers import labels as labels_module
from ganlab.report.draw import mosaic, style
from ganlab.report.read.collect import Run
from ganlab.report.read.grids import Grid, GridCell

MAX_ROWS = 24
TILES = 3


def axes(grid: Grid) -> tuple[str, str] | None:
    """The axes down and across, for a grid with exactly two axes besides the seed; else None.

    None also for a grid of settings, which the section's own picture shows across.
    """
    varied = {axis: labels for axis, labels in grid.axes().items() if axis != "seed" and len(labels) > 1}
    if len(varied) != 2 or "setting" in varied:
        return None
    down, across = varied
    return (down, across) if len(varied[down]) <= MAX_ROWS else None


def draw(grid: Grid, runs: Iterable[Run], name: str) -> style.Picture | None:
    """The newest samples of every cell, or why it has none; None if no cell has samples."""
    if (pair := axes(grid)) is None:
        return None
    down, across = (grid.axes()[axis] for axis in pair)
    by_folder = {run.folder: run for run in runs}
    cell_runs: dict[tuple[int, int], list[Run]] = {}
    tiles: dict[tuple[int, int], mosaic.Tile] = {}
    for cell in grid.cells:
        if (position := _position(cell, pair, (down, across))) is not None:
            tiles[position] = mosaic.Tile(None, "not started")
            cell_runs.setdefault(position, []).extend(filter(None, [by_folder.get(cell.folder)]))
    for position, candidates in cell_runs.items():
        for run in reversed(mosaic.lowest_first(candidates)):  # the first one wins
            tiles[position] = tile(run, tiles[position])
    small = all(mosaic.side(r) <= 64 for r in by_folder.values())
    rows, columns = ([labels_module.method_label(label) for label in labels] for labels in (down, across))
    title = f"Samples: {grid.heading}"
    png = mosaic.compose(title, rows, columns, tiles, 2 if small else 1)
    sized = all(mosaic.side(r) for r in by_folder.values())
    samples = f"{TILES}×{TILES} samples" if sized else "samples"
    order = f"down: {pair[0]}; across: {pair[1]}"
    caption = f"The newest {samples} of every cell (lowest seed), not curated; {order}."
    return style.Picture(name, png, b"", f"{title}. {caption}", caption) if png else None


def _position(
    cell: GridCell, pair: tuple[str, str], labels: tuple[list[str], list[str]]
) -> tuple[int, int] | None:
    names = [cell.axes.get(axis) for axis in pair]
    if None in names:
        return None
    i, j = (axis.index(str(name)) for axis, name in zip(labels, names, strict=True))
    return i, j


def tile(run: Run, otherwise: mosaic.Tile) -> mosaic.Tile:
    """A run's newest samples with step and score, or why there are none."""
    if run.problem:
        return mosaic.Tile(None, run.problem, alarm=True)
    resolution = mosaic.side(run)
    newest = mosaic.newest(run, resolution, TILES)
    unfinished = run.status != "finished"
    if newest is None:
        if otherwise.image is not None:
            return otherwise
        error = f": {run.text('error')}" if unfinished and run.text("error") else ""
        return mosaic.Tile(None, f"{run.status}{error}" if unfinished else "no samples", alarm=unfinished)
    image, step = newest
    score = next(
        (s for kind in ("fid", "is") for s in run.scores if labels_module.split_score(s.name)[0] == kind),
        None,
    )
    parts = [mosaic.MARKS.get(run.status, "unf."), f"step {step:,}"]
    parts += (
        [f"{text.plain(labels_module.score_label(score.name), 16)} {labels_module.number(score.value)}"]
        if score
        else []
    )
    return mosaic.Tile(image, " · ".join(part for part in parts if part), alarm=unfinished)
