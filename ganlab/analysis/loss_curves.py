"""WGAN (arXiv:1701.07875), Figures 3, 4, 8: losses over updates, with samples during training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from scipy.ndimage import median_filter
from scipy.stats import spearmanr

from ganlab import text
from ganlab.analysis import drawing, series
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.report.draw import mosaic, style
from ganlab.report.read.history import Curve
from ganlab.schema import Count, Steps

ESTIMATES = ("critic/wasserstein_estimate", "critic/js_estimate")  # a run has at most one
NAMES = {
    ESTIMATES[0]: "Wasserstein estimate",
    ESTIMATES[1]: "JS estimate (nats)",
    "loss/g": "G's loss",
    "loss/d": "D's loss",
}
CORNER = 3  # samples per side of the insets
Values = npt.NDArray[np.float64]


class Smoothed(NamedTuple):
    """A curve: name, steps (n,), raw values (n,) and median-filtered values (n,)."""

    name: str
    steps: Sequence[int]
    raw: Values
    filtered: Values


class LossCurves(Analysis):
    """estimated distance between real and generated samples over training, with samples (WGAN, 3, 4, 8)

    One panel per run. For the Wasserstein loss, the curve is mean D(x) - mean D(G(z)), which falls as the
    samples improve. For the standard loss it is log 2 - L_D / 2, a lower bound on the Jensen-Shannon
    divergence, which is at most log 2 and correlates poorly with sample quality. Curves are median-filtered
    (the paper does not give the width); raw values are drawn faintly. Samples above each curve come from the
    run's sample grids. For runs scored during training (eval_every=N), the report gives Spearman's rank
    correlation between the filtered curve and the score; a value near 1 with FID means that the curve tracks
    sample quality.

    Args:
        curve: a name in metrics.jsonl, such as loss/g (Figure 8); null: the estimate for the run's loss.
        median: width of the median filter in log lines; 1: no filter.
        pictures: number of sample insets along each curve; 0: none.
        score: a name in result.json; null: the first available of IS, FID, KID.
    """

    runs = (1, 12)
    curve: str | None = None
    median: Count = 25
    pictures: Steps = 4
    score: str | None = None

    def make(self, runs: Sequence[Subject]) -> Finding:
        curves = {s: c for s in runs if (c := self._curve(s)) is not None}
        if not curves:
            curve = self.curve or "a distance estimate (only Wasserstein and standard losses have one)"
            fix = "train with log_every=N, or choose another curve, such as curve=loss/d"
            raise DataError("curve", f"no run has {curve}", fix)
        report = [
            f"filtered over {self.median} log lines: first to last value; rank correlation with the score"
        ]
        result = Finding(self._draw(curves), report=report, tables={"summary": []})
        for subject, c in curves.items():
            result.rows += [
                {**subject.columns, "curve": c.name, "step": step, "value": float(v), "filtered": float(f)}
                for step, v, f in zip(c.steps, c.raw, c.filtered, strict=True)
            ]
            row = self._facts(subject, c)
            result.tables["summary"].append(row)
            rank = row["correlation"]
            agreement = "no scores during training" if rank == "" else f"{rank:+.2f} with {row['score']}"
            report.append(f"  {subject.label}: {row['first']:.4g} to {row['last']:.4g}; {agreement}")
        return result

    def _curve(self, subject: Subject) -> Smoothed | None:
        """The run's curve, or None if it has none."""
        curves = {name: curve for (name, protocol), curve in subject.run.curves.items() if not protocol}
        name = self.curve or next((n for n in ESTIMATES if n in curves), "")
        finite = name in curves and curves[name].finite()
        return smoothed(name, curves[name], self.median) if finite else None

    def _facts(self, subject: Subject, curve: Smoothed) -> Row:
        try:
            score, _, measures = series.choose([subject], self.score, "loss_curves")
        except DataError:
            score, measures = self.score or "", []
        at = {m.step: m.value for m in measures if curve.steps[0] <= m.step <= curve.steps[-1]}
        rank = correlation(curve, at) if len(at) > 2 else None
        return {
            **subject.columns, "curve": curve.name, "median": self.median,
            "first": float(curve.filtered[0]), "last": float(curve.filtered[-1]),
            "score": score, "evaluations": len(at), "correlation": "" if rank is None else rank,
        }  # fmt: skip

    def _draw(self, curves: Mapping[Subject, Smoothed]) -> bytes:
        runs, across = list(curves), min(2, len(curves))
        styles = drawing.run_styles(runs)
        with drawing.grid("Losses and samples", runs, across, (4.2, 2.9), (0.4, 0.6)) as picture:
            axes = picture.panels(len(runs), across)
            for ax, (subject, curve) in zip(axes, curves.items(), strict=True):
                color = styles[subject]["color"]
                ax.plot(curve.steps, curve.raw, color=color, lw=0.5, alpha=0.3)
                ax.plot(curve.steps, curve.filtered, color=color, lw=1.5)
                ax.set_title(style.wrap(text.plain(subject.label, 80), 48, 2))
                ax.set_ylabel(text.plain(NAMES.get(curve.name, curve.name)))
                self._axis(ax, curve)
                self._samples(ax, subject)
            drawing.outer_labels(axes, across, "generator updates")
        return picture.png

    def _axis(self, ax: Axes, curve: Smoothed) -> None:
        """Set limits from the filtered curve, with room for the samples above it."""
        low, high = float(curve.filtered.min()), float(curve.filtered.max())
        if curve.name in ESTIMATES:
            low, high = min(low, 0.0), math.log(2) if curve.name == ESTIMATES[1] else high
        size = high - low or abs(high) or 1.0
        ax.set_ylim(low - 0.08 * size, high + (0.75 if self.pictures else 0.08) * size)
        ax.set_yticks([t for t in ax.get_yticks() if low - 0.08 * size <= t <= high + 0.08 * size])
        if curve.name == ESTIMATES[1]:
            ax.axhline(math.log(2), color=style.GREY, ls=":", lw=1)
        style.updates_axis(ax, 5)
        ax.set_xlim(0, curve.steps[-1])

    def _samples(self, ax: Axes, subject: Subject) -> None:
        """Draw corners of the run's sample grids, each above its own step."""
        grids = subject.run.samples()
        n, last = self.pictures, ax.get_xlim()[1]
        wide = min(0.24, 0.92 / n) if n else 0
        for i in range(n):
            middle = (i + 0.5) / n
            steps = [s for s in grids if i * last / n <= s < (i + 1) * last / n]
            if not steps:
                continue
            step = min(steps, key=lambda s: abs(s - middle * last))
            corner = mosaic.corner(subject.run, grids[step], mosaic.side(subject.run), CORNER)
            if corner is not None:
                inset = ax.inset_axes((middle - wide / 2, 0.62, wide, 0.36))
                inset.imshow(corner, interpolation="nearest")
                inset.set_axis_off()
                inset.set_title(f"{step:,}", fontsize=6, pad=1, color=style.GREY)


def smoothed(name: str, curve: Curve, width: int) -> Smoothed:
    """Drop non-finite values and apply a running median of ``width`` values, repeating the end values."""
    finite = curve.finite()
    raw = np.array([*finite.values()], np.float64)
    return Smoothed(name, [*finite], raw, median_filter(raw, min(width, len(raw)), mode="nearest"))


def correlation(curve: Smoothed, scores: Mapping[int, float]) -> float | None:
    """Spearman's rank correlation of the filtered curve with scores by step; None if either is constant."""
    values = np.interp(list(scores), curve.steps, curve.filtered)
    if np.ptp(values) == 0 or np.ptp(list(scores.values())) == 0:
        return None
    return float(spearmanr(values, list(scores.values())).statistic)
