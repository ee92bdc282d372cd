"""Shared figure code: titled pictures in the report's style, panels, legends, blocks of samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image
from torch import Tensor

from ganlab import text
from ganlab.analysis.subjects import Subject, common
from ganlab.report.draw import style as style_module
from ganlab.report.draw.style import png as png

Style = dict[str, Any]
PADDING = 2  # pixels between the samples of a block


@contextmanager
def style() -> Iterator[None]:
    """Context manager that applies the report's matplotlib style."""
    with matplotlib.rc_context(style_module.STYLE):
        yield


class Picture:
    """A figure in the report's style; titled and rendered to ``png`` where its ``with`` block ends.

    With ``runs``, their common properties are added to the title.
    """

    def __init__(self, title: str, width: float, height: float, runs: Iterable[Subject] = ()) -> None:
        shared = common([*runs])
        self.title, self.size = f"{title}: {shared}" if shared else title, (width, height)
        self.png = b""

    def __enter__(self) -> Picture:
        self.context = style()
        self.context.__enter__()
        self.figure = Figure(figsize=self.size, layout="constrained")
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            style_module.title(self.figure, self.title)
            self.png = png(self.figure)
        self.context.__exit__(*error)

    def panels(self, n: int = 1, across: int = 1, **shared: Any) -> list[Axes]:
        """Create ``n`` axes in rows of ``across``; unused ones in the last row are hidden."""
        axes = list(self.figure.subplots(math.ceil(n / across), across, squeeze=False, **shared).flat)
        for unused in axes[n:]:
            unused.set_axis_off()
        for ax in axes[:n]:
            ax.grid(color="#e3e3e3", lw=0.5)
        return axes[:n]

    def legend(self, handles: Sequence[Any], **options: Any) -> None:
        style_module.legend(self.figure, handles, **options)

    def run_legend(self, styles: dict[Subject, Style], *more: Any) -> None:
        """A legend of run labels below the panels."""
        lines = [Line2D([], [], lw=1.6, label=text.plain(s.label, 60), **look) for s, look in styles.items()]
        self.legend([*lines, *more], handlelength=2.8)


def grid(
    title: str, runs: Sequence[Subject], across: int, panel: tuple[float, float],
    margin: tuple[float, float] = (0.0, 0.0), least: float = 0.0, n: int = 0,
) -> Picture:  # fmt: skip
    """A picture with room for a panel per run (or ``n``), in rows of ``across``; sizes in inches."""
    width, height = panel
    down = math.ceil((n or len(runs)) / across)
    return Picture(title, max(least, width * across + margin[0]), height * down + margin[1], runs)


def outer_labels(axes: Sequence[Axes], across: int, x: str = "", y: str = "") -> None:
    """Label the x axes of the lowest panel of each column, and the y axes of the first column."""
    for i, ax in enumerate(axes):
        if x and i + across >= len(axes):
            ax.set_xlabel(x)
        if y and i % across == 0:
            ax.set_ylabel(y)


def run_styles(subjects: Iterable[Subject]) -> dict[Subject, Style]:
    """A line style per run: color by method, as in the report; dashes by the rest of the label."""
    spare = (c for _ in range(1000) for c in style_module.OTHER_COLORS)
    colors: dict[str, str] = {}
    others: dict[str, Any] = {}
    styles: dict[Subject, Style] = {}
    for subject in subjects:
        method, rest = subject.method, subject.label.partition(",")[2]
        if method not in colors:
            colors[method] = style_module.METHOD_COLORS.get(method) or next(spare)
        dash = others.setdefault(rest, style_module.DASHES[len(others) % len(style_module.DASHES)])
        styles[subject] = {"color": colors[method], "ls": dash}
    return styles


def note(ax: Axes, words: str) -> None:
    """A small remark in the upper right corner of a panel."""
    place: Any = {"transform": ax.transAxes, "ha": "right", "va": "top"}
    ax.text(0.98, 0.97, words, fontsize=7, color=style_module.GREY, **place)


def set_log_scale(axis: Axis) -> None:
    """Make an axis logarithmic with plain labels (0.01, 1e-05) at powers of ten; 2 and 5 if it is short."""
    low, high = axis.get_view_interval()
    short = low <= 0 or high / low < 300
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if short else (1,), numticks=12 if short else 8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def block(images: Tensor, columns: int) -> Image.Image:
    """Tile uint8 images (n, 1 or 3, h, w), row by row, on white; small ones enlarged to about 64 pixels."""
    factor = max(1, 64 // images.shape[-1])
    h, w = images.shape[-2] * factor, images.shape[-1] * factor
    rows = -(-len(images) // columns)
    picture = Image.new("RGB", (columns * (w + PADDING) - PADDING, rows * (h + PADDING) - PADDING), "white")
    for i, pixels in enumerate(images.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1)):
        tile = Image.fromarray(pixels.contiguous().numpy()).resize((w, h), Image.Resampling.NEAREST)
        picture.paste(tile, (i % columns * (w + PADDING), i // columns * (h + PADDING)))
    return picture
