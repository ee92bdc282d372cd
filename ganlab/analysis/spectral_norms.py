"""SNGAN (arXiv:1802.05957), Figure 9: spectral norms of D's weights during training."""

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
    """Spectral norm of a layer at a step; ``source``: ``log`` (metrics.jsonl) or ``checkpoint``."""

    step: int
    layer: str
    norm: float
    kind: str
    source: str


class SpectralNorms(Analysis):
    """largest singular value of each of D's weights during training, normalized and raw (SNGAN, Figure 9)

    Computed by exact SVD of the (d_out, d_in * kernel) matrix, from values recorded during training
    (spectral_every=N) and from all checkpoints. Under spectral normalization, values in the upper panel stay
    near 1 if one power iteration per step tracks the norm well.

    Args:
        since: omit earlier steps, since the first ones may be far off.
    """

    runs = (1, 6)

    @checked
    def __init__(self, since: Steps = 0) -> None:
        self.since = since

    def make(self, runs: Sequence[Subject]) -> Finding:
        points: dict[Subject, list[Point]] = {}
        rows: list[Row] = []
        report = []
        for subject in runs:
            unsorted = [
                p for p in {**_checkpoints(subject), **_logged(subject)}.values() if p.step >= self.since
            ]
            points[subject] = sorted(unsorted, key=lambda p: (p.kind, p.step))
            rows += [{**subject.columns, **p._asdict()} for p in points[subject]]
            report.append(_summary(subject, points[subject]))
        if not rows:
            problem = "no recorded norms and no checkpoint"
            raise DataError("spectral_norms", problem, "train with spectral_every=100")
        return Finding(self._draw(points), rows, report)

    def _draw(self, by_run: dict[Subject, list[Point]]) -> bytes:
        kinds = [k for k in PREFIXES if any(p.kind == k for points in by_run.values() for p in points)]
        layers = list(dict.fromkeys(p.layer for points in by_run.values() for p in points))
        cmap = matplotlib.colormaps["viridis"]
        colors = {layer: cmap(0.92 * i / max(1, len(layers) - 1)) for i, layer in enumerate(layers)}
        size = (max(5.5, 3.0 * len(by_run) + 1.2), 2.3 * len(kinds) + 1.1)
        with drawing.style():
            figure = Figure(figsize=size, layout="constrained")
            grid = drawing.panels(figure, len(kinds) * len(by_run), len(by_run))
            first = {k: next(s for s in by_run if any(p.kind == k for p in by_run[s])) for k in kinds}
            for i, (ax, (kind, subject)) in enumerate(
                zip(grid, [(k, s) for k in kinds for s in by_run], strict=True)
            ):
                _panel(ax, [p for p in by_run[subject] if p.kind == kind], colors)
                if i < len(by_run):
                    ax.set_title(text.plain(subject.label, 60))
                if subject is first[kind]:
                    ax.set_ylabel("applied weight" if kind == "effective" else "trained weight")
                if i >= len(by_run) * (len(kinds) - 1):
                    ax.set_xlabel("generator updates")
            handles, names = grid[0].get_legend_handles_labels()
            fit = style.columns(names, figure.get_figwidth())
            figure.legend(handles, names, loc="outside lower center", ncols=fit)
            title = f"Largest singular value of D's weights: {subjects.common(list(by_run))}"
            drawing.set_title(figure, title)
            return drawing.png(figure)


def _panel(ax: Axes, points: Sequence[Point], colors: Mapping[str, tuple[float, ...]]) -> None:
    """Plot one line per layer; use a log axis if the norms span more than a decade."""
    for layer, color in colors.items():
        own = [p for p in points if p.layer == layer]
        if own:
            dots = "o" if len(own) < 10 else ""
            steps, norms = [p.step for p in own], [p.norm for p in own]
            ax.plot(steps, norms, color=color, lw=1.1, marker=dots, ms=3, label=layer)
    if not points:
        ax.text(0.5, 0.5, "same: no weight normalization", ha="center", transform=ax.transAxes, fontsize=7)
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
        if max(values) > ax.get_ylim()[1]:  # u is random before training, so sigma is far too small
            label, where = f"up to {max(values):.3g} at step 0", {"transform": ax.transAxes}
            ax.text(0.98, 0.97, label, ha="right", va="top", fontsize=7, color=style.GREY, **where)  # type: ignore[arg-type]
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(drawing.thousands))


def _logged(subject: Subject) -> dict[tuple[str, int, str], Point]:
    """Norms that ``spectral_every`` recorded in metrics.jsonl, by (kind, step, layer)."""
    points = {}
    for record in read_metrics(RunFolder(subject.run.folder).metrics):
        if record["kind"] != "spectral":
            continue
        for kind, prefix in PREFIXES.items():
            for name, value in record.items():
                if name.startswith(prefix) and isinstance(value, float):
                    layer = text.clean(name.removeprefix(prefix), 60)
                    points[kind, record["step"], layer] = Point(record["step"], layer, value, kind, "log")
    return points


def _checkpoints(subject: Subject) -> dict[tuple[str, int, str], Point]:
    """Norms computed from every checkpoint of the run, by (kind, step, layer)."""
    folder = RunFolder(subject.run.folder)
    points: dict[tuple[str, int, str], Point] = {}
    for step in Checkpoints(folder.checkpoints, folder.run_id).steps():
        gan, _ = subject.restore(str(step))
        d = gan.discriminator
        norms = {"effective": singular_values.spectral_norms(d), "raw": singular_values.raw_spectral_norms(d)}
        for kind, values in norms.items():
            points |= {(kind, step, k): Point(step, k, v, kind, "checkpoint") for k, v in values.items()}
    return points


def _summary(subject: Subject, points: Sequence[Point]) -> str:
    """Report line: range of the applied norms over all layers and steps, and at the last step."""
    acting = [p for p in points if p.kind == "effective"]
    if not acting:
        return f"  {subject.label}: no norms"
    last = max(p.step for p in acting)
    end = [p.norm for p in acting if p.step == last]
    trained = [p for p in acting if p.step] or acting  # u is random before training
    norms, steps = [p.norm for p in trained], len({p.step for p in trained})
    return (
        f"  {subject.label}: {min(norms):.3f} to {max(norms):.3f} over {steps} steps, "
        f"{min(end):.3f} to {max(end):.3f} at step {last:,}"
    )
