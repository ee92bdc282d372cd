"""Histograms of a value per image: one panel per run, one color per kind of image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ganlab import text
from ganlab.analysis import drawing
from ganlab.analysis.base import Finding
from ganlab.analysis.subjects import Subject
from ganlab.report.draw import style

MAX_RUNS = 12  # runs in one figure
BINS = 40
Vector = npt.NDArray[np.float64]
# Okabe-Ito palette: blues for real images, vermilion for generated ones, green for points between
COLORS = {
    "data": "#0072b2",
    "training images": "#0072b2",
    "held-out images": "#56b4e9",
    "between": "#009e73",
    "samples": "#d55e00",
}
MEAN: Any = {"lw": 1.1, "ls": (0, (4, 2))}


class Panel(NamedTuple):
    """A run at a step, and its values (n,) by kind of image."""

    subject: Subject
    step: int
    kinds: Mapping[str, Tensor]


def finding(panels: Sequence[Panel], title: str, label: str, column: str, zero: bool = False) -> Finding:
    """Build the figure, one row per image, and a summary per kind. ``zero``: start the axis at 0."""
    result = Finding(report=[f"{label}: mean (standard deviation)"], tables={"summary": []})
    for subject, step, kinds in panels:
        parts = []
        for kind, values in kinds.items():
            columns = {**subject.columns, "step": step, "kind": kind}
            result.rows += [{**columns, "index": i, column: float(v)} for i, v in enumerate(values)]
            result.tables["summary"].append({**columns, "n": len(values), **statistics(values)})
            parts.append(f"{kind} {values.mean():.4g} ({values.std(correction=0):.2g})")
        result.report.append(f"  {subject.label}: {', '.join(parts)}")
    result.png = _draw(panels, title, label, zero)
    return result


def statistics(values: Tensor) -> dict[str, float]:
    """Mean, population standard deviation, and quantiles."""
    exact = values.double().numpy()
    low, middle, high = map(float, np.quantile(exact, (0.05, 0.5, 0.95)))
    spread = {"mean": float(exact.mean()), "std": float(exact.std())}
    return {**spread, "q05": low, "median": middle, "q95": high}


def _draw(panels: Sequence[Panel], title: str, label: str, zero: bool) -> bytes:
    across = min(len(panels), 3 if len(panels) > 4 else 2)
    kinds = dict.fromkeys(kind for panel in panels for kind in panel.kinds)
    runs = [p.subject for p in panels]
    with drawing.grid(title, runs, across, (3.4, 2.1), (0, 1.1), least=5.5) as picture:
        axes = picture.panels(len(panels), across)
        for ax, (subject, step, values) in zip(axes, panels, strict=True):
            finite = {k: v[v.isfinite()].double().numpy() for k, v in values.items()}
            edges = _edges(np.concatenate(list(finite.values())), zero)
            for kind, numbers in finite.items():
                options: Any = {"bins": edges, "density": True, "color": COLORS[kind]}
                ax.hist(numbers, histtype="stepfilled", alpha=0.18, **options)
                ax.hist(numbers, histtype="step", lw=1.1, **options)
                ax.axvline(numbers.mean(), color=COLORS[kind], **MEAN)
            ax.set_xlim(edges[0], edges[-1])
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.set_yticks([])
            ax.grid(visible=False)
            ax.spines["left"].set_visible(False)
            ax.set_title(text.plain(f"{subject.label}, step {step:,}", 60))
        drawing.outer_labels(axes, across, label)
        handles: list[Any] = [Patch(color=COLORS[k], alpha=0.6, label=k) for k in kinds]
        picture.legend([*handles, Line2D([], [], color=style.GREY, label="mean", **MEAN)])
    return picture.png


def _edges(values: Vector, zero: bool) -> Vector:
    """Bin edges; the outermost 0.2 % of the values at either end may lie outside."""
    low, high = np.quantile(values, (0.002, 0.998)) if len(values) else (0.0, 1.0)
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    low = 0.0 if zero else low
    return np.linspace(low, high if high > low else low + 1.0, BINS + 1)
