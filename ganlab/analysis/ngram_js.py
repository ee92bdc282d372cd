"""n-gram divergences of text generators over updates, as plotted by WGAN-GP's gan_language.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ganlab import text
from ganlab.analysis import drawing, series
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.report.draw import style
from ganlab.runs.metrics_file import read_metrics

NAMES = ("js1", "js2", "js3", "js4")
Curves = dict[str, dict[int, float]]  # score -> step -> divergence in bits


class NgramJS(Analysis):
    """Jensen-Shannon divergence of character n-grams over generator updates, n = 1 to 4 (WGAN-GP)

    One panel per n, one line per run. The dotted line is the divergence of held-out real lines from the
    others; no generator is expected to fall below it.

    Args:
        log: plot divergences on a logarithmic axis.
    """

    kinds = ("text",)
    log: bool = True

    def make(self, runs: Sequence[Subject]) -> Finding:
        _, protocol, _ = series.choose(runs, NAMES[-1], "ngram_js", curves=True)
        result = Finding(report=[f"divergences in bits under protocol {protocol}: first, last"])
        by_run = {subject: (curves_of(subject, protocol), floors(subject)) for subject in runs}
        for subject, (curves, real) in by_run.items():
            for name, curve in curves.items():
                columns = {**subject.columns, "n": int(name[2:]), "protocol_id": protocol}
                floor = real.get(name, "")
                result.rows += [{**columns, "step": k, "js": v, "real": floor} for k, v in curve.items()]
            ends = [f"{name} {_ends(curve)}" for name, curve in curves.items()]
            result.report.append(f"  {label(subject, runs)}: {'; '.join(ends)}")
        for lines in sorted({tuple(sorted(real.items())) for _, real in by_run.values() if real}):
            result.report.append(f"  real lines: {'; '.join(f'{k} {v:.3g}' for k, v in lines)}")
        result.png = self._draw(by_run)
        return result

    def _draw(self, by_run: Mapping[Subject, tuple[Curves, dict[str, float]]]) -> bytes:
        runs = list(by_run)
        styles = drawing.run_styles(runs)
        with drawing.Picture("Character n-grams", 7.2, 4.8, runs) as picture:
            axes = picture.panels(len(NAMES), 2, sharex=True)
            for name, ax in zip(NAMES, axes, strict=True):
                values = []
                for subject, (curves, real) in by_run.items():
                    if curve := curves.get(name):
                        ax.plot(list(curve), list(curve.values()), lw=1.4, **styles[subject])
                        values += list(curve.values())
                    if name in real:
                        ax.axhline(real[name], color=style.GREY, ls=":", lw=1.2)
                        values.append(real[name])
                self._axes(ax, name, values)
            drawing.outer_labels(axes, 2, "generator updates", "JS divergence, bits")
            lines = [Line2D([], [], lw=1.6, label=text.plain(label(s, runs), 60), **styles[s]) for s in runs]
            lines.append(Line2D([], [], lw=1.2, ls=":", color=style.GREY, label="real lines"))
            picture.legend(lines, handlelength=2.8)
            picture.figure.align_ylabels()
        return picture.png

    def _axes(self, ax: Axes, name: str, values: Sequence[float]) -> None:
        ax.set_title(f"n = {name[2:]}", loc="left")
        style.updates_axis(ax, 5)
        if self.log and values and min(values) > 0:
            style.log_axis(ax, values)
        else:
            ax.set_ylim(bottom=0)


def curves_of(subject: Subject, protocol: str) -> Curves:
    """A run's divergences by n-gram length and step, n = 1 first."""
    measures = [m for m in series.measures(subject) if m.protocol == protocol]
    steps = {name: {m.step: m.value for m in measures if m.score == name} for name in NAMES}
    return {name: dict(sorted(curve.items())) for name, curve in steps.items() if curve}


def floors(subject: Subject) -> dict[str, float]:
    """Divergence of held-out real lines, as logged at the start of the run; may be empty."""
    path = subject.run.folder / "metrics.jsonl"
    record = next((r for r in read_metrics(path) if r.get("kind") == "real"), {}) if path.is_file() else {}
    values = {name: record.get(f"real/{name}") for name in NAMES}
    return {k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and 0 <= v <= 1}


def label(subject: Subject, runs: Sequence[Subject]) -> str:
    """A run's label, with its loss appended if the runs differ in it."""
    own, losses = subject.run.text("loss"), {s.run.text("loss") for s in runs}
    return f"{subject.label}, {text.clean(own, 24)} loss" if len(losses) > 1 and own else subject.label


def _ends(curve: Mapping[int, float]) -> str:
    first, *_, last = [*curve.values()] * 2
    return f"{first:.3g}, {last:.3g}"
