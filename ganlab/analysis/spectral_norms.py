"""Figure 9 of the SNGAN paper (arXiv:1802.05957): the spectral norms of D's weights during training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ganlab import text
from ganlab.analysis import drawing, subjects
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.methods import singular_values
from ganlab.report.draw import style
from ganlab.runs.checkpoint import Checkpoints
from ganlab.runs.folder import RunFolder
from ganlab.runs.metrics_file import read_metrics
from ganlab.schema import Steps, checked

PREFIXES = {"effective": "spectral/", "raw": "spectral_raw/"}


class Point(NamedTuple):
    """The norm of one layer at one step; ``source``: the training's log, or a checkpoint."""

    step: int
    layer: str
    norm: float
    kind: str
    source: str


class SpectralNorms(Analysis):
    """largest singular value of each of D's weights during training, normalised and raw (SNGAN, Figure 9)

    By exact SVD of the (d_out, d_in * kernel) matrix: what training recorded (``spectral_every=N``) and all
    checkpoints there are. Under spectral normalisation the upper panel stays near 1: how well one power
    iteration a step tracks the norm.

    Args:
        since: leave out earlier steps, as the first ones may be far off.
    """

    runs = (1, 6)

    @checked
    def __init__(self, since: Steps = 0) -> None:
        self.since = since

    def make(self, runs: Sequence[Subject]) -> Finding:
        found: dict[Subject, list[Point]] = {}
        rows: list[Row] = []
        says = []
        for subject in runs:
            points = [
                p for p in {**_checkpoints(subject), **_logged(subject)}.values() if p.step >= self.since
            ]
            found[subject] = sorted(points, key=lambda p: (p.kind, p.step))
            rows += [{**subject.columns, **p._asdict()} for p in found[subject]]
            says.append(_say(subject, found[subject]))
        if not rows:
            what = "no norms were recorded, and there is no checkpoint"
            raise DataError("spectral_norms", what, "train with spectral_every=100")
        return Finding(self._draw(found), rows, says)

    def _draw(self, found: dict[Subject, list[Point]]) -> bytes:
        kinds = [k for k in PREFIXES if any(p.kind == k for points in found.values() for p in points)]
        layers = list(dict.fromkeys(p.layer for points in found.values() for p in points))
        cmap = matplotlib.colormaps["viridis"]
        colors = {layer: cmap(0.92 * i / max(1, len(layers) - 1)) for i, layer in enumerate(layers)}
        size = (max(5.5, 3.0 * len(found) + 1.2), 2.3 * len(kinds) + 1.1)
        with drawing.style():
            figure = Figure(figsize=size, layout="constrained")
            grid = drawing.panels(figure, len(kinds) * len(found), len(found))
            first = {k: next(s for s in found if any(p.kind == k for p in found[s])) for k in kinds}
            for i, (ax, (kind, subject)) in enumerate(
                zip(grid, [(k, s) for k in kinds for s in found], strict=True)
            ):
                _panel(ax, [p for p in found[subject] if p.kind == kind], colors)
                if i < len(found):
                    ax.set_title(text.plain(subject.label, 60))
                if subject is first[kind]:
                    ax.set_ylabel("as it acts" if kind == "effective" else "trained weight")
                if i >= len(found) * (len(kinds) - 1):
                    ax.set_xlabel("generator updates")
            handles, names = grid[0].get_legend_handles_labels()
            fit = style.columns(names, figure.get_figwidth())
            figure.legend(handles, names, loc="outside lower center", ncols=fit)
            title = f"Largest singular value of D's weights: {subjects.common(list(found))}"
            drawing.titled(figure, title)
            return drawing.png(figure)


def _panel(ax: Axes, points: Sequence[Point], colors: Mapping[str, tuple[float, ...]]) -> None:
    """A line per layer; a log axis where the norms span more than a decade, else one that holds 1."""
    for layer, color in colors.items():
        own = [p for p in points if p.layer == layer]
        if own:
            dots = "o" if len(own) < 10 else ""
            steps, norms = [p.step for p in own], [p.norm for p in own]
            ax.plot(steps, norms, color=color, lw=1.1, marker=dots, ms=3, label=layer)
    if not points:
        ax.text(0.5, 0.5, "the same: no parametrisation", ha="center", transform=ax.transAxes, fontsize=7)
        ax.set_axis_off()
        return
    values = [p.norm for p in points if math.isfinite(p.norm) and p.norm > 0]
    if values and max(values) > 10 * min(values):
        style.log_axis(ax, values)
    elif points[0].kind == "effective":
        ax.axhline(1, color=style.GREY, lw=0.7, ls=(0, (4, 3)), zorder=0)
        late = [p.norm for p in points if p.step and math.isfinite(p.norm)] or values
        margin = 0.05 * (max(late) - min(late))
        ax.set_ylim(min(min(late) - margin, 0.95), max(max(late) + margin, 1.05))
        if max(values) > ax.get_ylim()[1]:  # before training u is random, and sigma far too small
            words, where = f"up to {max(values):.3g} at step 0", {"transform": ax.transAxes}
            ax.text(0.98, 0.97, words, ha="right", va="top", fontsize=7, color=style.GREY, **where)  # type: ignore[arg-type]
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(drawing.thousands))


def _logged(subject: Subject) -> dict[tuple[str, int, str], Point]:
    """What ``spectral_every`` wrote to metrics.jsonl."""
    found = {}
    for record in read_metrics(RunFolder(subject.run.folder).metrics):
        if record["kind"] != "spectral":
            continue
        for kind, prefix in PREFIXES.items():
            for name, value in record.items():
                if name.startswith(prefix) and isinstance(value, float):
                    layer = text.clean(name.removeprefix(prefix), 60)
                    found[kind, record["step"], layer] = Point(record["step"], layer, value, kind, "log")
    return found


def _checkpoints(subject: Subject) -> dict[tuple[str, int, str], Point]:
    """The same, of every checkpoint of the run."""
    folder = RunFolder(subject.run.folder)
    found: dict[tuple[str, int, str], Point] = {}
    for step in Checkpoints(folder.checkpoints, folder.run_id).steps():
        game, _ = subject.restore(str(step))
        d = game.discriminator
        norms = {"effective": singular_values.spectral_norms(d), "raw": singular_values.raw_spectral_norms(d)}
        for kind, of in norms.items():
            found |= {(kind, step, k): Point(step, k, v, kind, "checkpoint") for k, v in of.items()}
    return found


def _say(subject: Subject, points: Sequence[Point]) -> str:
    """How far from 1 the norms as they act are, over all layers and steps, and at the last step."""
    acting = [p for p in points if p.kind == "effective"]
    if not acting:
        return f"  {subject.label}: no norms"
    last = max(p.step for p in acting)
    end = [p.norm for p in acting if p.step == last]
    trained = [p for p in acting if p.step] or acting  # before training u is random
    every, steps = [p.norm for p in trained], len({p.step for p in trained})
    return (
        f"  {subject.label}: {min(every):.3f} to {max(every):.3f} over {steps} steps, "
        f"{min(end):.3f} to {max(end):.3f} at step {last:,}"
    )
