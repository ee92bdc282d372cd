"""WGAN-GP (arXiv:1704.00028), Figure 1a: contours of a critic's value over the plane."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from ganlab import text
from ganlab.analysis import drawing
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.scores import scores
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.metrics.wasserstein1 import distance
from ganlab.papers import labels
from ganlab.report.draw import style
from ganlab.schema import Count, Positive, Range, Steps
from ganlab.training.gan import GAN

LEVELS = 20
MIN_FRAMES = 3
FRAME_MS, LAST_MS = 200, 2000  # the last frame of a film stays longer
REAL, FAKE = "#e69f00", "#009e73"  # orange and green as in the paper, from the Okabe-Ito palette
DOTS: Any = {"ls": "", "marker": "o", "ms": 4}
LEGEND = (
    Line2D([], [], color=REAL, label="real", **DOTS),
    Line2D([], [], color=FAKE, label="generated", **DOTS),
    Line2D([], [], color=style.GREY, lw=1, label="D's value, yellow is high"),
)
Matrix = npt.NDArray[np.float64]


class Panel(NamedTuple):
    """A critic at a step: its values on the grid (rows: y, columns: x), and real and fake points (n, 2).

    scores: its values (n,) at the real and at the generated points.
    """

    subject: Subject
    step: int
    values: Matrix
    real: Matrix
    fake: Matrix
    scores: tuple[Matrix, Matrix]


class ValueSurface(Analysis):
    """contours of the critic's value over the plane, with real and generated points (WGAN-GP, Figure 1a)

    For runs on two-dimensional points. Columns are datasets; rows are whatever else distinguishes the runs.
    The paper holds G fixed (fixed_generator=1): a critic with weight clipping stays simple and ignores higher
    moments of the data, one with a gradient penalty does not. The summary has two scale-invariant measures
    per run: auc, the probability that a real point gets a higher value than a generated one, and
    gap_over_slope, D's mean on real minus that on generated points, divided by its largest slope on the grid.
    With the true largest slope, the latter would be a lower bound on w1, the exact Wasserstein-1 distance
    between these points; the grid misses kinks between its points and anything outside it.

    Args:
        checkpoint: last, best, or a step.
        grid: number of grid points along each side of the square.
        reach: the square is [-reach, reach]^2.
        points: number of real points, and of generated points.
        seed: random seed.
        frames: also write an animated GIF of all checkpoints; for a single run.
    """

    kinds = ("points",)
    runs = (1, 24)
    checkpoint: str | int = "last"
    grid: Annotated[int, Range(ge=4, le=2048)] = 128
    reach: Positive = 3.0
    points: Count = 500
    seed: Steps = 0
    frames: bool = False

    def make(self, runs: Sequence[Subject]) -> Finding:
        if self.frames and len(runs) > 1:
            raise DataError("frames", f"applies to a single run, got {len(runs)}", "pass one run")
        require_dimensions(runs, 2, "value_surface", "value_line")
        steps = filmed_steps(runs[0]) if self.frames else []
        panels = [self.panel(subject, self.checkpoint) for subject in runs]
        heading = "AUC of real against generated points; gap over slope; exact W1"
        result = Finding(self._draw(panels), report=[heading], tables={"summary": []})
        for panel in panels:
            run = panel.subject.run
            columns = {**panel.subject.columns, "dataset": run.text("dataset"), "step": panel.step}
            facts = self._facts(panel)
            result.rows += self._rows(columns, panel.values)
            result.tables["summary"].append({**columns, **facts})
            numbers = "; ".join(f"{facts[key]:.3f}" for key in ("auc", "gap_over_slope", "w1"))
            ema = " (generated points are from the EMA of G, which D was not trained against)"
            result.report.append(
                f"  {panel.subject.label}: {numbers}{ema * bool(panel.subject.experiment.ema)}"
            )
        if steps:
            frames = (self._frame(self.panel(runs[0], step)) for step in steps)
            result.files["value_surface.gif"] = gif(frames)
            span = f"steps {steps[0]:,} to {steps[-1]:,}"
            result.report.append(f"value_surface.gif: {len(steps)} checkpoints, {span}")
        return result

    def panel(self, subject: Subject, checkpoint: str | int) -> Panel:
        """Evaluate the critic of a run at a checkpoint."""
        gan, step = subject.restore(checkpoint)
        real, fake = draw_points(subject, gan, self.points, self.seed)
        values = plain(scores(gan, real)), plain(scores(gan, fake))
        return Panel(subject, step, surface(gan, self.axis()), plain(real), plain(fake), values)

    def axis(self) -> Matrix:
        return np.linspace(-self.reach, self.reach, self.grid)

    def _rows(self, columns: Row, values: Matrix) -> list[Row]:
        axis = [float(f"{v:.6g}") for v in self.axis()]
        return [
            {**columns, "x": x, "y": y, "value": float(f"{values[j, i]:.6g}")}
            for (j, y), (i, x) in itertools.product(enumerate(axis), enumerate(axis))
        ]

    def _facts(self, panel: Panel) -> dict[str, float]:
        real, fake = panel.scores
        slope = steepest(panel.values, self.axis())
        gap = float(real.mean() - fake.mean())
        return {
            "lowest": float(panel.values.min()),
            "highest": float(panel.values.max()),
            "gap": gap,
            "steepest": slope,
            "auc": auc(real, fake),
            "gap_over_slope": gap / slope if slope else 0.0,
            "w1": distance(panel.real, panel.fake),
        }

    def _draw(self, panels: Sequence[Panel]) -> bytes:
        runs = [p.subject for p in panels]
        down, across = layout(runs)
        size = min(2.5, 11 / len(across))
        steps = {p.step for p in panels}
        at = f" at step {steps.pop():,}" if len(steps) == 1 and self.checkpoint != "last" else ""
        width, height = max(4.4, size * len(across) + 0.4), size * len(down) + 1.1
        with drawing.Picture(f"Value surfaces of critics{at}", width, height, runs) as picture:
            axes = picture.figure.subplots(len(down), len(across), squeeze=False, sharex=True, sharey=True)
            for (row, column), panel in zip(places(runs), panels, strict=True):
                self.plot(axes[down.index(row)][across.index(column)], panel)
            for ax in axes.flat:
                if not ax.has_data():
                    ax.set_axis_off()
            for line, column in zip(axes.T, across, strict=True):
                next(ax for ax in line if ax.has_data()).set_title(text.plain(column, 40))
            for line, row in zip(axes, down, strict=True):
                line[0].set_ylabel(text.plain(row, 40))
            picture.legend(LEGEND)
        return picture.png

    def plot(self, ax: Axes, panel: Panel, size: float = 5) -> None:
        """Draw the contours and the points on top."""
        axis, values = self.axis(), panel.values
        low, high = float(values.min()), float(values.max())
        if high > low and np.isfinite(values).all():
            levels = np.linspace(low, high, LEVELS + 2)[1:-1]
            ax.contour(axis, axis, values, levels, cmap="viridis", linewidths=0.7, zorder=1)
        options: dict[str, Any] = {"s": size, "lw": 0, "alpha": 0.75}
        ax.scatter(panel.fake[:, 0], panel.fake[:, 1], c=FAKE, zorder=2, **options)
        ax.scatter(panel.real[:, 0], panel.real[:, 1], c=REAL, zorder=3, **options)
        ax.set(xlim=(-self.reach, self.reach), ylim=(-self.reach, self.reach), aspect="equal")
        ax.grid(visible=False)
        ax.spines[["top", "right"]].set_visible(True)

    def _frame(self, panel: Panel) -> Figure:
        with drawing.style():
            figure = Figure(figsize=(4.2, 4.7), layout="constrained")
            ax = figure.subplots()
            self.plot(ax, panel, 8)
            ax.set_title(text.plain(f"{panel.subject.label}, step {panel.step:,}", 60), pad=8)
            style.legend(figure, LEGEND)
        return figure


def require_dimensions(runs: Sequence[Subject], n: int, name: str, other: str) -> None:
    """Raise DataError unless the runs' points have ``n`` coordinates; ``other``: the analysis for those."""
    for subject in runs:
        if (dim := subject.experiment.shape[0]) != n:
            where = {1: "on a line", 2: "in the plane"}[n]
            problem = f"for points {where} only; {subject.run.label} has {dim} coordinate{'s' * (dim > 1)}"
            raise DataError(name, problem, f"use analysis={other}")


def draw_points(subject: Subject, gan: GAN, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Real and generated points (n, D); a fixed generator perturbs other real points."""
    real = subject.real(gan, n, seed).x
    return real, subject.fake(gan, len(real), seed + 1).x


def surface(gan: GAN, axis: Matrix) -> Matrix:
    """D's raw scores (n, n) on the grid ``axis`` x ``axis`` (rows: y, columns: x), in evaluation mode."""
    x, y = np.meshgrid(axis, axis)
    points = torch.from_numpy(np.stack([x.ravel(), y.ravel()], 1)).float().to(gan.device)
    return plain(scores(gan, points)).reshape(x.shape)


def steepest(values: Matrix, axis: Matrix) -> float:
    """The largest gradient norm of ``values`` (n, n) on the grid, by central differences."""
    return float(np.hypot(*np.gradient(values, axis, axis)).max())


def auc(real: Matrix, fake: Matrix) -> float:
    """Fraction of all pairs in which a real value (n,) exceeds a generated one (m,); ties count half."""
    return float((real[:, None] > fake).mean() + (real[:, None] == fake).mean() / 2)


def places(runs: Sequence[Subject]) -> list[tuple[str, str]]:
    """(row, column) of each run: its training and its dataset; its own column if two runs would collide."""
    datasets = [labels.DATASETS.get(s.run.text("dataset"), s.run.text("dataset")) for s in runs]
    trainings = [", ".join(p for p in s.label.split(", ") if p != s.run.text("dataset")) for s in runs]
    pairs = list(zip(trainings, datasets, strict=True))
    if len(set(pairs)) == len(pairs):
        return pairs
    return [(s.method, s.label) for s in runs]


def layout(runs: Sequence[Subject]) -> tuple[list[str], list[str]]:
    """Row and column labels of the figure, in the order of the runs."""
    cells = places(runs)
    order = [labels.DATASETS[name] for name in ("8gaussians", "25gaussians", "swissroll")]
    columns = sorted(dict.fromkeys(c for _, c in cells), key=lambda c: order.index(c) if c in order else 9)
    return list(dict.fromkeys(r for r, _ in cells)), columns


def plain(values: Tensor) -> Matrix:
    return values.detach().cpu().double().numpy()


def filmed_steps(subject: Subject) -> list[int]:
    """Steps of the run's checkpoints, ascending. Raises DataError if there are fewer than MIN_FRAMES."""
    steps = subject.checkpoints()
    if len(steps) < MIN_FRAMES:
        available = ", ".join(f"{s:,}" for s in steps) or "none"
        problem = f"{subject.run.label} has too few checkpoints (steps {available})"
        fix = f"a film needs at least {MIN_FRAMES}; train with keep_every=N, a multiple of save_every"
        raise DataError("frames", problem, fix)
    return steps


def gif(frames: Iterable[Figure]) -> bytes:
    """Encode figures of one size as a looping GIF; the bytes are deterministic."""
    pictures = [_picture(figure) for figure in frames]
    # one palette for all frames, from the last one, so that colors do not flicker
    palette = pictures[-1].quantize(64, dither=Image.Dither.NONE)
    first, *rest = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    times = [FRAME_MS] * len(rest) + [LAST_MS]
    out = io.BytesIO()
    first.save(out, "gif", save_all=True, append_images=rest, duration=times, loop=0, optimize=True)
    return out.getvalue()


def _picture(figure: Figure) -> Image.Image:
    figure.set_dpi(100)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
