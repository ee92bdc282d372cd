"""Sheets of pictures: captioned tiles in rows and columns with labels, as one PNG."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from ganlab import text
from ganlab.errors import DataError
from ganlab.papers import labels
from ganlab.report.draw import style

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

    from ganlab.report.read.collect import Score

GAP = 10  # pixels between the tiles
MAX_PIXELS = 240_000_000


class Tile(NamedTuple):
    """A cell of a sheet: samples with a caption below, or without an image, a box with the caption inside.

    alarm: the run did not finish.
    """

    image: Image.Image | None
    caption: str
    alarm: bool = False


def caption(mark: str, step: int, score: Score | None) -> str:
    """``div. · step 1,000 · FID 45.20``."""
    parts = [mark, f"step {step:,}"]
    if score is not None:
        parts.append(f"{text.plain(labels.score_label(score.name), 16)} {labels.number(score.value)}")
    return " · ".join(part for part in parts if part)


def png(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    tiles: Mapping[tuple[int, int], Tile],
    note: str = "",
) -> bytes:
    """Draw ``tiles`` by (row, column); columns and rows are as large as their largest image.

    Raises DataError if the sheet would exceed MAX_PIXELS.
    """
    label, small, bold = _font(15), _font(12), _font(16, "-Bold")
    names = [style.wrap(row, 18, 4) for row in rows]
    sizes = {place: tile.image.size for place, tile in tiles.items() if tile.image is not None}
    least = min((min(size) for size in sizes.values()), default=64)
    widths = [
        max([w for (_, k), (w, _) in sizes.items() if k == j], default=least) for j in range(len(columns))
    ]
    heights = [
        max([h for (k, _), (_, h) in sizes.items() if k == i], default=least) for i in range(len(rows))
    ]
    lines = [line for name in names for line in name.split("\n")]
    left = GAP + (GAP + max(map(int, map(label.getlength, lines))) if any(lines) else 0)
    sheet_width = max(left + sum(w + GAP for w in widths), 420)
    headline = style.wrap(title, sheet_width // 11, 4)
    head = 28 if any(columns) else 4
    foot = 20 if any(tile.caption for tile in tiles.values()) else 2
    top = 2 * GAP + 20 * (headline.count("\n") + 1) + head
    footer = style.wrap(note, sheet_width // 7, 4) if note else ""
    tail = 18 * (footer.count("\n") + 1) + GAP if footer else 0
    size = (sheet_width, top + sum(h + foot + GAP for h in heights) + tail)
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError("runs", f"a sheet of {size[0]} x {size[1]} pixels is too large", "pass fewer runs")
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((GAP, GAP), headline, style.INK, bold)
    y = top
    for i, height in enumerate(heights):
        x = left
        pen.multiline_text((GAP, y + height / 2), names[i], style.INK, label, "lm")
        for j, width in enumerate(widths):
            middle: Any = (x + width / 2, y + height / 2)
            if i == 0 and columns[j]:
                heading = _fit(text.plain(columns[j], 24), width + GAP - 4, label)
                pen.text((middle[0], top - head / 2), heading, style.INK, label, "mm")
            if (i, j) in tiles:
                image, words, alarm = tiles[i, j]
                color = style.ALARM if alarm else style.GREY
                if image is not None:
                    sheet.paste(image, (x, y))
                    pen.text((x, y + height + 2), _fit(words, width + GAP - 4, small), color, small)
                else:
                    pen.rectangle((x, y, x + width - 1, y + height - 1), outline="#cccccc", fill="#f4f4f4")
                    inside = style.wrap(words, max(8, width // 8), 6)
                    pen.multiline_text(middle, inside, color, small, "mm", align="center")
            x += width + GAP
        y += height + foot + GAP
    if footer:
        pen.multiline_text((GAP, y), footer, style.GREY, small)
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def _fit(words: str, width: int, font: FreeTypeFont) -> str:
    """Shorten a caption to ``width`` pixels."""
    while font.getlength(words) > width and len(words) > 4:
        words = words[:-2].rstrip(" ·,") + "…"
    return words


@functools.cache
def _font(size: int, weight: str = "") -> FreeTypeFont:
    """DejaVu Sans, which is part of matplotlib."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"DejaVuSans{weight}.ttf", size)
