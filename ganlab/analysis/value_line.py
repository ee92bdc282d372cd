"""Figure 2 of the WGAN paper (arXiv:1701.07875): an optimal D and an optimal critic between two Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from ganlab.analysis import drawing, subjects
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.scores import scores
from ganlab.analysis.subjects import Subject
from ganlab.config import compose
from ganlab.errors import DataError
from ganlab.evaluation.generate import evaluating
from ganlab.methods.losses import Standard
from ganlab.metrics.wasserstein1 import distance
from ganlab.report.draw import style
from ganlab.runs.naming import run_path
from ganlab.schema import Count, Positive, Range, Steps, checked
from ganlab.training import trainer
from ganlab.training.gan import GAN
from ganlab.types import Verdict

TRAINED = (  # without a run: both of these
    ["+experiment=wgan_two_gaussians", "normalization=none", "loss=minimax", "setting=D"],
    ["+experiment=wgan_two_gaussians"],
)
REAL, FAKE = "#0072b2", "#009e73"  # blue and green as in the paper, of Okabe and Ito's colours
Line = npt.NDArray[np.float64]


class Panel(NamedTuple):
    """D at a step on the places of the line: what it says of each, and the slope of G's loss there."""

    subject: Subject
    step: int
    values: Line
    slopes: Line
    logits: bool


class ValueLine(Analysis):
    """D's value along a line between real and generated points, and what G would learn (WGAN, Figure 2)

    Without a run it trains both of the figure, minutes on a CPU: a D of the minimax game, and a critic whose
    weights are clipped, between N(-2, 1) and N(2, 1), in the usual folders under outputs. Above: densities,
    the probability D(x) of the standard loss, a critic's raw value on its own axis. Below: how steep G's loss
    is at each place: it vanishes where D is sure of a generated point; a clipped critic is linear in pieces.
    The summary has, per run: ``median`` and ``weakest``, the median and the first percentile of that
    steepness over generated points; ``gap_over_slope``, D's mean on real less that on generated points over
    its steepest slope between the places, a lower bound of their exact distance ``w1`` up to kinks between
    the places; and, of the standard loss, ``js_estimate``, log 2 - (D's loss) / 2, at most log 2.

    Args:
        checkpoint: last, best, or a step.
        places: values along the line.
        reach: the line is [-reach, reach].
        points: real ones, and generated ones.
        seed: of the points drawn.
    """

    kinds = ("points",)
    runs = (0, 24)
    composes = True

    @checked
    def __init__(
        self,
        checkpoint: str | int = "last",
        places: Annotated[int, Range(ge=4, le=100_000)] = 321,
        reach: Positive = 8.0,
        points: Count = 10_000,
        seed: Steps = 0,
    ) -> None:
        self.checkpoint, self.places, self.reach = str(checkpoint), places, reach
        self.points, self.seed = points, seed

    def make(self, runs: Sequence[Subject]) -> Finding:
        runs = runs or self._trained()
        for subject in runs:
            if (dim := subject.experiment.shape[0]) != 1:
                what = f"is of points on a line, and {subject.run.label} has {dim} coordinates"
                raise DataError("value_line", what, "use analysis=value_surface")
        axis = np.linspace(-self.reach, self.reach, self.places)
        rows: list[Row] = []
        summary: list[Row] = []
        says = ["steepness of G's loss at generated points, median and weakest; gap over slope; exact W1"]
        found = []
        for subject in runs:
            game, step = subject.restore(self.checkpoint)
            logits = isinstance(game.loss, Standard)
            raw = scores(game, _column(axis, game)).double().numpy()
            slopes = gradients(game, _column(axis, game))
            panel = Panel(subject, step, 1 / (1 + np.exp(-raw)) if logits else raw, slopes, logits)
            found.append(panel)
            told = {**subject.columns, "step": step}
            rows += [
                {**told, "x": float(x), "value": float(v), "gradient": float(s)}
                for x, v, s in zip(axis, panel.values, slopes, strict=True)
            ]
            summary.append({**told, **self._facts(subject, game, raw, axis)})
            last = summary[-1]
            says.append(
                f"  {subject.label}: {last['median']:.3g}, {last['weakest']:.3g}; "
                f"{last['gap_over_slope']:.3f}; {last['w1']:.3f}"
            )
        return Finding(self._draw(found, axis), rows, says, {"summary": summary})

    def _trained(self) -> list[Subject]:
        """The figure's two runs, trained, continued or finished already."""
        folders = []
        for words in TRAINED:
            composed = compose.compose([*words, *self.words], self.config_dirs)
            e = compose.build(composed)
            trainer.train(e, composed.saved, composed.choices, composed.overrides)
            place = run_path(composed.choices, composed.overrides, e.setting, e.seed)
            folders.append(Path(e.run_dir or place))
        return subjects.open_runs(folders, [], self.config_dirs)

    def _facts(self, subject: Subject, game: GAN, raw: Line, axis: Line) -> dict[str, float | None]:
        real = subject.real(game, self.points, self.seed).x
        fake = subject.fake(game, len(real), self.seed + 1).x  # of a fixed G: of other real points
        told = [Verdict(scores(game, x)) for x in (real, fake)]
        slopes = np.abs(gradients(game, fake))
        steepest = float(np.abs(np.gradient(raw, axis)).max())
        gap = float(told[0].score.mean() - told[1].score.mean())
        curves = game.loss.curves(float(game.loss.discriminator(*told)), 0.0)
        return {
            "median": float(np.median(slopes)),
            "weakest": float(np.quantile(slopes, 0.01)),
            "gap": gap,
            "steepest": steepest,
            "gap_over_slope": gap / steepest if steepest else 0.0,
            "w1": distance(*(x.cpu().double().numpy()[:1000] for x in (real, fake))),
            "js_estimate": curves.get("critic/js_estimate"),
        }

    def _draw(self, found: Sequence[Panel], axis: Line) -> bytes:
        styles = drawing.run_styles([p.subject for p in found])
        with drawing.style():
            figure = Figure(figsize=(6.4, 5.6), layout="constrained")
            above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
            first = found[0].subject
            game, _ = first.restore(self.checkpoint)
            real = first.real(game, self.points, self.seed).x
            fake = first.fake(game, len(real), self.seed + 1).x
            bins = np.linspace(-self.reach, self.reach, 81).tolist()
            for x, color in ((real, REAL), (fake, FAKE)):
                above.hist(x.cpu().numpy()[:, 0], bins, density=True, color=color, alpha=0.35, lw=0)
            other = above.twinx() if len({p.logits for p in found}) > 1 else above
            for panel in found:
                ax = above if panel.logits else other
                ax.plot(axis, panel.values, lw=1.5, **styles[panel.subject])
                below.plot(axis, np.abs(panel.slopes), lw=1.5, **styles[panel.subject])
            above.set_ylabel("density, and D(x) of the standard loss")
            if any(not p.logits for p in found):
                other.set_ylabel("value of a critic")
            below.set_yscale("log")
            drawing.logarithmic(below.yaxis)
            below.set(xlim=(-self.reach, self.reach), xlabel="x", ylabel="steepness of G's loss")
            for ax in (above, below):
                ax.grid(color="#e3e3e3", lw=0.5)
            other.grid(visible=False)
            handles = [
                Patch(color=REAL, alpha=0.35, label="real points"),
                Patch(color=FAKE, alpha=0.35, label="generated points"),
                *(Line2D([], [], label=p.subject.label, **styles[p.subject]) for p in found),
            ]
            columns = style.columns([str(h.get_label()) for h in handles], 6.4)
            figure.legend(handles=handles, loc="outside lower center", ncols=columns)
            drawing.titled(figure, f"D on a line: {subjects.common([p.subject for p in found])}")
            return drawing.png(figure)


def gradients(game: GAN, x: Tensor) -> Line:
    """The derivative (n,) of G's loss at each point x (n, 1) by the point; D in evaluation mode."""
    with evaluating(game.discriminator), torch.enable_grad():
        x = x.detach().requires_grad_(True)
        loss = game.loss.generator(None, game.verdict(x)) * len(x)  # a mean: each point's own part
        (gradient,) = torch.autograd.grad(loss, x)
    return gradient[:, 0].cpu().double().numpy()


def _column(axis: Line, game: GAN) -> Tensor:
    return torch.from_numpy(axis).float().to(game.device)[:, None]
