"""One score by method and setting, as in SNGAN's Figures 1 and 2: a dot a run, a dash the mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ganlab import text
from ganlab.papers.published import Published
from ganlab.report.draw import style as style_module
from ganlab.report.read import cells as cells_of
from ganlab.report.read.cells import Cell, Group, Key, Section


def draw(
    section: Section, key: Key, texts: tuple[str, str, str], published: Mapping[Group, Published], name: str
) -> style_module.Picture:
    """The figure of one score under one protocol; FID on a log axis. Needs a cell with the score.

    texts: title; checkpoint, protocol and seeds; note on the published values.
    """
    title, subtitle, note = texts
    drawn = section.cells_for(key)
    groups, settings = cells_of.groups(drawn), cells_of.settings(drawn)
    values = {place: [score.value for _, score in cell.scores(key)] for place, cell in drawn.items()}
    published = {g: line for g, line in published.items() if g in groups}
    colors = style_module.setting_colors(settings)
    width = min(12.0, max(6.4, 0.16 * len(groups) * (len(settings) + 1.2) + 1.3))
    with matplotlib.rc_context(style_module.STYLE):
        figure = Figure(figsize=(width, 4.2), layout="constrained")
        ax = figure.add_subplot()
        ends = [v for line in published.values() for v in (line.value, line.value + (line.std or 0))]
        _value_axis(ax, key.score, [*ends, *(v for cell in values.values() for v in cell)])
        inch = (len(groups) + 0.2) / (width - 1.1)  # in units of the axis
        step = min(0.26, 0.86 / len(settings), 0.6 * inch)
        flat = step > 0.42 * inch  # enough room for horizontal marks
        for g, group in enumerate(groups):
            for i, setting in enumerate(settings):
                if (place := (group, setting)) in drawn:
                    x = g + (i - (len(settings) - 1) / 2) * step
                    _cell(ax, x, step, drawn[place], values[place], colors[setting], flat)
            if g:
                ax.axvline(g - 0.5, color="#eeeeee", lw=0.6, zorder=0)
            if group in published:
                _line(ax, g, min(0.46, step * (len(settings) / 2 + 0.3)), published[group])
        ax.set_xticks(range(len(groups)), [style_module.wrap(g.label, 14, 4) for g in groups])
        ax.set_xlim(-0.6, len(groups) - 0.4)
        ax.tick_params(axis="x", length=0)
        ax.set_ylabel(style_module.score_axis_label(key.score))
        style_module.title(figure, title)
        small: dict[str, Any] = {"fontsize": 7.2, "color": style_module.GREY}
        ax.set_title(style_module.wrap(subtitle, int(width * 17)), loc="left", **small)
        handles = _legend(settings, colors, any(c.mark for c in drawn.values()), bool(published))
        style_module.legend(figure, handles, columnspacing=1.2, handlelength=1.4)
        if note:
            ax.set_xlabel(style_module.wrap(note, int(width * 18)), labelpad=6, **small)
        alt = f"{title}. {subtitle}.{note and f' {note}'}"
        return style_module.save(figure, name, alt)


def _value_axis(ax: Axes, score: str, values: Sequence[float]) -> None:
    """Set up the value axis, with room for marks above the dots."""
    low, high = min(values), max(values)
    if style_module.is_log(score, values):
        style_module.log_axis(ax, values)
        margin = max(1.15, (high / low) ** 0.08)
        ax.set_ylim(low / margin, high * margin**2)
    else:
        margin = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
        ax.set_ylim(low - margin if low < 0 else max(0.0, low - margin), high + 2 * margin)
    ax.grid(axis="y", color="#dddddd", lw=0.6)


def _cell(
    ax: Axes, x: float, step: float, cell: Cell, values: Sequence[float], color: tuple[float, ...], flat: bool
) -> None:
    """A dot for each run, hollow unless all finished, which a mark says then (horizontal if ``flat``)."""
    ink: Any = color if cell.mark else style_module.INK
    dots: dict[str, Any] = {"color": "white" if cell.mark else color, "edgecolors": ink, "lw": 0.5}
    ax.scatter([x] * len(values), values, 16, zorder=3, **dots)
    if len(values) > 1:
        mean, half = statistics.fmean(values), 0.42 * step
        ax.plot([x - half, x + half], [mean] * 2, color=style_module.INK, lw=1.1, zorder=4)
    if mark := cell.mark or ("" if values else "no score"):
        top = max(values, default=ax.get_ylim()[0])
        style: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 6.5, "zorder": 6}
        style["bbox"] = {"facecolor": "white", "alpha": 0.8, "pad": 0.4, "lw": 0}
        style["rotation"] = 0 if flat else 90
        ax.annotate(mark, (x, top), (0, 5), textcoords="offset points", color=style_module.ALARM, **style)


def _line(ax: Axes, group: int, half: float, line: Published) -> None:
    ends = (group - half, group + half)
    if line.std:
        band = (line.value - line.std, line.value + line.std)
        ax.fill_between(ends, *band, color=style_module.PUBLISHED, alpha=0.25, lw=0, zorder=4)
    ax.plot(ends, [line.value] * 2, color=style_module.PUBLISHED, lw=1.4, zorder=5)


def _legend(
    settings: Sequence[str], colors: Mapping[str, Any], unfinished: bool, published: bool
) -> list[Any]:
    dot: dict[str, Any] = {"marker": "o", "ls": "", "ms": 4.5, "mew": 0.5}
    handles = [
        Line2D([], [], **dot, mfc=colors[s], mec=style_module.INK, label=f"setting {text.plain(s, 12)}")
        for s in settings
    ]
    if unfinished:
        white: dict[str, Any] = {"mfc": "white", "mec": style_module.INK, "label": "not all runs finished"}
        handles.append(Line2D([], [], **dot, **white))
    if published:
        handles.append(Line2D([], [], color=style_module.PUBLISHED, lw=1.4, label="published value"))
    return handles
