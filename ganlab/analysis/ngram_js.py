"""n-gram divergences of language models over the updates (WGAN-GP's gan_language.py plots the same)."""

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
Curves = Mapping[str, Mapping[int, float]]  # score -> step -> value
Shown = tuple[Curves, Mapping[str, float]]  # and what real lines score


class NgramJS(Analysis):
    """Jensen-Shannon divergences of character n-grams over the generator updates, n = 1 to 4 (WGAN-GP)

    A panel for each n, a line for each run. The dotted line is what real lines score against the others:
    no generator is expected below it.

    Args:
        log: whether the divergences stand on a logarithmic axis.
    """

    kinds = ("text",)

    @checked
    def __init__(self, log: bool = True) -> None:
        self.log = log

    def make(self, runs: Sequence[Subject]) -> Finding:
        _, protocol, found = series.choose(runs, NAMES[-1], "ngram_js")
        if len({m.step for m in found}) < 2:
            what = "the runs have one score each, no curve"
            raise DataError("ngram_js", what, "train with eval_every=N")
        rows: list[Row] = []
        says = [f"divergences in bits under protocol {protocol}: the first, the last"]
        shown: dict[Subject, Shown] = {}
        for subject in runs:
            curves, real = curves_of(subject, protocol), floors(subject)
            shown[subject] = curves, real
            for name, curve in curves.items():
                told = {**subject.columns, "n": int(name[2:]), "protocol_id": protocol}
                rows += [{**told, "step": k, "js": v, "real": real.get(name, "")} for k, v in curve.items()]
            ends = [f"{name} {_ends(curve)}" for name, curve in curves.items()]
            says.append(f"  {label(subject, runs)}: {'; '.join(ends)}")
        known = {tuple(sorted(real.items())) for _, real in shown.values() if real}
        says += [f"  real lines: {'; '.join(f'{k} {v:.3g}' for k, v in real)}" for real in sorted(known)]
        return Finding(self._draw(runs, shown), rows, says)

    def _draw(self, runs: Sequence[Subject], shown: Mapping[Subject, Shown]) -> bytes:
        styles = drawing.run_styles(runs)
        with drawing.style():
            figure = Figure(figsize=(7.2, 4.8), layout="constrained")
            for name, ax in zip(NAMES, drawing.panels(figure, len(NAMES), 2, sharex=True), strict=True):
                values = []
                for subject, (curves, real) in shown.items():
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
            drawing.titled(figure, title)
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
    """What a run scored on the way and at its end, n = 1 first."""
    found = [m for m in series.measures(subject) if m.protocol == protocol]
    steps = {name: {m.step: m.value for m in found if m.score == name} for name in NAMES}
    return {name: dict(sorted(curve.items())) for name, curve in steps.items() if curve}


def floors(subject: Subject) -> dict[str, float]:
    """What real lines score against the others, as the run told it at its start; may be empty."""
    path = subject.run.folder / "metrics.jsonl"
    told = next((r for r in read_metrics(path) if r.get("kind") == "real"), {}) if path.is_file() else {}
    found = {name: told.get(f"real/{name}") for name in NAMES}
    return {k: float(v) for k, v in found.items() if isinstance(v, (int, float)) and 0 <= v <= 1}


def label(subject: Subject, runs: Sequence[Subject]) -> str:
    """A run's label, with its loss where the runs' are not the same: a GAN without a method is a loss."""
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
