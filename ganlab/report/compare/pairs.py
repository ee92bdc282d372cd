"""Counts successes and wins over pairs of runs that differ in one axis.

WGAN-GP (arXiv:1704.00028) counts the successes of a standard GAN and of WGAN-GP on random architectures
(Tables 2 and 5), and the wins of the two-sided and the one-sided penalty (appendix C). ``grid.json`` defines
the pairs. A run that diverged or failed has no score and succeeds at no threshold. A pair with a run that has
not ended is left out.
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

FAILED = -math.inf  # stands for a missing score: below every threshold
ENDED = ("finished", "diverged", "failed")


class Pair(NamedTuple):
    """The scores of two runs, higher is better; ``FAILED`` for a run without one."""

    name: str
    first: float
    second: float
    choices: Mapping[str, str]


def successes(pairs: Iterable[Pair], threshold: float) -> tuple[int, int, int, int]:
    """How many pairs have only the first, only the second, both, neither score strictly above a threshold."""
    counts = Counter((pair.first > threshold, pair.second > threshold) for pair in pairs)
    return counts[True, False], counts[False, True], counts[True, True], counts[False, False]


def wins(pairs: Iterable[Pair]) -> tuple[int, int, int]:
    """How many pairs have a higher first score, a higher second score, equal scores (or two failures)."""
    counts = Counter((pair.first > pair.second) - (pair.first < pair.second) for pair in pairs)
    return counts[1], counts[-1], counts[0]


def sign_test(first: int, second: int) -> float:
    """Two-sided p of the sign test, ties left out; 1 if there are no wins."""
    from scipy.stats import binomtest

    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def deciles(scores: Sequence[float]) -> list[float]:
    """The nine deciles of the scores, to four digits, without repeats; empty for fewer than two scores."""
    if len(scores) < 2:
        return []
    quantiles = statistics.quantiles(scores, n=10, method="inclusive")
    return sorted({float(f"{value:.4g}") for value in quantiles})


@dataclass(frozen=True)
class Study:
    """The pairs of a grid. first, second: labels of ``axis``. score, protocol: of the pairs' scores.

    failures: number of runs that diverged or failed, by (label, status). unfinished: pairs with a run that
    has not ended. unscored: pairs with a finished run without the score.
    """

    grid: Grid
    axis: str
    first: str
    second: str
    score: str
    protocol: dict[str, Any]
    protocol_id: str
    pairs: list[Pair]
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    unfinished: list[str] = field(default_factory=list)
    unscored: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @property
    def scores(self) -> list[float]:
        """The scores of both runs of every pair, without failures."""
        return [s for pair in self.pairs for s in (pair.first, pair.second) if s != FAILED]


def study(grid: Grid, runs: Iterable[Run]) -> Study | None:
    """The pairs of a grid, by the Inception score that most runs have; None for a grid without pairs."""
    axis = grid.pairs.get("axis", "")
    labels = grid.axes().get(axis, [])
    if len(labels) < 2:
        return None
    by_folder = {run.folder: run for run in runs}
    key = _score(by_folder[p.folder] for p in grid.cells if p.folder in by_folder)
    sides: dict[str, dict[str, Run | None]] = {}
    choices: dict[str, Mapping[str, str]] = {}
    for cell in grid.cells:
        name = "-".join(label for other, label in cell.axes.items() if other != axis) or cell.name
        choices[name] = cell.choices
        sides.setdefault(name, {})[cell.axes.get(axis, "")] = by_folder.get(cell.folder)
    first, second, *_ = labels
    score, ident = key or ("", "")
    result = Study(grid, axis, first, second, score, _record(by_folder.values(), ident), ident, [])
    for name, side in sides.items():
        _add(result, name, (side.get(first), side.get(second)), choices[name])
    return result


def _add(study: Study, name: str, both: tuple[Run | None, Run | None], choices: Mapping[str, str]) -> None:
    """Add one pair to the study."""
    ended = [run for run in both if run is not None and run.status in ENDED and not run.problem]
    if len(ended) < 2:
        study.unfinished.append(name)
        return
    first, second = (_value(run, study.score, study.protocol_id) for run in ended)
    if first is None or second is None:
        study.unscored.append(name)
        return
    for run, label in zip(ended, (study.first, study.second), strict=True):
        study.failures[label, run.status] += run.status != "finished"
    study.runs.extend(ended)
    study.pairs.append(Pair(name, first, second, choices))


def _value(run: Run, score: str, ident: str) -> float | None:
    """A run's last score; ``FAILED`` if it did not finish, None if it finished without a score."""
    if run.status != "finished":
        return FAILED
    return next((s.value for s in _last(run) if (s.name, s.protocol_id) == (score, ident)), None)


def _last(run: Run) -> list[Score]:
    return [s for s in run.scores if s.checkpoint == "last" and labels_module.split_score(s.name)[0] == "is"]


def _score(runs: Iterable[Run]) -> tuple[str, str] | None:
    """Name and protocol id of the Inception score that most runs have."""
    counts = Counter((s.name, s.protocol_id) for run in runs for s in _last(run))
    return max(counts, key=lambda key: (counts[key], key)) if counts else None


def _record(runs: Iterable[Run], ident: str) -> dict[str, Any]:
    return next((s.protocol for run in runs for s in run.scores if s.protocol_id == ident), {})


def folder_name(study: Study) -> str:
    """The name of the grid's folder."""
    return text.clean(Path(study.grid.folder).name, 60)
