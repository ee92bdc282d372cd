"""Bars of one score, as in SNGAN's Figures 1 and 2: groups = methods, bars = settings, whiskers = seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ganlab import text
from ganlab.papers.published import Published
from ganlab.report.draw import style as style_module
from ganlab.report.read import cells as cells_of
from ganlab.report.read.cells import Group, Key, Section, Summary


def draw(
    section: Section, key: Key, texts: tuple[str, str, str], published: Mapping[Group, Published], name: str
) -> style_module.Picture:
    """The figure of one score under one protocol; FID on a log axis. Needs a cell with the score.

    texts: title; checkpoint, protocol and seeds; note on the published values.
    """
    title, subtitle, note = texts
    drawn = section.cells_for(key)
    groups, settings = cells_of.groups(drawn), cells_of.settings(drawn)
    cells = {place: cell.summary(key) for place, cell in drawn.items()}
    published = {g: line for g, line in published.items() if g in groups}
    colors = style_module.setting_colors(settings)
    width = min(12.0, max(6.4, 0.16 * len(groups) * (len(settings) + 1.2) + 1.3))
    with matplotlib.rc_context(style_module.STYLE):
        figure = Figure(figsize=(width, 4.2), layout="constrained")
        ax = figure.add_subplot()
        floor = _value_axis(ax, key.score, list(cells.values()), list(published.values()))
        inch = (len(groups) + 0.2) / (width - 1.1)  # in units of the axis
        step = min(0.26, 0.86 / len(settings), 0.6 * inch)
        flat = step > 0.42 * inch  # enough room for horizontal marks
        for g, group in enumerate(groups):
            for i, setting in enumerate(settings):
                if (cell := cells.get((group, setting))) is not None:
                    x = g + (i - (len(settings) - 1) / 2) * step
                    _bar(ax, x, step, floor, cell, colors[setting], flat)
            if group in published:
                _line(ax, g, min(0.46, step * (len(settings) / 2 + 0.3)), published[group])
        ax.set_xticks(range(len(groups)), [style_module.wrap(g.label, 14, 4) for g in groups])
        ax.set_xlim(-0.6, len(groups) - 0.4)
        ax.tick_params(axis="x", length=0)
        ax.set_ylabel(style_module.score_axis_label(key.score))
        style_module.title(figure, title)
        small: dict[str, Any] = {"fontsize": 7.2, "color": style_module.GREY}
        ax.set_title(style_module.wrap(subtitle, int(width * 17)), loc="left", **small)
        handles = _legend(settings, colors, list(cells.values()), bool(published))
        style_module.legend(figure, handles, columnspacing=1.2, handlelength=1.4)
        if note:
            ax.set_xlabel(style_module.wrap(note, int(width * 18)), labelpad=6, **small)
        alt = f"{title}. {subtitle}.{note and f' {note}'}"
        return style_module.save(figure, name, alt)


def _value_axis(ax: Axes, score: str, cells: Sequence[Summary], published: Sequence[Published]) -> float:
    """Set up the value axis with room for marks above the bars; returns where the bars start."""
    values = [c.mean for c in cells if c.mean is not None] + [p.value for p in published]
    low: float = min(values)
    high: float = max([c.mean + (c.std or 0) for c in cells if c.mean is not None] + values)
    if style_module.is_log(score, values):
        style_module.log_axis(ax, values)
        floor: float = low / max(1.5, (high / low) ** 0.25)
        ax.set_ylim(floor, high * (high / floor) ** 0.2)
    else:
        floor = 0.0
        ax.set_ylim(min(low * 1.25, 0.0), max(high * 1.22, 0.0) or (0.0 if low < 0 else 1.0))
    ax.grid(axis="y", color="#dddddd", lw=0.6)
    return floor


def _bar(
    ax: Axes, x: float, step: float, floor: float, cell: Summary, color: tuple[float, ...], flat: bool
) -> None:
    """One cell: solid if all its runs finished, else pale, hatched and marked (horizontally if ``flat``)."""
    top, width = floor, step * 0.92
    if cell.mean is not None:
        face = (*color, 0.3) if cell.mark else color
        hatch = "////" if cell.mark else ""
        ax.bar(
            x, cell.mean - floor, width, floor, color=face, hatch=hatch, edgecolor=style_module.INK, lw=0.5
        )
        top = max(cell.mean, floor)
        if cell.std is not None:
            spread = [[min(cell.std, top - floor) if floor else cell.std], [cell.std]]
            ax.errorbar(x, cell.mean, spread, color=style_module.INK, lw=0.8, capsize=1.5, capthick=0.8)
            top += cell.std
    if mark := cell.mark or ("" if cell.mean is not None else "no score"):
        style: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 6.5, "zorder": 6}
        style["bbox"] = {"facecolor": "white", "alpha": 0.8, "pad": 0.4, "lw": 0}
        style["rotation"] = 0 if flat else 90
        ax.annotate(mark, (x, top), (0, 3), textcoords="offset points", color=style_module.ALARM, **style)


def _line(ax: Axes, group: int, half: float, line: Published) -> None:
    ends = (group - half, group + half)
    if line.std:
        band = (line.value - line.std, line.value + line.std)
        ax.fill_between(ends, *band, color=style_module.PUBLISHED, alpha=0.25, lw=0, zorder=4)
    ax.plot(ends, [line.value] * 2, color=style_module.PUBLISHED, lw=1.4, zorder=5)


def _legend(
    settings: Sequence[str],
    colors: Mapping[str, Any],
    cells: Sequence[Summary],
    published: bool,
) -> list[Any]:
    handles: list[Any] = [
        Patch(facecolor=colors[s], edgecolor=style_module.INK, lw=0.5, label=f"setting {text.plain(s, 12)}")
        for s in settings
    ]
    if any(c.mark for c in cells):
        edge: dict[str, Any] = {"facecolor": "#eeeeee", "edgecolor": style_module.INK, "lw": 0.5}
        handles.append(Patch(hatch="////", label="not all runs finished", **edge))
    if published:
        handles.append(Line2D([], [], color=style_module.PUBLISHED, lw=1.4, label="published value"))
    return handles
