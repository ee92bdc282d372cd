"""SNGAN (arXiv:1802.05957), Figure 9: spectral norms of D's weights during training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes

from ganlab import text
from ganlab.analysis import drawing
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.methods import singular_values
from ganlab.report.draw import style
from ganlab.runs.folder import RunFolder
from ganlab.runs.metrics_file import read_metrics
from ganlab.schema import Steps

PREFIXES = {"effective": "spectral/", "raw": "spectral_raw/"}
ROWS = {"effective": "applied weight", "raw": "trained weight"}


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
    since: Steps = 0

    def make(self, runs: Sequence[Subject]) -> Finding:
        points: dict[Subject, list[Point]] = {}
        result = Finding()
        for subject in runs:
            unique = {(p.kind, p.step, p.layer): p for p in (*_checkpoints(subject), *_logged(subject))}
            recent = [p for p in unique.values() if p.step >= self.since]
            points[subject] = sorted(recent, key=lambda p: (p.kind, p.step))
            result.rows += [{**subject.columns, **p._asdict()} for p in points[subject]]
            result.report.append(_summary(subject, points[subject]))
        if not result.rows:
            problem = "no recorded norms and no checkpoint"
            raise DataError("spectral_norms", problem, "train with spectral_every=100")
        result.png = _draw(points)
        return result


def _draw(by_run: Mapping[Subject, list[Point]]) -> bytes:
    kinds = [k for k in PREFIXES if any(p.kind == k for points in by_run.values() for p in points)]
    layers = list(dict.fromkeys(p.layer for points in by_run.values() for p in points))
    cmap = matplotlib.colormaps["viridis"]
    colors = {layer: cmap(0.92 * i / max(1, len(layers) - 1)) for i, layer in enumerate(layers)}
    n, across = len(kinds) * len(by_run), len(by_run)
    title = "Largest singular value of D's weights"
    with drawing.grid(title, list(by_run), across, (3.0, 2.3), (1.2, 1.1), least=5.5, n=n) as picture:
        axes = picture.panels(n, across)
        first = {k: next(s for s in by_run if any(p.kind == k for p in by_run[s])) for k in kinds}
        for i, (ax, (kind, subject)) in enumerate(
            zip(axes, [(k, s) for k in kinds for s in by_run], strict=True)
        ):
            _panel(ax, [p for p in by_run[subject] if p.kind == kind], colors)
            ax.set_title(text.plain(subject.label, 60) if i < across else "")
            ax.set_ylabel(ROWS[kind] if subject is first[kind] else "")
        drawing.outer_labels(axes, across, "generator updates")
        picture.legend(axes[0].get_legend_handles_labels()[0])
    return picture.png


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
            drawing.note(ax, f"up to {max(values):.3g} at step 0")
    style.updates_axis(ax, 4, left=None)


def _logged(subject: Subject) -> Iterator[Point]:
    """Norms that ``spectral_every`` recorded in metrics.jsonl."""
    for record in read_metrics(RunFolder(subject.run.folder).metrics):
        for kind, prefix in PREFIXES.items() if record["kind"] == "spectral" else ():
            for name, value in record.items():
                if name.startswith(prefix) and isinstance(value, float):
                    yield Point(record["step"], text.clean(name.removeprefix(prefix), 60), value, kind, "log")


def _checkpoints(subject: Subject) -> Iterator[Point]:
    """Norms computed from every checkpoint of the run."""
    for step in subject.checkpoints():
        d = subject.restore(step)[0].discriminator
        norms = {"effective": singular_values.spectral_norms(d), "raw": singular_values.raw_spectral_norms(d)}
        for kind, values in norms.items():
            yield from (Point(step, layer, v, kind, "checkpoint") for layer, v in values.items())


def _summary(subject: Subject, points: Sequence[Point]) -> str:
    """Report line: range of the applied norms over all layers and steps, and at the last step."""
    applied = [p for p in points if p.kind == "effective"]
    if not applied:
        return f"  {subject.label}: no norms"
    last = max(p.step for p in applied)
    end = [p.norm for p in applied if p.step == last]
    trained = [p for p in applied if p.step] or applied  # u is random before training
    norms, steps = [p.norm for p in trained], len({p.step for p in trained})
    return (
        f"  {subject.label}: {min(norms):.3f} to {max(norms):.3f} over {steps} steps, "
        f"{min(end):.3f} to {max(end):.3f} at step {last:,}"
    )
