"""WGAN-GP (arXiv:1704.00028), Figure 5: negative critic loss on training and held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from ganlab import text
from ganlab.analysis import drawing
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.report.draw import style
from ganlab.schema import Steps

NAMES = {  # curves on training and held-out images, and their sign; the first pair that a run has is plotted
    "negative critic loss": (
        1,
        "critic/negative_critic_loss_train",
        "critic/negative_critic_loss_validation",
    ),
    "minus D's loss": (-1, "validation/d_train", "validation/d_held_out"),
}
LINES = (
    ("train", "training images", "#0072b2", "-"),
    ("validation", "held-out images", "#d55e00", (0, (5, 1.5))),
)
EARLY = 0.25  # fraction of the updates that does not affect the y limits


class Point(NamedTuple):
    """Negative loss on training and held-out images at a step."""

    step: int
    train: float
    validation: float


class Overfitting(Analysis):
    """critic loss on training and held-out images, one panel per run (WGAN-GP, Figure 5)

    Needs runs trained with validation=true. For the Wasserstein loss, plots the paper's negative critic
    loss, including the penalty; for other losses, the negative of D's adversarial loss. A gap between the
    two curves means that D overfits: it separates its training images from held-out ones.

    Args:
        since: omit earlier steps.
    """

    runs = (1, 12)
    since: Steps = 0

    def make(self, runs: Sequence[Subject]) -> Finding:
        curves: dict[Subject, tuple[str, list[Point]]] = {}
        for subject in runs:
            curve, points = _points(subject)
            if points := [p for p in points if p.step >= self.since]:
                curves[subject] = curve, points
        if not curves:
            problem = f"no run has losses on held-out images{' from that step on' if self.since else ''}"
            raise DataError("overfitting", problem, "train with validation=true")
        rows = [
            {**subject.columns, "curve": curve, **p._asdict(), "gap": p.train - p.validation}
            for subject, (curve, points) in curves.items()
            for p in points
        ]
        report = [_summary(subject, *pair) for subject, pair in curves.items()]
        report += [f"  {s.label}: trained without validation=true" for s in runs if s not in curves]
        return Finding(_draw(curves), rows, report)


def _points(subject: Subject) -> tuple[str, list[Point]]:
    """Name of the plotted curve, and the steps at which both curves have values."""
    curves = {name: curve for (name, _), curve in subject.run.curves.items()}
    for name, (sign, *pair) in NAMES.items():
        if curves.keys() >= set(pair):
            a, b = (curves[p].finite() for p in pair)
            return name, [Point(step, sign * a[step], sign * b[step]) for step in sorted(a.keys() & b.keys())]
    return "", []


def _draw(curves: Mapping[Subject, tuple[str, list[Point]]]) -> bytes:
    across = min(3, len(curves))
    with drawing.grid("Overfitting of D", list(curves), across, (3.4, 2.7), (0.6, 0.9), least=5.0) as picture:
        axes = picture.panels(len(curves), across)
        for i, (ax, (subject, (curve, points))) in enumerate(zip(axes, curves.items(), strict=True)):
            _panel(ax, points)
            ax.set_title(style.wrap(text.plain(subject.label, 80), 48, 2))
            ax.set_ylabel(curve if i % across == 0 else "")
        drawing.outer_labels(axes, across, "generator updates")
        picture.legend(axes[0].get_legend_handles_labels()[0])
    return picture.png


def _panel(ax: Axes, points: Sequence[Point]) -> None:
    steps = [p.step for p in points]
    dots = "o" if len(points) < 10 else ""
    for name, label, color, dash in LINES:
        values = [getattr(p, name) for p in points]
        ax.plot(steps, values, color=color, ls=dash, lw=1.2, marker=dots, ms=3, label=label)
    late = [v for p in points if p.step >= EARLY * steps[-1] for v in (p.train, p.validation)]
    low, high = min(late), max(late)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    ax.set_ylim(low - margin, high + margin)
    first = max((p.train, p.step) for p in points)
    if first[0] > high + margin:
        drawing.note(ax, f"up to {first[0]:.3g} at step {first[1]:,}")
    style.updates_axis(ax, 5)


def _summary(subject: Subject, curve: str, points: Sequence[Point]) -> str:
    """Report line: last values of both curves, their gap, and the mean gap of the first tenth of points."""
    last, early = points[-1], points[: max(1, len(points) // 10)]
    before = sum(p.train - p.validation for p in early) / len(early)
    return (
        f"  {subject.label}: {curve} {last.train:.4g} on training, {last.validation:.4g} on held-out images "
        f"at step {last.step:,}; gap {last.train - last.validation:+.3g}, initially {before:+.3g}"
    )
