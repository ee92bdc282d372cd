"""Figures 3, 4 and 8 of the WGAN paper (arXiv:1701.07875): losses over the updates, samples on the way."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image
from scipy.ndimage import median_filter
from scipy.stats import spearmanr

from ganlab import text
from ganlab.analysis import drawing, series, subjects
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.report.draw import style
from ganlab.report.read.history import Curve
from ganlab.samples.images import Picture
from ganlab.schema import Count, Steps, checked

ESTIMATES = ("critic/wasserstein_estimate", "critic/js_estimate")  # of a run it has at most one
NAMES = {
    ESTIMATES[0]: "Wasserstein estimate",
    ESTIMATES[1]: "JS estimate (nats)",
    "loss/g": "G's loss",
    "loss/d": "D's loss",
}
GRID, SHOWN, PAD = 8, 3, 2  # samples along a side of a run's picture, and of its corner; pixels between them
Values = npt.NDArray[np.float64]


class Smoothed(NamedTuple):
    """A curve: its name, steps (n,), values (n,), and those after the filter."""

    name: str
    steps: Sequence[int]
    raw: Values
    filtered: Values


class LossCurves(Analysis):
    """estimate of the distance between real and generated samples, with samples on the way (WGAN, 3, 4, 8)

    A panel per run: of the Wasserstein loss mean D(x) - mean D(G(z)), which falls as samples get better; of
    the standard one log 2 - L_D / 2, a lower bound of the Jensen-Shannon divergence that is at most log 2
    and says little of them. Curves pass a median filter, whose width the paper does not tell; what is
    behind it stays faint. Above each, from the run's own pictures, samples at those updates. Where a run was
    scored on the way (eval_every=N), Spearman's rank correlation of the filtered curve with the score at
    those updates is told: near 1 with FID where the curve tells the samples' quality.

    Args:
        curve: a name in metrics.jsonl, as loss/g (Figure 8); null: the estimate of the run's loss.
        median: width of the filter in log lines; 1: none.
        pictures: samples along each curve; 0: none.
        score: as in result.json; null: the first of IS, FID, KID that there is.
    """

    runs = (1, 12)

    @checked
    def __init__(
        self, curve: str | None = None, median: Count = 25, pictures: Steps = 4, score: str | None = None
    ) -> None:
        self.curve, self.median, self.pictures, self.score = curve, median, pictures, score

    def make(self, runs: Sequence[Subject]) -> Finding:
        found = {s: c for s in runs if (c := self._curve(s)) is not None}
        if not found:
            what = f"no run has {self.curve or 'an estimate: the loss of none is Wasserstein or standard'}"
            raise DataError("curve", what, "train with log_every=N, or name another, as curve=loss/d")
        rows: list[Row] = [
            {**s.columns, "curve": c.name, "step": step, "value": float(v), "filtered": float(f)}
            for s, c in found.items()
            for step, v, f in zip(c.steps, c.raw, c.filtered, strict=True)
        ]
        summary = [self._facts(s, c) for s, c in found.items()]
        says = [
            f"filtered over {self.median} log lines: first and last value; rank correlation with the score"
        ]
        for subject, row in zip(found, summary, strict=True):
            rank = row["correlation"]
            told = f"{rank:+.2f} with {row['score']}" if isinstance(rank, float) else "no scores on the way"
            says.append(f"  {subject.label}: {row['first']:.4g} to {row['last']:.4g}; {told}")
        return Finding(self._draw(found), rows, says, {"summary": summary})

    def _curve(self, subject: Subject) -> Smoothed | None:
        """The curve that is drawn of a run; None without."""
        curves = {name: curve for (name, protocol), curve in subject.run.curves.items() if not protocol}
        name = self.curve or next((n for n in ESTIMATES if n in curves), "")
        finite = name in curves and any(map(math.isfinite, curves[name].values))
        return smoothed(name, curves[name], self.median) if finite else None

    def _facts(self, subject: Subject, curve: Smoothed) -> dict[str, object]:
        told = {**subject.columns, "curve": curve.name, "median": self.median}
        told |= {"first": float(curve.filtered[0]), "last": float(curve.filtered[-1])}
        none: dict[str, object] = {"score": self.score or "", "evaluations": 0, "correlation": ""}
        try:
            score, _, measures = series.choose([subject], self.score, "loss_curves")
        except DataError:
            return {**told, **none}
        at = {m.step: m.value for m in measures if curve.steps[0] <= m.step <= curve.steps[-1]}
        known = correlation(curve, at) if len(at) > 2 else None
        return {**told, "score": score, "evaluations": len(at), "correlation": "" if known is None else known}

    def _draw(self, found: Mapping[Subject, Smoothed]) -> bytes:
        runs = list(found)
        across = min(2, len(runs))
        styles = drawing.run_styles(runs)
        with drawing.style():
            down = math.ceil(len(runs) / across)
            figure = Figure(figsize=(4.2 * across + 0.4, 2.9 * down + 0.6), layout="constrained")
            axes = drawing.panels(figure, len(runs), across)
            for i, (ax, (subject, curve)) in enumerate(zip(axes, found.items(), strict=True)):
                color = styles[subject]["color"]
                ax.plot(curve.steps, curve.raw, color=color, lw=0.5, alpha=0.3)
                ax.plot(curve.steps, curve.filtered, color=color, lw=1.5)
                ax.set_title(style.wrap(text.plain(subject.label, 80), 48, 2))
                ax.set_ylabel(text.plain(NAMES.get(curve.name, curve.name)))
                self._axis(ax, curve)
                self._samples(ax, subject)
                if i >= len(runs) - across:
                    ax.set_xlabel("generator updates")
            drawing.titled(figure, f"Losses and samples: {subjects.common(runs)}")
            return drawing.png(figure)

    def _axis(self, ax: Axes, curve: Smoothed) -> None:
        """Limits by the filtered curve, with room for the pictures above it."""
        low, high = float(curve.filtered.min()), float(curve.filtered.max())
        if curve.name in ESTIMATES:
            low, high = min(low, 0.0), math.log(2) if curve.name == ESTIMATES[1] else high
        size = high - low or abs(high) or 1.0
        ax.set_ylim(low - 0.08 * size, high + (0.75 if self.pictures else 0.08) * size)
        ax.set_yticks([t for t in ax.get_yticks() if low - 0.08 * size <= t <= high + 0.08 * size])
        if curve.name == ESTIMATES[1]:
            ax.axhline(math.log(2), color=style.GREY, ls=":", lw=1)
        ax.set_xlim(0, curve.steps[-1])
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.xaxis.set_major_formatter(FuncFormatter(drawing.thousands))

    def _samples(self, ax: Axes, subject: Subject) -> None:
        """Corners of the run's sample grids, each above its own update."""
        found = grids(subject)
        n, last = self.pictures, ax.get_xlim()[1]
        wide = min(0.24, 0.92 / n) if n else 0
        for i in range(n):
            middle = (i + 0.5) / n
            near = [s for s in found if i * last / n <= s < (i + 1) * last / n]
            if near:
                step = min(near, key=lambda s: abs(s - middle * last))
                inset = ax.inset_axes((middle - wide / 2, 0.62, wide, 0.36))
                inset.imshow(found[step], interpolation="nearest")
                inset.set_axis_off()
                inset.set_title(f"{step:,}", fontsize=6, pad=1, color=style.GREY)


def smoothed(name: str, curve: Curve, width: int) -> Smoothed:
    """A curve without what is not finite, and its running median over ``width`` values, the ends repeated."""
    pairs = [(s, v) for s, v in zip(curve.steps, curve.values, strict=True) if math.isfinite(v)]
    steps, raw = [s for s, _ in pairs], np.array([v for _, v in pairs], np.float64)
    return Smoothed(name, steps, raw, median_filter(raw, min(width, len(raw)), mode="nearest"))


def correlation(curve: Smoothed, scores: Mapping[int, float]) -> float | None:
    """Spearman's rank correlation of the filtered curve with scores by step; None if either stands still."""
    values = np.interp(list(scores), curve.steps, curve.filtered)
    if np.ptp(values) == 0 or np.ptp(list(scores.values())) == 0:
        return None
    return float(spearmanr(values, list(scores.values())).statistic)


def grids(subject: Subject) -> dict[int, Picture]:
    """A corner of each grid of images that the run has, by step; none of other samples, nor of broken."""
    if subject.experiment.shape.kind != "images":
        return {}
    found: dict[int, Picture] = {}
    for path in sorted((subject.run.folder / "samples").glob("step-*.png")):
        try:
            with Image.open(path) as image:
                side = SHOWN * ((image.width - PAD) // GRID) + PAD
                corner = image.convert("RGB").crop((0, 0, side, side))
        except (OSError, ValueError):
            continue
        if match := re.fullmatch(r"step-(\d{9,18})", path.stem):
            found[int(match[1])] = np.asarray(corner)
    return found
