"""n-gram divergences of text generators over updates, as plotted by WGAN-GP's gan_language.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ganlab import text
from ganlab.analysis import drawing, series, subjects
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.report.draw import style
from ganlab.runs.metrics_file import read_metrics
from ganlab.schema import checked

NAMES = ("js1", "js2", "js3", "js4")
Curves = Mapping[str, Mapping[int, float]]  # score -> step -> divergence in bits
RunCurves = tuple[Curves, Mapping[str, float]]  # curves, and the scores of held-out real lines


class NgramJS(Analysis):
    """Jensen-Shannon divergence of character n-grams over generator updates, n = 1 to 4 (WGAN-GP)

    One panel per n, one line per run. The dotted line is the divergence of held-out real lines from the
    others; no generator is expected to fall below it.

    Args:
        log: plot divergences on a logarithmic axis.
    """

    kinds = ("text",)

    @checked
    def __init__(self, log: bool = True) -> None:
        self.log = log

    def make(self, runs: Sequence[Subject]) -> Finding:
        _, protocol, measures = series.choose(runs, NAMES[-1], "ngram_js")
        if len({m.step for m in measures}) < 2:
            problem = "each run has a single score, so there is no curve"
            raise DataError("ngram_js", problem, "train with eval_every=N")
        rows: list[Row] = []
        report = [f"divergences in bits under protocol {protocol}: first, last"]
        run_curves: dict[Subject, RunCurves] = {}
        for subject in runs:
            curves, real = curves_of(subject, protocol), floors(subject)
            run_curves[subject] = curves, real
            for name, curve in curves.items():
                columns = {**subject.columns, "n": int(name[2:]), "protocol_id": protocol}
                rows += [
                    {**columns, "step": k, "js": v, "real": real.get(name, "")} for k, v in curve.items()
                ]
            ends = [f"{name} {_ends(curve)}" for name, curve in curves.items()]
            report.append(f"  {label(subject, runs)}: {'; '.join(ends)}")
        real_scores = {tuple(sorted(real.items())) for _, real in run_curves.values() if real}
        report += [
            f"  real lines: {'; '.join(f'{k} {v:.3g}' for k, v in real)}" for real in sorted(real_scores)
        ]
        return Finding(self._draw(runs, run_curves), rows, report)

    def _draw(self, runs: Sequence[Subject], run_curves: Mapping[Subject, RunCurves]) -> bytes:
        styles = drawing.run_styles(runs)
        with drawing.style():
            figure = Figure(figsize=(7.2, 4.8), layout="constrained")
            for name, ax in zip(NAMES, drawing.panels(figure, len(NAMES), 2, sharex=True), strict=True):
                values = []
                for subject, (curves, real) in run_curves.items():
                    if curve := curves.get(name):
                        ax.plot(list(curve), list(curve.values()), lw=1.4, **styles[subject])
                        values += list(curve.values())
                    if name in real:
                        ax.axhline(real[name], color=style.GREY, ls=":", lw=1.2)
                        values.append(real[name])
                self._axes(ax, name, values)
            for ax in figure.axes[2:]:
                ax.set_xlabel("generator updates")
            for ax in figure.axes[::2]:
                ax.set_ylabel("JS divergence, bits")
            _legend(figure, runs, styles)
            title = f"Character n-grams: {subjects.common(runs)}"
            figure.align_ylabels()
            drawing.set_title(figure, title)
            return drawing.png(figure)

    def _axes(self, ax: Axes, name: str, values: Sequence[float]) -> None:
        ax.set_title(f"n = {name[2:]}", loc="left")
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(drawing.thousands)
        if self.log and values and min(values) > 0:
            style.log_axis(ax, values)
        else:
            ax.set_ylim(bottom=0)


def curves_of(subject: Subject, protocol: str) -> dict[str, dict[int, float]]:
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
    loss = text.clean(own, 24)
    return f"{subject.label}, {loss} loss" if len(losses) > 1 and own else subject.label


def _ends(curve: Mapping[int, float]) -> str:
    first, *_, last = [*curve.values()] * 2
    return f"{first:.3g}, {last:.3g}"


def _legend(figure: Figure, runs: Sequence[Subject], styles: Mapping[Subject, drawing.Style]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], lw=1.6, label=text.plain(label(s, runs), 60), **styles[s]) for s in runs]
    handles.append(Line2D([], [], lw=1.2, ls=":", color=style.GREY, label="real lines"))
    fit = style.columns([str(h.get_label()) for h in handles], figure.get_figwidth())
    figure.legend(handles=handles, loc="outside lower center", ncols=fit, handlelength=2.8)
