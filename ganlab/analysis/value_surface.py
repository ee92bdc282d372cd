"""Figure 1a of the WGAN-GP paper (arXiv:1704.00028): what value a critic gives each point of the plane."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ganlab import text
from ganlab.analysis import drawing, film, subjects
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.scores import scores
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.metrics.wasserstein1 import distance
from ganlab.papers import labels
from ganlab.report.draw import style
from ganlab.schema import Count, Positive, Range, Steps, checked
from ganlab.training.gan import GAN

LEVELS = 20
MOST = 24  # runs in one figure
REAL, FAKE = "#e69f00", "#009e73"  # orange and green as in the paper, of Okabe and Ito's colours
Matrix = npt.NDArray[np.float64]


class Panel(NamedTuple):
    """A critic at a step: its values on the grid (rows are y, columns x), points (n, 2) and what it tells.

    told: its values (n,) at the real points, and at the generated ones.
    """

    subject: Subject
    step: int
    values: Matrix
    real: Matrix
    fake: Matrix
    told: tuple[Matrix, Matrix]


class ValueSurface(Analysis):
    """contours of the critic's value over the plane, with real and generated points (WGAN-GP, Figure 1a)

    For runs on points. Columns are data sets, rows whatever else tells the runs apart. The paper holds G
    fixed (``fixed_generator=1``): a clipped critic stays simple and overlooks higher moments of the data, a
    penalised one does not. The summary has, per run, what D sees, whatever its scale: ``auc``, how often a
    real point has the higher value of a real and a generated one, and ``gap_over_slope``, D's mean on real
    less that on generated points over its steepest slope from one point of the grid to the next. Over the
    steepest of all it would be a lower bound of ``w1``, the exact Wasserstein-1 distance between these
    points; the grid misses kinks between its points, and what lies outside.

    Args:
        checkpoint: last, best, or a step.
        grid: values along each side of the square.
        reach: the square is [-reach, reach]^2.
        points: real ones, and generated ones.
        seed: of the points drawn.
        frames: true: of one run, an animated GIF of all its checkpoints too.
    """

    kinds = ("points",)
    runs = (1, MOST)

    @checked
    def __init__(
        self,
        checkpoint: str | int = "last",
        grid: Annotated[int, Range(ge=4, le=2048)] = 128,
        reach: Positive = 3.0,
        points: Count = 500,
        seed: Steps = 0,
        frames: bool = False,
    ) -> None:
        self.checkpoint, self.grid, self.reach = str(checkpoint), grid, reach
        self.points, self.seed, self.frames = points, seed, frames

    def make(self, runs: Sequence[Subject]) -> Finding:
        if self.frames and len(runs) > 1:
            raise DataError("frames", f"is for one run, and {len(runs)} were given", "name one")
        for subject in runs:
            if (dim := subject.experiment.shape[0]) != 2:
                what = f"is of points in the plane, and {subject.run.label} has {dim} coordinate"
                raise DataError("value_surface", what, "use analysis=value_line")
        steps = film.steps(runs[0]) if self.frames else []
        found = [self.panel(subject, self.checkpoint) for subject in runs]
        rows: list[Row] = []
        summary: list[Row] = []
        says = ["what D sees: AUC of real against generated points; gap over slope; exact W1"]
        for panel in found:
            told = {**panel.subject.columns, "dataset": panel.subject.run.text("dataset"), "step": panel.step}
            rows += self._rows(told, panel.values)
            summary.append({**told, **self._facts(panel)})
            auc, over, w1 = (summary[-1][k] for k in ("auc", "gap_over_slope", "w1"))
            says.append(f"  {panel.subject.label}: {auc:.3f}; {over:.3f}; {w1:.3f}")
            if panel.subject.experiment.ema:
                says[-1] += " (points of the average of G, which D has not played)"
        moving = {}
        if steps:
            moving["value_surface.gif"] = film.gif(
                self._frame(self.panel(runs[0], str(step))) for step in steps
            )
            says.append(f"value_surface.gif: {len(steps)} checkpoints, steps {steps[0]:,} to {steps[-1]:,}")
        return Finding(self._draw(found), rows, says, {"summary": summary}, moving)

    def panel(self, subject: Subject, checkpoint: str) -> Panel:
        """The critic of a run at a checkpoint."""
        game, step = subject.restore(checkpoint)
        real = subject.real(game, self.points, self.seed).x
        fake = subject.fake(game, len(real), self.seed + 1).x  # of a fixed G: of other real points
        told = _plain(scores(game, real)), _plain(scores(game, fake))
        return Panel(subject, step, surface(game, self.axis()), _plain(real), _plain(fake), told)

    def axis(self) -> Matrix:
        return np.linspace(-self.reach, self.reach, self.grid)

    def _rows(self, told: Row, values: Matrix) -> list[Row]:
        axis = [float(f"{v:.6g}") for v in self.axis()]
        return [
            {**told, "x": x, "y": y, "value": float(f"{values[j, i]:.6g}")}
            for (j, y), (i, x) in itertools.product(enumerate(axis), enumerate(axis))
        ]

    def _facts(self, panel: Panel) -> dict[str, float]:
        real, fake = panel.told
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

    def _draw(self, found: Sequence[Panel]) -> bytes:
        down, across = layout([p.subject for p in found])
        size = min(2.5, 11 / len(across))
        with drawing.style():
            wide = max(4.4, size * len(across) + 0.4)
            figure = Figure(figsize=(wide, size * len(down) + 1.1), layout="constrained")
            axes = figure.subplots(len(down), len(across), squeeze=False, sharex=True, sharey=True)
            for (row, column), panel in zip(places([p.subject for p in found]), found, strict=True):
                self.plot(axes[down.index(row)][across.index(column)], panel)
            for ax in axes.flat:
                if not ax.has_data():
                    ax.set_axis_off()
            for ax, column in zip(axes[0], across, strict=True):
                ax.set_title(text.plain(column, 40))
            for line, row in zip(axes, down, strict=True):
                line[0].set_ylabel(text.plain(row, 40))
            _legend(figure)
            steps = {p.step for p in found}
            at = f" at step {steps.pop():,}" if len(steps) == 1 and self.checkpoint != "last" else ""
            said = subjects.common([p.subject for p in found])
            drawing.titled(figure, f"Value surfaces of critics{at}: {said}")
            return drawing.png(figure)

    def plot(self, ax: Axes, panel: Panel, size: float = 5) -> None:
        """Contours, and the points over them."""
        axis, values = self.axis(), panel.values
        low, high = float(values.min()), float(values.max())
        if high > low and np.isfinite(values).all():
            levels = np.linspace(low, high, LEVELS + 2)[1:-1]
            ax.contour(axis, axis, values, levels, cmap="viridis", linewidths=0.7, zorder=1)
        shown: dict[str, Any] = {"s": size, "lw": 0, "alpha": 0.75}
        ax.scatter(panel.fake[:, 0], panel.fake[:, 1], c=FAKE, zorder=2, **shown)
        ax.scatter(panel.real[:, 0], panel.real[:, 1], c=REAL, zorder=3, **shown)
        ax.set(xlim=(-self.reach, self.reach), ylim=(-self.reach, self.reach), aspect="equal")
        ax.grid(visible=False)
        ax.spines[["top", "right"]].set_visible(True)

    def _frame(self, panel: Panel) -> Figure:
        with drawing.style():
            figure = Figure(figsize=(4.2, 4.7), layout="constrained")
            ax = figure.subplots()
            self.plot(ax, panel, 8)
            ax.set_title(text.plain(f"{panel.subject.label}, step {panel.step:,}", 60), pad=8)
            _legend(figure)
        return figure


def surface(game: GAN, axis: Matrix) -> Matrix:
    """D's raw score (n, n) on the grid ``axis`` x ``axis``: rows are y, columns x; D in evaluation mode."""
    x, y = np.meshgrid(axis, axis)
    points = torch.from_numpy(np.stack([x.ravel(), y.ravel()], 1)).float().to(game.device)
    return scores(game, points).double().numpy().reshape(x.shape)


def steepest(values: Matrix, axis: Matrix) -> float:
    """The largest gradient norm of ``values`` (n, n) on the grid, by central differences."""
    return float(np.hypot(*np.gradient(values, axis, axis)).max())


def auc(real: Matrix, fake: Matrix) -> float:
    """How often a real value (n,) is above a generated one (m,) of all pairs; a tie counts half."""
    above = (real[:, None] > fake).mean() + (real[:, None] == fake).mean() / 2
    return float(above)


def places(runs: Sequence[Subject]) -> list[tuple[str, str]]:
    """(row, column) of each run: how it was trained, on what; a column of its own where two would share."""
    on = [labels.DATASETS.get(s.run.text("dataset"), s.run.text("dataset")) for s in runs]
    how = [", ".join(p for p in s.label.split(", ") if p != s.run.text("dataset")) for s in runs]
    found = list(zip(how, on, strict=True))
    if len(set(found)) == len(found):
        return found
    return [(s.method, s.label) for s in runs]


def layout(runs: Sequence[Subject]) -> tuple[list[str], list[str]]:
    """Rows and columns of the figure, as the runs come."""
    found = places(runs)
    known = [labels.DATASETS[name] for name in ("8gaussians", "25gaussians", "swissroll")]
    columns = sorted(dict.fromkeys(c for _, c in found), key=lambda c: known.index(c) if c in known else 9)
    return list(dict.fromkeys(r for r, _ in found)), columns


def _plain(points: torch.Tensor) -> Matrix:
    return points.detach().cpu().double().numpy()


def _legend(figure: Figure) -> None:
    shown: dict[str, Any] = {"ls": "", "marker": "o", "ms": 4}
    handles = [
        Line2D([], [], color=REAL, label="real", **shown),
        Line2D([], [], color=FAKE, label="generated", **shown),
        Line2D([], [], color=style.GREY, lw=1, label="D's value, yellow is high"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
