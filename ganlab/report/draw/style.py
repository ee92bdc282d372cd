"""Style shared by all figures: fonts, colors, axes, reproducible files.

Uses matplotlib's objects only (no pyplot, no global state). Settings have viridis colors, whose lightness
keeps the order in print and for color-blind readers. Methods have the colors of Okabe and Ito (with a darker
yellow for white paper), plus markers.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ganlab import text
from ganlab.papers import labels as labels_module
from ganlab.report.read.cells import Group

STYLE: Any = {
    "svg.hashsalt": "ganlab",
    "text.parse_math": False,  # names come from run folders
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
}
INK, GREY, ALARM, PUBLISHED = "#222222", "#444444", "#a00000", "#d6006e"
METHOD_COLORS = {
    "none": "#8c8c8c",
    "wc": "#e69f00",
    "gan-gp": "#56b4e9",
    "wgan-gp": "#0072b2",
    "bn": "#b5a400",
    "ln": "#cc79a7",
    "wn": "#d55e00",
    "orthonormal": "#009e73",
    "sn": "#000000",
}
OTHER_COLORS = ("#332288", "#882255", "#44aa99", "#aa4499", "#117733", "#999933", "#88ccee", "#661100")
MARKERS = "oXsD^vP*<>hdp"
DASHES: tuple[Any, ...] = (
    *("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5))),
    *((0, (9, 2)), (0, (2, 2, 6, 2))),
)


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its file name without suffix, and its bytes (no svg for a raster image)."""

    name: str
    png: bytes
    svg: bytes
    alt: str  # alternative text
    caption: str = ""


def save(figure: Figure, name: str, alt: str, caption: str = "") -> Picture:
    """Render as PNG and SVG, without date and version."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # lay out once, for both files
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(name, png(figure), svg.getvalue(), alt, caption)


def png(figure: Figure) -> bytes:
    """Render as PNG; the bytes are deterministic."""
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=200, metadata={"Software": None})
    return out.getvalue()


def title(figure: Figure, title_text: str) -> None:
    """The figure's title, at its left edge."""
    lines = wrap(title_text, int(figure.get_figwidth() * 11), 2)
    figure.suptitle(lines, x=0.008, ha="left", fontsize=10.5, fontweight="bold")


def setting_colors(settings: Sequence[str]) -> dict[str, Any]:
    """Colors by setting: A to F always the same viridis colors, other settings greys."""
    cmap = matplotlib.colormaps["viridis"]
    colors: dict[str, Any] = {s: cmap(i / 5 * 0.94)[:3] for i, s in enumerate("ABCDEF")}
    others = [s for s in settings if s not in colors]
    return colors | {s: (0.5 + 0.35 * i / len(others),) * 3 for i, s in enumerate(others)}


def method_style(groups: Sequence[Group]) -> dict[Group, tuple[str, str]]:
    """Color and marker of each group: fixed colors for the paper's methods, spare ones for others."""
    used: set[str] = set()
    spare = (c for _ in groups for c in OTHER_COLORS)
    styles = {}
    for i, group in enumerate(groups):
        color = METHOD_COLORS.get(group.method, "")
        color = color if color and color not in used else next(spare)
        used.add(color)
        styles[group] = (color, MARKERS[i % len(MARKERS)])
    return styles


def wrap(long: str, width: int, max_lines: int = 5) -> str:
    """Break a figure's text between words into lines of at most ``width`` characters."""
    lines = [""]
    words = text.plain(long, width * max_lines).split()
    for word in (w[i : i + width] for w in words for i in range(0, len(w), width)):
        if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:max_lines])


def legend(figure: Figure, handles: Iterable[Any], **options: Any) -> None:
    """A legend below the panels, in as many columns as fit the figure."""
    items = list(handles)
    inches = sum(0.5 + 0.06 * len(str(item.get_label())) for item in items)
    columns = math.ceil(len(items) / max(1, math.ceil(inches / figure.get_figwidth())))
    figure.legend(handles=items, loc="outside lower center", ncols=max(1, columns), **options)


def updates_axis(ax: Axes, ticks: int | None = None, left: float | None = 0) -> None:
    """An x axis of updates: 250, 2k; at most ``ticks`` intervals."""
    if left is not None:
        ax.set_xlim(left=left)
    if ticks is not None:
        ax.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:g}k" if v >= 1000 else f"{v:g}"))


def score_axis_label(score: str) -> str:
    """``FID (lower is better)``."""
    direction = labels_module.better(score)
    label = text.plain(labels_module.score_label(score))
    return f"{label} ({direction} is better)" if direction else label


def is_log(score: str, values: Sequence[float]) -> bool:
    """Whether the axis is logarithmic: FID's, as in the paper, and those of distances far apart."""
    if not values or min(values) <= 0 or labels_module.better(score) != "lower":
        return False
    return labels_module.split_score(score)[0] == "fid" or max(values) > 20 * min(values)


def log_axis(ax: Axes, values: Sequence[float]) -> None:
    """A log axis with plain numbers (20, 50, 100); more ticks for a small range."""
    ax.set_yscale("log")
    ratio = max(values) / min(values)
    ticks = range(1, 10) if ratio < 3.5 else (1, 2, 3, 4, 5, 7) if ratio < 12 else (1, 2, 5)
    ax.yaxis.set_major_locator(LogLocator(10, subs=ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
