"""Image sheets: blocks of samples, enlarged by integer factors, with row and column labels."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ganlab import text
from ganlab.errors import DataError
from ganlab.report.draw import style
from ganlab.report.draw.mosaic import Tile

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

GAP, PADDING = 10, 2  # pixels between the cells of a sheet, and between the tiles of a block
MAX_PIXELS = 100_000_000


@functools.cache
def font(size: int, weight: str = "") -> FreeTypeFont:
    """DejaVu Sans, as shipped with matplotlib."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"DejaVuSans{weight}.ttf", size)


def zoom(side: int) -> int:
    """The integer factor that enlarges small images to about 64 pixels."""
    return max(1, 64 // side)


def block(images: Tensor, columns: int) -> Image.Image:
    """Tile uint8 images (n, 1 or 3, h, w), row by row, on a white background."""
    factor = zoom(images.shape[-1])
    h, w = images.shape[-2] * factor, images.shape[-1] * factor
    rows = -(-len(images) // columns)
    size = (columns * (w + PADDING) - PADDING, rows * (h + PADDING) - PADDING)
    picture = Image.new("RGB", size, "white")
    for i, image in enumerate(images.cpu()):
        tile = tile_of(image).resize((w, h), Image.Resampling.NEAREST)
        picture.paste(tile, (i % columns * (w + PADDING), i // columns * (h + PADDING)))
    return picture


def tile_of(image: Tensor) -> Image.Image:
    """Convert a uint8 image (1 or 3, h, w) to Pillow."""
    return Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def png(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[int, int], Tile],
    note: str = "",
) -> bytes:
    """Draw a sheet of captioned blocks, with ``rows`` labeled at the left and ``columns`` at the top.

    A tile without an image becomes an empty box containing its caption. Raises DataError if the sheet would
    exceed MAX_PIXELS.
    """
    label, small, bold = font(15), font(12), font(16, "-Bold")
    names = [style.wrap(row, 18, 4) for row in rows]
    sizes = {position: tile.image.size for position, tile in cells.items() if tile.image is not None}
    min_size = min((min(size) for size in sizes.values()), default=64)
    widths = [
        max([w for (_, k), (w, _) in sizes.items() if k == j], default=min_size) for j in range(len(columns))
    ]
    heights = [
        max([h for (k, _), (_, h) in sizes.items() if k == i], default=min_size) for i in range(len(rows))
    ]
    lines = [line for name in names for line in name.split("\n")]
    left = GAP + (GAP + max(map(int, map(label.getlength, lines))) if any(lines) else 0)
    sheet_width = max(left + sum(w + GAP for w in widths), 420)
    headline = style.wrap(title, sheet_width // 11, 4)
    head = 28 if any(columns) else 4
    foot = 20 if any(tile.caption for tile in cells.values()) else 2
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
            if i == 0 and columns[j]:
                position: Any = (x + width / 2, top - head / 2)
                pen.text(position, text.plain(columns[j], 24), style.INK, label, "mm")
            if (i, j) in cells:
                image, caption, alarm = cells[i, j]
                color = style.ALARM if alarm else style.GREY
                if image is not None:
                    sheet.paste(image, (x, y))
                    pen.text((x, y + height + 2), truncate(caption, width, small), color, small)
                else:
                    pen.rectangle((x, y, x + width - 1, y + height - 1), outline="#cccccc", fill="#f4f4f4")
                    inside = style.wrap(caption, max(8, width // 8), 6)
                    middle: Any = (x + width / 2, y + height / 2)
                    pen.multiline_text(middle, inside, color, small, "mm", align="center")
            x += width + GAP
        y += height + foot + GAP
    if footer:
        pen.multiline_text((GAP, y), footer, style.GREY, small)
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def truncate(caption: str, width: int, in_font: FreeTypeFont) -> str:
    """Shorten ``caption`` to ``width`` pixels."""
    while in_font.getlength(caption) > width and len(caption) > 4:
        caption = caption[:-2].rstrip(" ·,") + "…"
    return caption
