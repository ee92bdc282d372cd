"""Scores of runs as curves: one line per method, mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from ganlab import text
from ganlab.analysis import drawing
from ganlab.analysis.base import Finding
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.papers import labels as labels_module
from ganlab.report.draw import style
from ganlab.report.read import cells
from ganlab.report.read.cells import Group

Line = tuple[Group, str]  # method with its variant, and setting
OPTIMIZERS = {"RMSprop": "RMSProp", "RMSpropTF": "RMSProp"}  # class name -> name used in papers


class Measure(NamedTuple):
    """A run's score at a step, with the id of its protocol."""

    score: str
    protocol: str
    step: int
    value: float


class Place(NamedTuple):
    """The runs of a line at one x: their seeds and values, in matching order."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for a single run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


Lines = Mapping[Line, Mapping[float, Place]]


def measures(subject: Subject) -> list[Measure]:
    """All scores of a run: during training, at its end, and from ``ganlab evaluate``."""
    run = subject.run
    values = {
        (name, protocol, step): value
        for (name, protocol), curve in run.curves.items()
        if protocol
        for step, value in zip(curve.steps, curve.values, strict=True)
    }
    values |= {(s.name, s.protocol_id, s.step): s.value for s in run.scores if s.step is not None}
    return [Measure(*key, value) for key, value in values.items() if value == value]


def choose(
    runs: Sequence[Subject], requested: str | None, name: str, curves: bool = False
) -> tuple[str, str, list[Measure]]:
    """Select the score (``requested``, else the first available of IS, FID, KID) and its commonest protocol.

    Returns the score, the protocol's id, and all matching measures. Raises DataError listing the available
    scores; with ``curves``, also if there is only one step.
    """
    available = [m for s in runs for m in measures(s)]
    scores = sorted({m.score for m in available}, key=labels_module.score_rank)
    if not scores:
        fix = "continue training, or score them with 'ganlab evaluate RUN'"
        raise DataError(name, "these runs have no scores", fix)
    score = requested or scores[0]
    if score not in scores:
        raise DataError(name, f"no run has a score {score!r}", f"available scores: {', '.join(scores)}")
    counts = Counter(p for s in runs for p in {m.protocol for m in measures(s) if m.score == score})
    protocol = sorted(counts, key=lambda p: (-counts[p], p))[0]
    chosen = [m for m in available if (m.score, m.protocol) == (score, protocol)]
    if curves and len({m.step for m in chosen}) < 2:
        problem = f"each run has a single {score}, so there is no curve"
        raise DataError(name, problem, "train with eval_every=N")
    return score, protocol, chosen


def lines(
    runs: Sequence[Subject], x: str, value: Callable[[Subject], Mapping[float, float]]
) -> dict[Line, dict[float, Place]]:
    """Group runs that differ only in the seed and the config key ``x``, by method and setting.

    ``value``: returns a run's scores by x.
    """
    pairs = [(replace(s.run, config={k: v for k, v in s.run.config.items() if k != x}), s) for s in runs]
    copies = {id(copy): s for copy, s in pairs}
    by_line: dict[Line, dict[float, Place]] = {}
    for section in cells.sections([copy for copy, _ in pairs]):
        for (group, setting), cell in section.cells.items():
            at: dict[float, list[tuple[int, float]]] = defaultdict(list)
            for copy in cell.runs:
                subject = copies[id(copy)]
                for where, score in value(subject).items():
                    at[where].append((int(subject.run.number("seed") or 0), score))
            if at:
                by_seed = {k: sorted(at[k], key=lambda pair: pair[0]) for k in sorted(at)}
                by_line[group, setting] = {
                    k: Place(*zip(*pairs, strict=True)) for k, pairs in by_seed.items()
                }
    return by_line


def optimizers(runs: Sequence[Subject]) -> dict[tuple[str, str], str]:
    """Optimizer name by method and setting, where all of their runs agree."""
    names: dict[tuple[str, str], set[str]] = defaultdict(set)
    for subject in runs:
        name = str(subject.run.config.get("optimizer._target_") or "").rpartition(".")[2]
        names[subject.method, subject.setting].add(text.clean(OPTIMIZERS.get(name, name), 20))
    return {key: values.pop() for key, values in names.items() if len(values) == 1}


class Axis(NamedTuple):
    """A panel's x axis: label, lines, and whether it is logarithmic with a tick at each x."""

    label: str
    lines: Lines
    ticks: bool = False


class Caption(NamedTuple):
    """A figure's title, a note on what was measured, and its score with the id of its protocol."""

    title: str
    subtitle: str
    score: str
    protocol: str


class Against(NamedTuple):
    """A config key as x: its column in the table, the axis's label, a grid with several values, its type."""

    key: str
    column: str
    label: str
    grid: str
    number: type[float] = float

    def value(self, subject: Subject) -> float:
        """A run's value; 1 if its config has no such key."""
        value = subject.run.config.get(self.key)
        return self.number(value if isinstance(value, (int, float)) else 1)


def against(
    runs: Sequence[Subject], x: Against, requested: str | None, updates: int | None, title: str
) -> Finding:
    """The score over a config key at one step: ``updates``, else the latest one that most runs have."""
    score, protocol, measured = choose(runs, requested, x.key)
    counts = Counter(m.step for m in measured)
    step = updates or max(counts, key=lambda step: (counts[step], step))
    key = (score, protocol, step)
    at = {s: m.value for s in runs for m in reversed(measures(s)) if (m.score, m.protocol, m.step) == key}
    if not at:
        steps = ", ".join(map(str, sorted(counts)[-8:]))
        raise DataError("updates", f"no run has {score} at step {step}", f"available steps: {steps}")
    if len(values := {x.value(s) for s in at}) < 2:
        problem = f"all runs with {score} at step {step} have the same {x.key}: {values.pop():g}"
        raise DataError(x.column, problem, f"pass runs with several values, as from grid={x.grid}")
    by_line = lines(runs, x.key, lambda s: {x.value(s): at[s]} if s in at else {})
    caption = Caption(title, f"after {step:,} generator updates", score, protocol)
    return finding(runs, by_line, x.column, [Axis(x.label, by_line, ticks=True)], caption)


def finding(
    runs: Sequence[Subject],
    lines: Lines,
    x: str,
    axes: Sequence[Axis],
    caption: Caption,
    clock: Lines | None = None,
    optimizers: Mapping[tuple[str, str], str] | None = None,
) -> Finding:
    """Build a figure with one panel per axis, one row per run and x, and a report of the means.

    clock: training seconds of the same lines, for a column ``train_s``. optimizers: names by method and
    setting; they label the lines instead of the settings if they distinguish all of them.
    """
    names = _names(lines, optimizers or {})
    score = {"score": caption.score, "protocol_id": caption.protocol}
    result = Finding(report=[f"{caption.score} under protocol {caption.protocol}: mean +- std over seeds"])
    for (group, setting), places in lines.items():
        columns = {"method": group.method, "variant": group.variant, "setting": setting}
        for where, place in places.items():
            for i, (seed, value) in enumerate(zip(place.seeds, place.values, strict=True)):
                row = {**columns, x: where, "seed": seed, **score, "value": value}
                result.rows.append(
                    row | ({"train_s": clock[group, setting][where].values[i]} if clock else {})
                )
        points = [f"{k:g}: {labels_module.spread(p.mean, p.std)}" for k, p in places.items()]
        points = points if len(points) <= 8 else [points[0], "...", *points[-3:]]
        result.report.append(f"  {names[group, setting]}: {', '.join(points)}")
    result.png = _draw(runs, axes, names, caption)
    return result


def _names(lines: Lines, optimizers: Mapping[tuple[str, str], str]) -> dict[Line, str]:
    """Label each line with its method, and with its optimizer or setting where lines differ in them."""
    optimizer_of = {line: optimizers.get((line[0].method, line[1]), "") for line in lines}
    labels = {line: f"{line[0].label} ({name})" for line, name in optimizer_of.items()}
    distinct = len(set(optimizer_of.values())) > 1 and len(set(labels.values())) == len(labels)
    if distinct and all(optimizer_of.values()):
        return labels
    several = len({s for _, s in lines}) > 1
    return {(g, s): f"{g.label}, setting {s}" if several and s else g.label for g, s in lines}


def _draw(
    runs: Sequence[Subject], axes: Sequence[Axis], names: Mapping[Line, str], caption: Caption
) -> bytes:
    styles = style.method_style(list(dict.fromkeys(group for group, _ in names)))
    settings = sorted({s for _, s in names}, key=labels_module.setting_rank)
    wide = 5.6 if len(axes) == 1 else 4.4 * len(axes)
    with drawing.Picture(caption.title, wide, 3.9, runs) as picture:
        panels = picture.panels(len(axes), len(axes), sharey=True)
        for ax, axis in zip(panels, axes, strict=True):
            for (group, setting), places in axis.lines.items():
                color, marker = styles[group]
                dash = style.DASHES[settings.index(setting) % len(style.DASHES)]
                xs, means = list(places), [p.mean for p in places.values()]
                dots: Any = {"marker": "" if len(places) > 25 else marker, "ms": 4.5, "mew": 0}
                label = text.plain(names[group, setting], 60)
                ax.plot(xs, means, color=color, ls=dash, lw=1.3, label=label, **dots)
                low, high = ([p.mean + k * (p.std or 0) for p in places.values()] for k in (-1, 1))
                ax.fill_between(xs, low, high, color=color, alpha=0.18, lw=0)
            _axes(ax, axis, caption.score)
        panels[0].set_ylabel(style.score_axis_label(caption.score))
        seeds = sorted({len(p.seeds) for places in axes[0].lines.values() for p in places.values()})
        n = labels_module.span(str(seeds[0]), str(seeds[-1]))
        band = "band: +- std over seeds" if seeds[-1] > 1 else "one seed: no band"
        count = f"{n} run{'s' if seeds[-1] > 1 else ''} per point"
        note = f"{caption.subtitle}; {count}, {band}; protocol {caption.protocol}"
        wrapped = style.wrap(note, int(95 * wide / 5.6 / len(axes)), 4)
        panels[0].set_title(wrapped, loc="left", fontsize=7.2, color=style.GREY)
        picture.legend(panels[0].get_legend_handles_labels()[0])
    return picture.png


def _axes(ax: Axes, axis: Axis, score: str) -> None:
    values = [v for places in axis.lines.values() for p in places.values() for v in p.values]
    ax.set_xlabel(axis.label)
    if style.is_log(score, values):
        style.log_axis(ax, values)
    if axis.ticks:
        where = sorted({x for places in axis.lines.values() for x in places})
        ax.set_xscale("log")
        ax.set_xticks(where, [f"{x:g}" for x in where])
        ax.minorticks_off()
    else:
        style.updates_axis(ax)
