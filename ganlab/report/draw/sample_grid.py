"""A grid's cells with one of its axes down and another across: samples of each, as in WGAN-GP's Figure 2."""

from __future__ import annotations

from collections.abc import Iterable

from ganlab import text
from ganlab.papers import labels as labels_module
from ganlab.report.draw import mosaic, style
from ganlab.report.read.collect import Run
from ganlab.report.read.grids import Grid, Place

MOST_ROWS = 24  # more are no picture
TILES = 3


def axes(grid: Grid) -> tuple[str, str] | None:
    """The two axes of a grid that has two besides the seed: down and across, in its file's order.

    None for a grid of settings: its section's own picture has them across.
    """
    several = {axis: labels for axis, labels in grid.axes().items() if axis != "seed" and len(labels) > 1}
    if len(several) != 2 or "setting" in several:
        return None
    down, across = several
    return (down, across) if len(several[down]) <= MOST_ROWS else None


def draw(grid: Grid, runs: Iterable[Run], name: str) -> style.Picture | None:
    """The newest samples of every cell, lowest seed first; a cell without any says why. None if none has."""
    if (pair := axes(grid)) is None:
        return None
    down, across = (grid.axes()[axis] for axis in pair)
    by_folder = {run.folder: run for run in runs}
    there: dict[tuple[int, int], list[Run]] = {}
    tiles: dict[tuple[int, int], mosaic.Tile] = {}
    for place in grid.places:
        if (at := _at(place, pair, (down, across))) is not None:
            tiles[at] = mosaic.Tile(None, "not begun")
            there.setdefault(at, []).extend(r for r in [by_folder.get(place.folder)] if r is not None)
    for at, found in there.items():
        for run in reversed(mosaic.lowest_first(found)):  # the first one wins
            tiles[at] = tile(run, tiles[at])
    small = all(mosaic.side(r) <= 64 for r in by_folder.values())
    rows, columns = ([labels_module.method_label(label) for label in labels] for labels in (down, across))
    title = f"Samples: {grid.heading}"
    png = mosaic.compose(title, rows, columns, tiles, 2 if small else 1)
    where = f"down: {pair[0]}; across: {pair[1]}"
    known = all(mosaic.side(r) for r in by_folder.values())
    what = f"{TILES}×{TILES} samples" if known else "samples"
    caption = f"The newest {what} of every cell (lowest seed), uncurated; {where}."
    return style.Picture(name, png, b"", f"{title}. {caption}", caption) if png else None


def _at(place: Place, pair: tuple[str, str], labels: tuple[list[str], list[str]]) -> tuple[int, int] | None:
    names = [place.axes.get(axis) for axis in pair]
    if None in names:
        return None
    i, j = (known.index(str(name)) for known, name in zip(labels, names, strict=True))
    return i, j


def tile(run: Run, otherwise: mosaic.Tile) -> mosaic.Tile:
    """What a run has to show: its newest samples with step and score, or why there are none."""
    if run.problem:
        return mosaic.Tile(None, run.problem, alarm=True)
    resolution = mosaic.side(run)
    found = mosaic.newest(run, resolution, TILES)
    ill = run.status != "finished"
    if found is None:
        if otherwise.image is not None:
            return otherwise
        error = f": {run.text('error')}" if ill and run.text("error") else ""
        return mosaic.Tile(None, f"{run.status}{error}" if ill else "no samples", alarm=ill)
    image, step = found
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
    return mosaic.Tile(image, " · ".join(part for part in parts if part), alarm=ill)
