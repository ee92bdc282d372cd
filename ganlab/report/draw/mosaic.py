"""Figure 6 of the SNGAN paper: samples of every cell, rows = methods, columns = settings."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ganlab import text
from ganlab.papers import labels
from ganlab.report.draw import style
from ganlab.report.read.cells import Cell, Key, Section
from ganlab.report.read.collect import Run
from ganlab.system.files import open_regular

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

MAX_PIXELS = 40_000_000  # of one sample grid; checked in the header before decoding
PADDING = 2  # between the tiles of a run's sample grid
GAP = 10
MARKS = {"diverged": "div.", "failed": "failed", "finished": ""}


class Tile(NamedTuple):
    """A cell of a sheet: samples with a caption below, or without an image, a box with the caption inside.

    alarm: the run did not finish.
    """

    image: Image.Image | None
    caption: str
    alarm: bool = False


def draw(section: Section, title: str, name: str, key: Key | None) -> style.Picture | None:
    """The newest samples of one run per cell, with its step and the score ``key``; None without samples."""
    resolution, tiles = pixels(section.resolution), (3 if len(section.cells) > 12 else 4)
    sheet: dict[tuple[int, int], Tile] = {}
    for (group, setting), cell in section.cells.items():
        position = section.groups.index(group), section.settings.index(setting)
        sheet[position] = Tile(None, "no samples")
        for run in lowest_first(cell.runs):
            if (samples := newest(run, resolution, tiles)) is not None:
                caption = _caption(cell, run, samples[1], key)
                sheet[position] = Tile(samples[0], caption, run.status != "finished")
                break
    rows = [group.label for group in section.groups]
    columns = [f"setting {setting}" for setting in section.settings]
    png = compose(title, rows, columns, sheet, 2 if 0 < resolution <= 64 else 1)
    samples_text = f"{tiles}×{tiles} samples" if resolution else "samples"
    caption = f"The newest {samples_text} of one run per cell (lowest seed), not curated."
    return style.Picture(name, png, b"", f"{title}. {caption}", caption) if png else None


def pixels(resolution: str) -> int:
    """A resolution as a number, 0 if it is none."""
    return int(resolution) if re.fullmatch(r"\d{1,4}", resolution) else 0


def side(run: Run) -> int:
    """Side of a run's images in pixels; 0 if unknown or if it has no images."""
    return pixels(text.clean(run.config.get("dataset.resolution") or "", 8))


def lowest_first(runs: Iterable[Run]) -> list[Run]:
    """Finished runs first, then by seed."""
    return sorted(runs, key=lambda r: (r.status != "finished", r.number("seed") or 0, r.label))


def compose(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    tiles: Mapping[tuple[int, int], Tile],
    zoom: int = 1,
) -> bytes | None:
    """A PNG of ``tiles`` by (row, column), their images enlarged ``zoom`` times; None without any image."""
    images = [tile.image for tile in tiles.values() if tile.image is not None]
    if not images:
        return None
    side = max(max(image.size) for image in images) * zoom
    font, small = _font(15), _font(12)
    names = [style.wrap(row, 16, 4) for row in rows]
    left = GAP * 2 + max(int(font.getlength(w)) for name in names for w in name.split("\n"))
    wide = left + len(columns) * (side + GAP)
    bold = _font(16, "-Bold")
    headline = style.wrap(title, max(24, wide // 11), 3)
    head, foot, top = 28, 20, 24 + 20 * (headline.count("\n") + 1)
    size = (wide, top + head + len(rows) * (side + foot + GAP))
    if size[0] * size[1] > 6 * MAX_PIXELS:
        return None
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((GAP, GAP), headline, "black", bold)
    for j, column in enumerate(columns):
        x = left + j * (side + GAP)
        pen.text((x + side / 2, top + head / 2), text.plain(column, 24), "black", font, "mm")
        for i, name in enumerate(names):
            y = top + head + i * (side + foot + GAP)
            if j == 0:
                pen.multiline_text((GAP, y + side / 2), name, "black", font, "lm")
            if (tile := tiles.get((i, j))) is None:
                continue
            color = style.ALARM if tile.alarm else style.GREY
            if tile.image is not None:
                larger = (tile.image.width * zoom, tile.image.height * zoom)
                sheet.paste(tile.image.resize(larger, Image.Resampling.NEAREST), (x, y))
                pen.text((x, y + side + 2), _fit(tile.caption, side + GAP - 4, small), color, small)
            else:
                pen.rectangle((x, y, x + side - 1, y + side - 1), outline="#cccccc", fill="#f4f4f4")
                inside = style.wrap(tile.caption, max(8, side // 8), 6)
                pen.multiline_text((x + side / 2, y + side / 2), inside, color, small, "mm", align="center")
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def _fit(caption: str, width: int, in_font: FreeTypeFont) -> str:
    while in_font.getlength(caption) > width and len(caption) > 4:
        caption = caption[:-2].rstrip(" ·,") + "…"
    return caption


def newest(run: Run, resolution: int, tiles: int) -> tuple[Image.Image, int] | None:
    """The top left ``tiles`` x ``tiles`` samples of the newest readable grid, and its step.

    At an unknown resolution the grid is cropped to a square. Unreadable files are noted.
    """
    for path in reversed(run.samples):
        try:
            with open(path, "rb", opener=open_regular) as file, Image.open(file, formats=["PNG"]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError("too many pixels")
                side = _side(image.width, image.height, resolution, tiles)
                return image.crop((0, 0, *side)).convert("RGB"), _step(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
            run.notes.append(f"samples/{text.clean(path.name, 40)} can't be read: {text.clean(e, 80)}")
    return None


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _side(width: int, height: int, resolution: int, tiles: int) -> tuple[int, int]:
    for padding in (PADDING, 0) if resolution else ():
        pitch = resolution + padding
        if width % pitch == padding and height % pitch == padding:
            across, down = (min(tiles, (n - padding) // pitch) for n in (width, height))
            return across * pitch + padding, down * pitch + padding
    square = min(width, height, 512)
    return square, square


def _caption(cell: Cell, run: Run, step: int, key: Key | None) -> str:
    """``step 1,000 · FID 45.20``: of this run, not the cell's mean."""
    scores = [s.value for r, s in cell.scores(key) if r is run] if key else []
    mark = MARKS.get(run.status, "unf.")
    score = (
        f"{text.plain(labels.score_label(key.score), 16)} {labels.number(scores[0])}"
        if key and scores
        else ""
    )
    return " · ".join(part for part in (mark, f"step {step:,}", score) if part)


def _font(size: int, weight: str = "") -> FreeTypeFont:
    """DejaVu Sans, which is part of matplotlib."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"DejaVuSans{weight}.ttf", size)
