"""WGAN (arXiv:1701.07875), Figure 2: an optimal D and an optimal critic between two Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from ganlab.analysis import drawing, subjects, value_surface
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.scores import scores
from ganlab.analysis.subjects import Subject
from ganlab.analysis.value_surface import Matrix, plain
from ganlab.config import compose
from ganlab.evaluation.generate import evaluating
from ganlab.methods.losses import Standard
from ganlab.metrics.wasserstein1 import distance
from ganlab.runs.naming import run_path
from ganlab.schema import Count, Positive, Range, Steps
from ganlab.training import trainer
from ganlab.training.gan import GAN
from ganlab.types import Verdict

TRAINED = (  # trained if no run is given
    ["+experiment=wgan_two_gaussians", "normalization=none", "loss=minimax", "setting=D"],
    ["+experiment=wgan_two_gaussians"],
)
REAL, FAKE = "#0072b2", "#009e73"  # blue and green as in the paper, from the Okabe-Ito palette
MAX_EXACT = 1000  # points of the exact distance
FLOOR = 1e-12  # lowest gradient drawn


class Panel(NamedTuple):
    """D at a step, at the points of the line: its values, and the derivative of G's loss there.

    real, fake: real and generated points (n, 1).
    """

    subject: Subject
    values: Matrix
    slopes: Matrix
    logits: bool
    real: Matrix
    fake: Matrix


class ValueLine(Analysis):
    """D's value along a line through real and generated points, and G's gradient there (WGAN, Figure 2)

    For runs on one-dimensional points. Without a run, trains the two models of the figure in the usual
    folders under outputs (minutes on a CPU): a D with the minimax loss and a critic with weight clipping,
    between N(-2, 1) and N(2, 1). The upper panel shows the densities, the probability D(x) of the standard
    loss, and the critic's raw value on its own axis. The lower panel shows the gradient magnitude of G's loss
    at each point, which vanishes where D confidently rejects generated points; a clipped critic is piecewise
    linear. The summary has, per run: median and weakest, the median and first percentile of that magnitude
    over generated points; gap_over_slope, D's mean on real minus that on generated points, divided by its
    largest slope on the line, a lower bound on the exact distance w1 (up to kinks between grid points); and,
    for the standard loss, js_estimate, which is log 2 - (D's loss) / 2 and at most log 2.

    Args:
        checkpoint: last, best, or a step.
        places: number of grid points on the line.
        reach: the line is [-reach, reach].
        points: number of real points, and of generated points.
        seed: random seed.
    """

    kinds = ("points",)
    runs = (0, 24)
    composes = True
    checkpoint: str | int = "last"
    places: Annotated[int, Range(ge=4, le=100_000)] = 321
    reach: Positive = 8.0
    points: Count = 10_000
    seed: Steps = 0

    def make(self, runs: Sequence[Subject]) -> Finding:
        runs = runs or self._trained()
        value_surface.require_dimensions(runs, 1, "value_line", "value_surface")
        axis = np.linspace(-self.reach, self.reach, self.places)
        heading = (
            "gradient magnitude of G's loss at generated points: median, weakest; gap over slope; exact W1"
        )
        result = Finding(report=[heading], tables={"summary": []})
        panels = []
        for subject in runs:
            gan, step = subject.restore(self.checkpoint)
            real, fake = value_surface.draw_points(subject, gan, self.points, self.seed)
            grid = torch.from_numpy(axis).float().to(gan.device)[:, None]
            raw, slopes = plain(scores(gan, grid)), gradients(gan, grid)
            logits = isinstance(gan.loss, Standard)
            values = 1 / (1 + np.exp(-raw)) if logits else raw
            panels.append(Panel(subject, values, slopes, logits, plain(real), plain(fake)))
            columns = {**subject.columns, "step": step}
            result.rows += [
                {**columns, "x": float(x), "value": float(v), "gradient": float(s)}
                for x, v, s in zip(axis, values, slopes, strict=True)
            ]
            facts = _facts(gan, raw, axis, real, fake)
            result.tables["summary"].append({**columns, **facts})
            result.report.append(
                f"  {subject.label}: {facts['median']:.3g}, {facts['weakest']:.3g}; "
                f"{facts['gap_over_slope']:.3f}; {facts['w1']:.3f}"
            )
        result.png = self._draw(panels, axis)
        return result

    def _trained(self) -> list[Subject]:
        """Train the figure's two runs, or continue or reuse them."""
        folders = []
        for overrides in TRAINED:
            composed = compose.compose([*overrides, *self.overrides], self.config_dirs)
            e = compose.build(composed)
            trainer.train(e, composed.saved, composed.choices, composed.overrides)
            folder = run_path(composed.choices, composed.overrides, e.setting, e.seed)
            folders.append(Path(e.run_dir or folder))
        return subjects.open_runs(folders, [], self.config_dirs)

    def _draw(self, panels: Sequence[Panel], axis: Matrix) -> bytes:
        styles = drawing.run_styles([p.subject for p in panels])
        with drawing.Picture("D on a line", 6.4, 5.6, styles) as picture:
            above, below = picture.figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
            bins = np.linspace(-self.reach, self.reach, 81).tolist()
            for x, color in ((panels[0].real, REAL), (panels[0].fake, FAKE)):
                above.hist(x[:, 0], bins, density=True, color=color, alpha=0.35, lw=0)
            other = above.twinx() if len({p.logits for p in panels}) > 1 else above
            for panel in panels:
                ax = above if panel.logits else other
                ax.plot(axis, panel.values, lw=1.5, **styles[panel.subject])
                below.plot(axis, np.abs(panel.slopes), lw=1.5, **styles[panel.subject])
            above.set_ylabel("density, and D(x) of the standard loss")
            if any(not p.logits for p in panels):
                other.set_ylabel("critic value")
            below.set_yscale("log")
            sizes = np.abs(np.concatenate([p.slopes for p in panels]))
            below.set_ylim(max(sizes.min() / 2, FLOOR), max(sizes.max(), FLOOR) * 2)
            drawing.set_log_scale(below.yaxis)
            below.set(xlim=(-self.reach, self.reach), xlabel="x", ylabel="gradient magnitude of G's loss")
            for ax in (above, below):
                ax.grid(color="#e3e3e3", lw=0.5)
            other.grid(visible=False)
            kinds = ((REAL, "real points"), (FAKE, "generated points"))
            points = [Patch(color=color, alpha=0.35, label=name) for color, name in kinds]
            lines = [Line2D([], [], label=s.label, **look) for s, look in styles.items()]
            picture.legend([*points, *lines])
        return picture.png


def _facts(gan: GAN, raw: Matrix, axis: Matrix, real: Tensor, fake: Tensor) -> dict[str, Any]:
    verdicts = [Verdict(scores(gan, x)) for x in (real, fake)]
    slopes = np.abs(gradients(gan, fake))
    steepest = float(np.abs(np.gradient(raw, axis)).max())
    gap = float(verdicts[0].score.mean() - verdicts[1].score.mean())
    curves = gan.loss.curves(float(gan.loss.discriminator(*verdicts)), 0.0)
    return {
        "median": float(np.median(slopes)),
        "weakest": float(np.quantile(slopes, 0.01)),
        "gap": gap,
        "steepest": steepest,
        "gap_over_slope": gap / steepest if steepest else 0.0,
        "w1": distance(*(plain(x[:MAX_EXACT]) for x in (real, fake))),
        "js_estimate": curves.get("critic/js_estimate"),
    }


def gradients(gan: GAN, x: Tensor) -> Matrix:
    """Derivative (n,) of G's loss with respect to each point x (n, 1), with D in evaluation mode."""
    with evaluating(gan.discriminator), torch.enable_grad():
        x = x.detach().requires_grad_(True)
        loss = gan.loss.generator(None, gan.verdict(x)) * len(x)  # undo the mean: each point's own term
        (gradient,) = torch.autograd.grad(loss, x)
    return plain(gradient[:, 0])
