"""Learning curves: scores and losses over updates; color and marker by method, line style by setting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ganlab import text
from ganlab.papers import labels
from ganlab.report.draw import style as style_module
from ganlab.report.read.cells import Group, Section
from ganlab.report.read.collect import Run
from ganlab.report.read.history import Curve

MAX_CELLS_PER_PANEL = 12  # with more cells, each setting gets its own column
ESTIMATE = "critic/wasserstein_estimate"
NOT_DRAWN = ("critic/", "validation/", "began/")  # except ESTIMATE; analyses draw the rest
LOSSES = ("loss/", "critic/")
BINS = 50  # maximal number of points of a line


def draw(section: Section, title: str, name: str) -> style_module.Picture | None:
    """One panel per score and loss, with many cells also per setting; None without data."""
    rows = panel_rows(section.runs)
    if not rows:
        return None
    styles = style_module.method_style(section.groups)
    dashes = {s: style_module.DASHES[i % len(style_module.DASHES)] for i, s in enumerate(section.settings)}
    by_setting = len(section.cells) > MAX_CELLS_PER_PANEL and len(section.settings) > 1
    columns = section.settings if by_setting else [""]
    across = len(columns) if by_setting else min(2, len(rows))
    down = math.ceil(len(rows) * len(columns) / across)
    size = (1.8 * across + 1.0, 1.75 * down + 1.3) if by_setting else (4.4 * across, 2.5 * down + 1.3)
    with matplotlib.rc_context(style_module.STYLE):
        figure = Figure(figsize=(max(5.0, min(12.0, size[0])), size[1]), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharey="row" if by_setting else False)
        panels = list(grid.flat)
        for unused in panels[len(rows) * len(columns) :]:
            unused.set_axis_off()
        for i, row in enumerate(rows):
            axes = panels[i * len(columns) : (i + 1) * len(columns)]
            values: list[float] = []
            for ax, column in zip(axes, columns, strict=True):
                values += _panel(ax, section, row, column, styles, dashes)
            _axes(axes, row, values, by_setting)
        if by_setting:
            for ax, column in zip(grid[0], columns, strict=True):
                ax.set_title(f"setting {text.plain(column, 12)}")
        for ax in panels[-across:] if by_setting else panels[: len(rows)]:
            ax.set_xlabel("generator updates")
        handles = _handles(section, styles, {} if by_setting or len(dashes) < 2 else dashes)
        style_module.legend(figure, handles, handlelength=2.8)
        style_module.title(figure, title)
        legend = "" if by_setting else " Color and marker: method; line style: setting."
        caption = f"One line per run.{legend} Losses are averaged over bins of updates."
        return style_module.save(figure, name, f"{title}. {caption}", caption)


def panel_rows(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The panels for these runs: (score or loss, protocol id), scores first."""
    curves = {k for r in runs for k, c in r.curves.items() if len(c.steps) > 1}
    return sorted((k for k in curves if k[0] == ESTIMATE or not k[0].startswith(NOT_DRAWN)), key=_order)


def _order(row: tuple[str, str]) -> tuple[bool, tuple[int, str], str]:
    return row[0].startswith(LOSSES), labels.score_rank(row[0]), row[1]


def _panel(
    ax: Axes,
    section: Section,
    row: tuple[str, str],
    column: str,
    styles: dict[Group, tuple[str, str]],
    dashes: dict[str, Any],
) -> list[float]:
    """Draw the runs of one setting (column "": all); returns the values that the axis must cover."""
    values: list[float] = []
    for (group, setting), cell in section.cells.items():
        for run in cell.runs if column in ("", setting) else ():
            if (curve := run.curves.get(row)) is not None:
                drawn = _line(ax, run, curve, styles[group], "-" if column else dashes[setting])
                values += drawn if run.status != "diverged" or not row[0].startswith(LOSSES) else []
    return values


def _line(ax: Axes, run: Run, curve: Curve, style: tuple[str, str], dash: Any) -> list[float]:
    """One run, with a cross where it diverged; returns its values."""
    points = list(_binned(curve))
    if not points:
        return []
    xs, ys = zip(*points, strict=True)
    dots: dict[str, Any] = {"marker": style[1], "ms": 3, "mew": 0, "markevery": max(1, len(xs) // 5)}
    ax.plot(xs, ys, color=style[0], ls=dash, lw=1.0, alpha=0.9, **dots)
    if run.status == "diverged":  # mark losses at the upper edge: they may be far outside
        edge = run.curves.get(("loss/d", "")) is curve or run.curves.get(("loss/g", "")) is curve
        axis_units: dict[str, Any] = {"transform": ax.get_xaxis_transform()} if edge else {}
        y = 1.0 if edge else ys[-1]
        ax.plot(
            xs[-1],
            y,
            marker="x",
            color=style_module.ALARM,
            ms=6,
            mew=1.8,
            zorder=6,
            clip_on=False,
            **axis_units,
        )
    return list(ys)


def _binned(curve: Curve) -> Iterator[tuple[float, float]]:
    """Means over at most ``BINS`` bins; non-finite values are left out."""
    pairs = list(curve.finite().items())
    bins = min(BINS, len(pairs))
    for a, b in pairwise(round(i * len(pairs) / bins) for i in range(bins + 1)) if bins else ():
        steps, values = zip(*pairs[a:b], strict=True)
        yield sum(steps) / (b - a), math.fsum(values) / (b - a)


def _axes(axes: Sequence[Axes], row: tuple[str, str], values: Sequence[float], by_setting: bool) -> None:
    """FID on a log axis; losses without outliers, which would flatten the rest."""
    name, protocol = row
    label = text.plain(labels.score_label(name)) + (f" [{text.plain(protocol[:8])}]" if protocol else "")
    for ax in axes:
        ax.grid(color="#e3e3e3", lw=0.5)
        style_module.updates_axis(ax, 3 if by_setting else 5)
        if style_module.is_log(name, values):
            style_module.log_axis(ax, values)
        elif name.startswith(LOSSES) and len(values) > 20:
            ordered = sorted(values)
            low, high = ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]
            if high > low:
                ax.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    if by_setting:
        axes[0].set_ylabel(label)
    else:
        axes[0].set_title(label)


def _handles(section: Section, styles: dict[Group, tuple[str, str]], dashes: dict[str, Any]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=c, marker=m, ms=4, lw=1.3, label=text.plain(g.label, 48))
        for g, (c, m) in styles.items()
    ]
    for setting, dash in dashes.items():
        label = f"setting {text.plain(setting, 12)}"
        handles.append(Line2D([], [], color=style_module.GREY, ls=dash, lw=1.3, label=label))
    if any(r.status == "diverged" for r in section.runs):
        handles.append(
            Line2D([], [], color=style_module.ALARM, marker="x", ls="", ms=6, mew=1.8, label="diverged here")
        )
    return handles
