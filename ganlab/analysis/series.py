"""Scores of runs against a number that they differ in: a line per method, mean and band over seeds."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ganlab.analysis import drawing
from ganlab.analysis.base import Finding, Row
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.report import cells, figures, text
from ganlab.report.cells import Group
from ganlab.report.curves import DASHES

Line = tuple[Group, str]  # method with its variant, and setting


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
    scores = sorted({m.score for m in every}, key=text.score_rank)
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
                found[group, setting] = {k: Place(*zip(*sorted(at[k]), strict=True)) for k in sorted(at)}
    return found


def finding(
    found: Lines, x: str, words: tuple[str, str, str], score: str, protocol: str, ticks: bool = False
) -> Finding:
    """Picture, a row per run and x, and the means printed. ``words``: title, x axis, what was measured.

    ticks: the x axis is logarithmic, with a tick at each x.
    """
    rows: list[Row] = []
    says = [f"{score} under protocol {protocol}: mean +- std over seeds"]
    for (group, setting), places in found.items():
        told = {"method": group.method, "variant": group.variant, "setting": setting}
        for where, place in places.items():
            rows += [
                {**told, x: where, "seed": seed, "score": score, "protocol_id": protocol, "value": value}
                for seed, value in zip(place.seeds, place.values, strict=True)
            ]
        shown = [f"{k:g}: {text.spread(p.mean, p.std)}" for k, p in places.items()]
        shown = shown if len(shown) <= 8 else [shown[0], "...", *shown[-3:]]
        says.append(f"  {_label(group, setting, found)}: {', '.join(shown)}")
    return Finding(_draw(found, words, score, protocol, ticks), rows, says)


def _label(group: Group, setting: str, found: Lines) -> str:
    several = len({s for _, s in found}) > 1
    return f"{group.label}, setting {setting}" if several and setting else group.label


def _draw(found: Lines, words: tuple[str, str, str], score: str, protocol: str, ticks: bool) -> bytes:
    title, x_label, what = words
    groups = list(dict.fromkeys(group for group, _ in found))
    settings = sorted({s for _, s in found}, key=text.setting_rank)
    styles = figures.method_style(groups)
    with drawing.style():
        figure = Figure(figsize=(5.6, 3.9), layout="constrained")
        (ax,) = drawing.panels(figure, 1, 1)
        for (group, setting), places in found.items():
            color, marker = styles[group]
            dash = DASHES[settings.index(setting) % len(DASHES)]
            many = len(places) > 25
            xs, means = list(places), [p.mean for p in places.values()]
            label = text.plain(_label(group, setting, found), 60)
            dots = {"marker": "" if many else marker, "ms": 4.5, "mew": 0}
            ax.plot(xs, means, color=color, ls=dash, lw=1.3, label=label, **dots)  # type: ignore[arg-type]
            low, high = ([p.mean + k * (p.std or 0) for p in places.values()] for k in (-1, 1))
            ax.fill_between(xs, low, high, color=color, alpha=0.18, lw=0)
        _axes(ax, found, score, ticks)
        ax.set_xlabel(x_label)
        direction = text.better(score)
        label = text.plain(text.score_label(score))
        ax.set_ylabel(f"{label} ({direction} is better)" if direction else label)
        small = {"fontsize": 7.2, "color": figures.GREY}
        seeds = sorted({len(p.seeds) for places in found.values() for p in places.values()})
        n = text.span(str(seeds[0]), str(seeds[-1]))
        band = "band: +- std over seeds" if seeds[-1] > 1 else "one seed: no band"
        note = f"{what}; {n} run{'s' if seeds[-1] > 1 else ''} per point, {band}; protocol {protocol}"
        ax.set_title(figures.wrap(note, 95, 3), loc="left", **small)  # type: ignore[arg-type]
        names = [text.plain(_label(*line, found), 60) for line in found]
        fit = figures.columns(names, 5.6)
        figure.legend(loc="outside lower center", ncols=fit)
        drawing.titled(figure, title)
        return drawing.png(figure)


def _axes(ax: Axes, found: Lines, score: str, ticks: bool) -> None:
    values = [v for places in found.values() for p in places.values() for v in p.values]
    if figures.is_log(score, values):
        figures.log_axis(ax, values)
    if ticks:
        where = sorted({x for places in found.values() for x in places})
        ax.set_xscale("log")
        ax.set_xticks(where, [f"{x:g}" for x in where])
        ax.minorticks_off()
    else:
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(drawing.thousands)
