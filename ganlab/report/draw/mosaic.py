"""Samples of a section (SNGAN, Figure 6), or of a grid: one axis down, one across (WGAN-GP, Figure 2)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ganlab import text
from ganlab.papers import labels
from ganlab.report.draw import sheet
from ganlab.report.draw.sheet import Tile
from ganlab.report.draw.style import Picture
from ganlab.report.read.cells import Key, Section
from ganlab.report.read.collect import Run, Score
from ganlab.report.read.grids import Grid
from ganlab.system.files import open_regular

MAX_PIXELS = 40_000_000  # of one sample grid; checked in the header before decoding
PADDING = 2  # between the tiles of a run's sample grid
MAX_ROWS = 24  # of a grid's picture
MARKS = {"diverged": "div.", "failed": "failed", "finished": ""}


def of_section(section: Section, title: str, name: str, key: Key | None) -> Picture | None:
    """The newest samples of one run per cell, with its step and the score ``key``; None without samples."""
    tiles = 3 if len(section.cells) > 12 else 4
    sheet_tiles = {}
    for (group, setting), cell in section.cells.items():
        scores = {id(run): score for run, score in cell.scores(key)} if key else {}
        place = section.groups.index(group), section.settings.index(setting)
        sheet_tiles[place] = Tile(None, "no samples")
        for run in lowest_first(cell.runs):
            if (sample := _samples(run, tiles, scores.get(id(run)))) is not None:
                sheet_tiles[place] = sample
                break
    columns = [f"setting {setting}" for setting in section.settings]
    rows = [group.label for group in section.groups]
    samples = f"{tiles}×{tiles} samples" if pixels(section.resolution) else "samples"
    caption = f"The newest {samples} of one run per cell (lowest seed), not curated."
    return _picture(title, rows, columns, sheet_tiles, name, caption)


def axes(grid: Grid) -> tuple[str, str] | None:
    """The axes down and across, for a grid with exactly two axes besides the seed; else None.

    None also for a grid of settings, which the section's own picture shows across.
    """
    varied = {axis: names for axis, names in grid.axes().items() if axis != "seed" and len(names) > 1}
    if len(varied) != 2 or "setting" in varied:
        return None
    down, across = varied
    return (down, across) if len(varied[down]) <= MAX_ROWS else None


def of_grid(grid: Grid, runs: Iterable[Run], name: str) -> Picture | None:
    """The newest samples of every cell, or why it has none; None if no cell has samples."""
    if (pair := axes(grid)) is None:
        return None
    down, across = (grid.axes()[axis] for axis in pair)
    by_folder = {run.folder: run for run in runs}
    cell_runs: dict[tuple[int, int], list[Run]] = {}
    for cell in grid.cells:
        if set(pair) <= cell.axes.keys():
            place = down.index(cell.axes[pair[0]]), across.index(cell.axes[pair[1]])
            cell_runs.setdefault(place, []).extend(filter(None, [by_folder.get(cell.folder)]))
    tiles = {place: _tile(lowest_first(candidates)) for place, candidates in cell_runs.items()}
    rows, columns = ([labels.method_label(label) for label in names] for names in (down, across))
    samples = "3×3 samples" if all(side(r) for r in by_folder.values()) else "samples"
    order = f"down: {pair[0]}; across: {pair[1]}"
    caption = f"The newest {samples} of every cell (lowest seed), not curated; {order}."
    return _picture(f"Samples: {grid.heading}", rows, columns, tiles, name, caption)


def _picture(
    title: str,
    rows: list[str],
    columns: list[str],
    tiles: dict[tuple[int, int], Tile],
    name: str,
    caption: str,
) -> Picture | None:
    if not any(tile.image for tile in tiles.values()):
        return None
    png = sheet.png(title, rows, columns, tiles)
    return Picture(name, png, b"", f"{title}. {caption}", caption)


def _tile(runs: list[Run]) -> Tile:
    """The samples of the first run that has some; else why the first has none."""
    for run in runs:
        kinds = (s for kind in ("fid", "is") for s in run.scores if labels.split_score(s.name)[0] == kind)
        if (tile := _samples(run, 3, next(kinds, None))) is not None:
            return tile
    if not runs:
        return Tile(None, "not started")
    run = runs[0]
    unfinished = run.status != "finished"
    error = f": {run.text('error')}" if unfinished and run.text("error") else ""
    reason = f"{run.status}{error}" if unfinished else "no samples"
    return Tile(None, run.problem or reason, alarm=unfinished)


def _samples(run: Run, tiles: int, score: Score | None) -> Tile | None:
    """The newest readable samples of a run, enlarged if they are small; None without any."""
    resolution = side(run)
    for step, path in reversed(run.samples().items()):
        if (image := corner(run, path, resolution, tiles)) is not None:
            if 0 < resolution <= 64:
                zoom = max(2, 64 // resolution)
                image = image.resize((zoom * image.width, zoom * image.height), Image.Resampling.NEAREST)
            caption = sheet.caption(MARKS.get(run.status, "unf."), step, score)
            return Tile(image, caption, run.status != "finished")
    return None


def pixels(resolution: str) -> int:
    """A resolution as a number, 0 if it is none."""
    return int(resolution) if re.fullmatch(r"\d{1,4}", resolution) else 0


def side(run: Run) -> int:
    """Side of a run's images in pixels; 0 if unknown or if it has no images."""
    return pixels(text.clean(run.config.get("dataset.resolution") or "", 8))


def lowest_first(runs: Iterable[Run]) -> list[Run]:
    """Finished runs first, then by seed."""
    return sorted(runs, key=lambda r: (r.status != "finished", r.by_seed))


def corner(run: Run, path: Path, resolution: int, tiles: int) -> Image.Image | None:
    """The top left ``tiles`` x ``tiles`` samples of a grid; None, with a note, if it can't be read.

    At an unknown resolution the grid is cropped to a square.
    """
    try:
        with open(path, "rb", opener=open_regular) as file, Image.open(file, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError("too many pixels")
            size = _side(image.width, image.height, resolution, tiles)
            return image.crop((0, 0, *size)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        run.note_unreadable(path, e)
    return None


def _side(width: int, height: int, resolution: int, tiles: int) -> tuple[int, int]:
    for padding in (PADDING, 0) if resolution else ():
        pitch = resolution + padding
        if width % pitch == padding and height % pitch == padding:
            across, down = (min(tiles, (n - padding) // pitch) for n in (width, height))
            return across * pitch + padding, down * pitch + padding
    square = min(width, height, 512)
    return square, square
