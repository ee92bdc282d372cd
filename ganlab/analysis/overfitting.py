"""Figure 5 of the WGAN-GP paper (arXiv:1704.00028): negative critic loss on training and held-out images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ganlab import text
from ganlab.analysis import drawing, subjects
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.report.draw import style
from ganlab.report.read.history import Curve
from ganlab.schema import Steps, checked

NAMES = {  # of the curves on training and on held-out images; the first pair that a run has
    "negative critic loss": ("critic/negative_critic_loss_train", "critic/negative_critic_loss_validation"),
    "D's loss": ("validation/d_train", "validation/d_held_out"),
}
COLORS = {"train": "#0072b2", "validation": "#d55e00"}
EARLY = 0.25  # share of the updates whose values do not stretch the axis


class Point(NamedTuple):
    """Both curves at a step; of another loss than Wasserstein's the negative of D's loss too."""

    step: int
    train: float
    validation: float


class Overfitting(Analysis):
    """critic's loss on training and on held-out images, a panel per run (WGAN-GP, Figure 5)

    Of runs trained with validation=true. The paper's negative critic loss, penalty included, for the
    Wasserstein loss; minus D's adversarial loss for others. Where the two lines part, D tells its training
    images from others of their kind: it has learnt them by heart.

    Args:
        since: leave out earlier steps.
    """

    runs = (1, 12)

    @checked
    def __init__(self, since: Steps = 0) -> None:
        self.since = since

    def make(self, runs: Sequence[Subject]) -> Finding:
        found: dict[Subject, tuple[str, list[Point]]] = {}
        for subject in runs:
            what, points = _points(subject)
            if points := [p for p in points if p.step >= self.since]:
                found[subject] = what, points
        if not found:
            what = f"no run says anything of held-out images{' since then' if self.since else ''}"
            raise DataError("overfitting", what, "train with validation=true")
        rows: list[Row] = [
            {**subject.columns, "curve": what, **p._asdict(), "gap": p.train - p.validation}
            for subject, (what, points) in found.items()
            for p in points
        ]
        says = [_say(subject, *curves) for subject, curves in found.items()]
        says += [f"  {s.label}: trained without validation=true" for s in runs if s not in found]
        return Finding(_draw(found), rows, says)


def _points(subject: Subject) -> tuple[str, list[Point]]:
    """What is plotted, and where both curves have a value."""
    curves = {name: curve for (name, _), curve in subject.run.curves.items()}
    for what, (train, validation) in NAMES.items():
        if train in curves and validation in curves:
            sign = 1 if what == "negative critic loss" else -1
            a, b = _finite(curves[train]), _finite(curves[validation])
            shown = what if sign == 1 else f"minus {what}"
            return shown, [
                Point(step, sign * a[step], sign * b[step]) for step in sorted(a.keys() & b.keys())
            ]
    return "", []


def _finite(curve: Curve) -> dict[int, float]:
    return {s: v for s, v in zip(curve.steps, curve.values, strict=True) if math.isfinite(v)}


def _draw(found: Mapping[Subject, tuple[str, list[Point]]]) -> bytes:
    across = min(3, len(found))
    down = math.ceil(len(found) / across)
    with drawing.style():
        figure = Figure(figsize=(max(5.0, 3.4 * across + 0.6), 2.7 * down + 0.9), layout="constrained")
        axes = drawing.panels(figure, len(found), across)
        for i, (ax, (subject, (what, points))) in enumerate(zip(axes, found.items(), strict=True)):
            _panel(ax, points)
            ax.set_title(style.wrap(text.plain(subject.label, 80), 48, 2))
            if i % across == 0:
                ax.set_ylabel(what)
            if i >= len(found) - across:
                ax.set_xlabel("generator updates")
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2)
        drawing.titled(figure, f"Overfitting of D: {subjects.common(list(found))}")
        return drawing.png(figure)


def _panel(ax: Axes, points: Sequence[Point]) -> None:
    steps = [p.step for p in points]
    dots = "o" if len(points) < 10 else ""
    for name, dash in (("train", "-"), ("validation", (0, (5, 1.5)))):
        values = [getattr(p, name) for p in points]
        label = {"train": "training images", "validation": "held-out images"}[name]
        ax.plot(steps, values, color=COLORS[name], ls=dash, lw=1.2, marker=dots, ms=3, label=label)
    late = [v for p in points if p.step >= EARLY * steps[-1] for v in (p.train, p.validation)]
    low, high = min(late), max(late)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    ax.set_ylim(low - margin, high + margin)
    first = max((p.train, p.step) for p in points)
    if first[0] > high + margin:
        words, where = f"up to {first[0]:.3g} at step {first[1]:,}", {"transform": ax.transAxes}
        ax.text(0.98, 0.97, words, ha="right", va="top", fontsize=7, color=style.GREY, **where)  # type: ignore[arg-type]
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(drawing.thousands))


def _say(subject: Subject, what: str, points: Sequence[Point]) -> str:
    """The last values of both, and the gap beside that of the first tenth of the points."""
    last, early = points[-1], points[: max(1, len(points) // 10)]
    before = sum(p.train - p.validation for p in early) / len(early)
    return (
        f"  {subject.label}: {what} {last.train:.4g} on training, {last.validation:.4g} on held-out images "
        f"at step {last.step:,}: {last.train - last.validation:+.3g} between them, at first {before:+.3g}"
    )
