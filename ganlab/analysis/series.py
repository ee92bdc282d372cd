"""Scores of runs against a number that they differ in: a line per method, mean and band over seeds."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ganlab import text
from ganlab.analysis import drawing
from ganlab.analysis.base import Finding, Row
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.papers import labels as labels_module
from ganlab.report.draw import style
from ganlab.report.draw.curves import DASHES
from ganlab.report.read import cells
from ganlab.report.read.cells import Group

Line = tuple[Group, str]  # method with its variant, and setting
OPTIMIZERS = {"RMSprop": "RMSProp", "RMSpropTF": "RMSProp"}  # classes' names, where papers write others


class Measure(NamedTuple):
    """A score of a run at a step, under a protocol (its id)."""

    score: str
    protocol: str
    step: int
    value: float


class Place(NamedTuple):
    """The runs of a line at one x: seeds and values, in this order."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None of one run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


Lines = Mapping[Line, Mapping[float, Place]]


def measures(subject: Subject) -> list[Measure]:
    """Every score that a run has of itself: on the way, at the end, and by ``ganlab evaluate``."""
    run = subject.run
    found = {
        (name, protocol, step): value
        for (name, protocol), curve in run.curves.items()
        if protocol
        for step, value in zip(curve.steps, curve.values, strict=True)
    }
    found |= {(s.name, s.protocol_id, s.step): s.value for s in run.scores if s.step is not None}
    return [Measure(*key, value) for key, value in found.items() if value == value]


def choose(runs: Sequence[Subject], wanted: str | None, name: str) -> tuple[str, str, list[Measure]]:
    """The score and protocol that most runs have: ``wanted``, else IS, FID, KID in this order.

    Raises DataError naming the scores there are.
    """
    every = [m for s in runs for m in measures(s)]
    scores = sorted({m.score for m in every}, key=labels_module.score_rank)
    if not scores:
        raise DataError(name, "these runs have no scores", "train on, or score them: ganlab evaluate RUN")
    score = wanted or scores[0]
    if score not in scores:
        raise DataError(name, f"no run has a score {score!r}", f"they have {', '.join(scores)}")
    counts = Counter(p for s in runs for p in {m.protocol for m in measures(s) if m.score == score})
    protocol = sorted(counts, key=lambda p: (-counts[p], p))[0]
    return score, protocol, [m for m in every if (m.score, m.protocol) == (score, protocol)]


def commonest_step(found: Sequence[Measure]) -> int:
    """The latest of the steps that most runs have."""
    counts = Counter(m.step for m in found)
    return max(counts, key=lambda step: (counts[step], step))


def at_step(score: str, protocol: str, step: int) -> Callable[[Subject], float | None]:
    """A function: the value of that score of a run, or None."""

    def value(subject: Subject) -> float | None:
        own = (m for m in measures(subject) if (m.score, m.protocol, m.step) == (score, protocol, step))
        return next((m.value for m in own), None)

    return value


def lines(
    runs: Sequence[Subject], x: str, value: Callable[[Subject], Mapping[float, float]]
) -> dict[Line, dict[float, Place]]:
    """Runs that differ in nothing but the seed and the config key ``x``, by method and setting.

    ``value``: x -> score of one run.
    """
    pairs = [(replace(s.run, config={k: v for k, v in s.run.config.items() if k != x}), s) for s in runs]
    copies = {id(copy): s for copy, s in pairs}
    found: dict[Line, dict[float, Place]] = {}
    for section in cells.sections([copy for copy, _ in pairs]):
        for (group, setting), cell in section.cells.items():
            at: dict[float, list[tuple[int, float]]] = defaultdict(list)
            for copy in cell.runs:
                subject = copies[id(copy)]
                for where, score in value(subject).items():
                    at[where].append((int(subject.run.number("seed") or 0), score))
            if at:
                by_seed = {k: sorted(at[k], key=lambda pair: pair[0]) for k in sorted(at)}
                found[group, setting] = {k: Place(*zip(*pairs, strict=True)) for k, pairs in by_seed.items()}
    return found


def optimizers(runs: Sequence[Subject]) -> dict[tuple[str, str], str]:
    """The optimizer's name by method and setting, where all runs of these agree."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for subject in runs:
        name = str(subject.run.config.get("optimizer._target_") or "").rpartition(".")[2]
        found[subject.method, subject.setting].add(text.clean(OPTIMIZERS.get(name, name), 20))
    return {place: names.pop() for place, names in found.items() if len(names) == 1}


class Axis(NamedTuple):
    """A panel's x axis: its label, the lines over it, and whether it is logarithmic with a tick at each x."""

    label: str
    lines: Lines
    ticks: bool = False


class Words(NamedTuple):
    """What a figure says of itself: its title, and what was measured."""

    title: str
    what: str


def finding(
    found: Lines,
    x: str,
    axes: Sequence[Axis],
    words: Words,
    score: str,
    protocol: str,
    clock: Lines | None = None,
    optimizers: Mapping[tuple[str, str], str] | None = None,
) -> Finding:
    """Picture with a panel for each of ``axes``, a row per run and x, and the means printed.

    clock: the training seconds of the same lines, places and seeds, for a column ``train_s``. optimizers: by
    method and setting; where they tell the lines apart, they stand in the place of the settings.
    """
    rows: list[Row] = []
    names = _names(found, optimizers or {})
    says = [f"{score} under protocol {protocol}: mean +- std over seeds"]
    for (group, setting), places in found.items():
        told = {"method": group.method, "variant": group.variant, "setting": setting}
        for where, place in places.items():
            for i, (seed, value) in enumerate(zip(place.seeds, place.values, strict=True)):
                row = {
                    **told,
                    x: where,
                    "seed": seed,
                    "score": score,
                    "protocol_id": protocol,
                    "value": value,
                }
                rows.append(row | ({"train_s": clock[group, setting][where].values[i]} if clock else {}))
        shown = [f"{k:g}: {labels_module.spread(p.mean, p.std)}" for k, p in places.items()]
        shown = shown if len(shown) <= 8 else [shown[0], "...", *shown[-3:]]
        says.append(f"  {names[group, setting]}: {', '.join(shown)}")
    return Finding(_draw(axes, names, words, score, protocol), rows, says)


def _names(found: Lines, optimizers: Mapping[tuple[str, str], str]) -> dict[Line, str]:
    """A label for each line: its method, and its optimizer or its setting where lines differ in them."""
    used = {line: optimizers.get((line[0].method, line[1]), "") for line in found}
    named = {line: f"{line[0].label} ({name})" for line, name in used.items()}
    if len(set(used.values())) > 1 and len(set(named.values())) == len(named) and all(used.values()):
        return named
    several = len({s for _, s in found}) > 1
    return {(g, s): f"{g.label}, setting {s}" if several and s else g.label for g, s in found}


def _draw(axes: Sequence[Axis], names: Mapping[Line, str], words: Words, score: str, protocol: str) -> bytes:
    styles = style.method_style(list(dict.fromkeys(group for group, _ in names)))
    settings = sorted({s for _, s in names}, key=labels_module.setting_rank)
    wide = 5.6 if len(axes) == 1 else 4.4 * len(axes)
    with drawing.style():
        figure = Figure(figsize=(wide, 3.9), layout="constrained")
        panels = drawing.panels(figure, len(axes), len(axes), sharey=True)
        for ax, axis in zip(panels, axes, strict=True):
            for (group, setting), places in axis.lines.items():
                color, marker = styles[group]
                dash = DASHES[settings.index(setting) % len(DASHES)]
                xs, means = list(places), [p.mean for p in places.values()]
                label = text.plain(names[group, setting], 60)
                dots = {"marker": "" if len(places) > 25 else marker, "ms": 4.5, "mew": 0}
                ax.plot(xs, means, color=color, ls=dash, lw=1.3, label=label, **dots)  # type: ignore[arg-type]
                low, high = ([p.mean + k * (p.std or 0) for p in places.values()] for k in (-1, 1))
                ax.fill_between(xs, low, high, color=color, alpha=0.18, lw=0)
            _axes(ax, axis, score)
        direction = labels_module.better(score)
        label = text.plain(labels_module.score_label(score))
        panels[0].set_ylabel(f"{label} ({direction} is better)" if direction else label)
        small = {"fontsize": 7.2, "color": style.GREY}
        seeds = sorted({len(p.seeds) for places in axes[0].lines.values() for p in places.values()})
        n = labels_module.span(str(seeds[0]), str(seeds[-1]))
        band = "band: +- std over seeds" if seeds[-1] > 1 else "one seed: no band"
        note = f"{words.what}; {n} run{'s' if seeds[-1] > 1 else ''} per point, {band}; protocol {protocol}"
        panels[0].set_title(style.wrap(note, int(95 * wide / 5.6 / len(axes)), 4), loc="left", **small)  # type: ignore[arg-type]
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=style.columns(labels, wide))
        drawing.titled(figure, words.title)
        return drawing.png(figure)


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
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(drawing.thousands)
