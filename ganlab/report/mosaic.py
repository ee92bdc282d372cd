"""Figure 6 of the SNGAN paper: samples of every cell, rows = methods, columns = settings."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from ganlab.disk import regular
from ganlab.report import figures, text
from ganlab.report.cells import Cell, Group, Key, Section
from ganlab.report.collect import Run

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

MAX_PIXELS = 40_000_000  # of one sample grid; checked in the header, before anything is decoded
PADDING = 2  # between the tiles of a run's sample grid
GAP = 10


def draw(section: Section, title: str, name: str, key: Key | None) -> figures.Picture | None:
    """The newest samples of one run per cell, with its step and the score ``key``; None without samples."""
    groups, settings = section.groups, section.settings
    many = len(section.cells) > 12
    resolution = int(section.resolution) if re.fullmatch(r"\d{1,4}", section.resolution) else 0
    tiles, zoom = (3 if many else 4), (2 if 0 < resolution <= 64 else 1)
    crops: dict[tuple[Group, str], tuple[Image.Image, Run, int]] = {}
    for place, cell in section.cells.items():
        for run in sorted(cell.runs, key=lambda r: (r.status != "finished", r.number("seed") or 0, r.shown)):
            if (found := newest(run, resolution, tiles)) is not None:
                crops[place] = (found[0], run, found[1])
                break
    if not crops:
        return None
    side = max(max(image.size) for image, _, _ in crops.values()) * zoom
    font, small = _font(15), _font(12)
    left = GAP * 2 + max(int(font.getlength(w)) for g in groups for w in _label(g).split("\n"))
    wide = left + len(settings) * (side + GAP)
    bold = _font(16, "-Bold")
    headline = figures.wrap(title, max(24, wide // 11), 3)
    head, foot, top = 28, 20, 24 + 20 * (headline.count("\n") + 1)
    size = (wide, top + head + len(groups) * (side + foot + GAP))
    if size[0] * size[1] > 6 * MAX_PIXELS:
        return None
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((GAP, GAP), headline, "black", bold)
    for j, setting in enumerate(settings):
        x = left + j * (side + GAP)
        pen.text((x + side / 2, top + head / 2), f"setting {text.plain(setting, 12)}", "black", font, "mm")
        for i, group in enumerate(groups):
            y = top + head + i * (side + foot + GAP)
            if j == 0:
                pen.multiline_text((GAP, y + side / 2), _label(group), "black", font, "lm")
            if (group, setting) in crops:
                image, run, step = crops[group, setting]
                larger = (image.width * zoom, image.height * zoom)
                sheet.paste(image.resize(larger, Image.Resampling.NEAREST), (x, y))
                words = _caption(section.cells[group, setting], run, step, key)
                color = figures.ALARM if run.status != "finished" else figures.GREY
            elif (group, setting) in section.cells:
                pen.rectangle((x, y, x + side - 1, y + side - 1), outline="#cccccc", fill="#f4f4f4")
                words, color = "no samples", figures.GREY
            else:
                continue
            while small.getlength(words) > side + GAP - 4 and len(words) > 4:
                words = words[:-2].rstrip(" ·,") + "…"
            pen.text((x, y + side + 2), words, color, small)
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    caption = f"The newest {tiles}×{tiles} samples of one run per cell (lowest seed), uncurated."
    return figures.Picture(name, out.getvalue(), b"", f"{title}. {caption}", caption)


def newest(run: Run, resolution: int, tiles: int) -> tuple[Image.Image, int] | None:
    """The top left ``tiles`` x ``tiles`` samples of the newest readable grid, and its step.

    A grid whose tiles can't be told (an unknown resolution) is cut to a square. Unreadable files are noted.
    """
    for path in reversed(run.samples):
        try:
            with open(path, "rb", opener=regular) as file, Image.open(file, formats=["PNG"]) as image:
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


def _label(group: Group) -> str:
    return figures.wrap(group.label, 16, 4)


def _caption(cell: Cell, run: Run, step: int, key: Key | None) -> str:
    """``step 1,000 · FID 45.20``, of the run shown, not of the cell's mean."""
    own = [s.value for r, s in cell.scores(key) if r is run] if key else []
    mark = {"diverged": "div.", "failed": "failed", "finished": ""}.get(run.status, "unf.")
    score = f"{text.plain(text.score_label(key.score), 16)} {text.number(own[0])}" if key and own else ""
    return " · ".join(part for part in (mark, f"step {step:,}", score) if part)


def _font(size: int, weight: str = "") -> FreeTypeFont:
    """DejaVu Sans, which matplotlib carries; nothing has to be installed."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"DejaVuSans{weight}.ttf", size)
