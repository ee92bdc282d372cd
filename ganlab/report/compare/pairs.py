"""Pairs of runs that differ in one thing: how often either succeeds, how often either wins. Plain counting.

WGAN-GP (arXiv:1704.00028) counts so: Tables 2 and 5 the successes of a standard GAN and of WGAN-GP on random
architectures, appendix C the wins of the two-sided and of the one-sided penalty. Which runs are pairs stands
in ``grid.json``. A run that diverged or failed has no score and succeeds at no threshold; one that is not
over leaves its pair out.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ganlab import text
from ganlab.papers import labels as labels_module
from ganlab.report.read.collect import Run, Score
from ganlab.report.read.grids import Grid

FAILED = -math.inf  # the score of a run that has none: below every threshold
OVER = ("finished", "diverged", "failed")


class Counts(NamedTuple):
    """Pairs whose scores lie above a threshold: the first's alone, the second's alone, both, neither."""

    only_first: int
    only_second: int
    both: int
    neither: int


class Wins(NamedTuple):
    """Pairs whose first, whose second score is higher, and those with equal ones (two failures too)."""

    first: int
    second: int
    ties: int


class Pair(NamedTuple):
    """The scores of two runs, higher is better, ``FAILED`` for one without."""

    name: str
    first: float
    second: float
    chosen: Mapping[str, str]


def successes(pairs: Iterable[Pair], threshold: float) -> Counts:
    """Success is a score above the threshold, not at it."""
    found = Counter((pair.first > threshold, pair.second > threshold) for pair in pairs)
    return Counts(found[True, False], found[False, True], found[True, True], found[False, False])


def wins(pairs: Iterable[Pair]) -> Wins:
    """Which of two has the higher score."""
    found = Counter((pair.first > pair.second) - (pair.first < pair.second) for pair in pairs)
    return Wins(found[1], found[-1], found[0])


def sign_test(first: int, second: int) -> float:
    """Two-sided p of so uneven a split, were either as likely to win; 1 without any (ties do not count)."""
    from scipy.stats import binomtest

    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def deciles(scores: Sequence[float]) -> list[float]:
    """The nine deciles of the scores, to four digits, each once; nothing of fewer than two scores."""
    if len(scores) < 2:
        return []
    found = statistics.quantiles(scores, n=10, method="inclusive")
    return sorted({float(f"{value:.4g}") for value in found})


@dataclass(frozen=True)
class Study:
    """The pairs of a grid. first, second: labels of ``axis``; score, protocol: what they are scored by.

    ended: how many runs of a label diverged, and failed, by (label, status); waiting: pairs with a run that
    is not over; unscored: pairs with a finished run that has no such score.
    """

    grid: Grid
    axis: str
    first: str
    second: str
    score: str
    protocol: dict[str, Any]
    protocol_id: str
    pairs: list[Pair]
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    waiting: list[str] = field(default_factory=list)
    unscored: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @property
    def scores(self) -> list[float]:
        """Of both runs of every pair, without those that have none."""
        return [s for pair in self.pairs for s in (pair.first, pair.second) if s != FAILED]


def study(grid: Grid, runs: Iterable[Run]) -> Study | None:
    """The pairs of a grid that has some, by the Inception score that most of its runs have; else None."""
    axis = grid.pairs.get("axis", "")
    labels = grid.axes().get(axis, [])
    if len(labels) < 2:
        return None
    by_folder = {run.folder: run for run in runs}
    key = _score(by_folder[p.folder] for p in grid.places if p.folder in by_folder)
    sides: dict[str, dict[str, Run | None]] = {}
    chosen: dict[str, Mapping[str, str]] = {}
    for place in grid.places:
        name = "-".join(label for at, label in place.axes.items() if at != axis) or place.name
        chosen[name] = place.chosen
        sides.setdefault(name, {})[place.axes.get(axis, "")] = by_folder.get(place.folder)
    first, second, *_ = labels
    score, ident = key or ("", "")
    found = Study(grid, axis, first, second, score, _record(by_folder.values(), ident), ident, [])
    for name, side in sides.items():
        _add(found, name, (side.get(first), side.get(second)), chosen[name])
    return found


def _add(found: Study, name: str, both: tuple[Run | None, Run | None], chosen: Mapping[str, str]) -> None:
    """Sort one pair into the study."""
    there = [run for run in both if run is not None and run.status in OVER and not run.problem]
    if len(there) < 2:
        found.waiting.append(name)
        return
    first, second = (_value(run, found.score, found.protocol_id) for run in there)
    if first is None or second is None:
        found.unscored.append(name)
        return
    for run, label in zip(there, (found.first, found.second), strict=True):
        found.ended[label, run.status] += run.status != "finished"
    found.runs.extend(there)
    found.pairs.append(Pair(name, first, second, chosen))


def _value(run: Run, score: str, ident: str) -> float | None:
    """Its last score, ``FAILED`` if it did not finish, None if it finished without one."""
    if run.status != "finished":
        return FAILED
    return next((s.value for s in _last(run) if (s.name, s.protocol_id) == (score, ident)), None)


def _last(run: Run) -> list[Score]:
    return [s for s in run.scores if s.checkpoint == "last" and labels_module.split_score(s.name)[0] == "is"]


def _score(runs: Iterable[Run]) -> tuple[str, str] | None:
    """Name and protocol id of the Inception score that most of the runs have."""
    counts = Counter((s.name, s.protocol_id) for run in runs for s in _last(run))
    return max(counts, key=lambda key: (counts[key], key)) if counts else None


def _record(runs: Iterable[Run], ident: str) -> dict[str, Any]:
    return next((s.protocol for run in runs for s in run.scores if s.protocol_id == ident), {})


def folder_name(found: Study) -> str:
    """The grid's folder, as a table's title tells it."""
    return text.clean(Path(found.grid.folder).name, 60)
