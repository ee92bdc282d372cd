"""Shared figure code: the report's style, panels, legends, and deterministic PNGs."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ganlab import text
from ganlab.analysis.subjects import Subject
from ganlab.report.draw import style as style_module
from ganlab.report.draw.curves import DASHES

Style = dict[str, Any]


@contextmanager
def style() -> Iterator[None]:
    """Context manager that applies the report's matplotlib style."""
    with matplotlib.rc_context(style_module.STYLE):
        yield


def png(figure: Figure) -> bytes:
    """Render the figure as PNG; the bytes are deterministic."""
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=200, metadata={"Software": None})
    return out.getvalue()


def set_title(figure: Figure, title: str, subtitle: str = "") -> None:
    """Add a bold left-aligned title, and a small gray subtitle at the bottom."""
    width = figure.get_figwidth()
    lines = style_module.wrap(title, int(width * 11), 2)
    figure.suptitle(lines, x=0.008, ha="left", fontsize=10.5, fontweight="bold")
    if subtitle:
        # a figure-level label gets its own row of the layout and stays clear of the axes
        figure.supxlabel(
            style_module.wrap(subtitle, int(width * 17), 3),
            x=0.008,
            ha="left",
            fontsize=7.2,
            color=style_module.GREY,
        )


def panels(figure: Figure, n: int, across: int, **shared: Any) -> list[Axes]:
    """Create ``n`` axes in rows of ``across``; unused ones in the last row are hidden."""
    grid = figure.subplots(math.ceil(n / across), across, squeeze=False, **shared)
    axes = list(grid.flat)
    for unused in axes[n:]:
        unused.set_axis_off()
    for ax in axes[:n]:
        ax.grid(color="#e3e3e3", lw=0.5)
    return axes[:n]


def run_styles(subjects: Sequence[Subject]) -> dict[Subject, Style]:
    """A line style per run: color by method, as in the report; dashes by the rest of the label."""
    spare = (c for _ in range(1000) for c in style_module.OTHER_COLORS)
    colors: dict[str, str] = {}
    others = list(dict.fromkeys(s.label.partition(",")[2] for s in subjects))
    styles: dict[Subject, Style] = {}
    for subject in subjects:
        method = subject.method
        if method not in colors:
            colors[method] = style_module.METHOD_COLORS.get(method) or next(spare)
        other = others.index(subject.label.partition(",")[2])
        styles[subject] = {"color": colors[method], "ls": DASHES[other % len(DASHES)]}
    return styles


def legend(figure: Figure, subjects: Sequence[Subject], styles: dict[Subject, Style]) -> None:
    """Add a legend of run labels below the panels."""
    handles = [Line2D([], [], lw=1.6, label=text.plain(s.label, 60), **styles[s]) for s in subjects]
    fit = style_module.columns([str(h.get_label()) for h in handles], figure.get_figwidth())
    figure.legend(handles=handles, loc="outside lower center", ncols=fit, handlelength=2.8)


def set_log_scale(axis: Axis) -> None:
    """Make an axis logarithmic with plain labels (0.01, 1e-05) at powers of ten; 2 and 5 if it is short."""
    low, high = axis.get_view_interval()
    short = low <= 0 or high / low < 300
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if short else (1,), numticks=12 if short else 8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def thousands(value: float, _: object = None) -> str:
    """Format a tick label for updates: 250, 2k."""
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
