"""Seed noise: Welch's t interval for the difference between two methods, with the numbers of seeds.

B. L. Welch, "The generalization of Student's problem when several different population variances are
involved", Biometrika 34, 1947; computed by scipy. One seed has no spread and allows no statement.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from ganlab import text
from ganlab.papers import labels
from ganlab.report.read.cells import Cell, Group, Key, Section, ranked_keys
from ganlab.report.write.table import Column, Field, Table
from ganlab.tables import to_csv

LEVEL = 0.95
COLUMNS = (
    *("section", "score", "checkpoint", "protocol_id", "setting", "method_a", "method_b"),
    *("seeds_a", "seeds_b", "mean_a", "mean_b", "difference", "low", "high", "p", "statement"),
)


@dataclass(frozen=True)
class Difference:
    """Method ``a`` minus method ``b`` at one setting; the interval is None where no statement is possible."""

    setting: str
    a: str
    b: str
    means: tuple[float, float]
    seeds: tuple[int, int]
    interval: tuple[float, float] | None
    p: float | None
    statement: str

    @property
    def value(self) -> float:
        return self.means[0] - self.means[1]


def by_seed(cell: Cell, key: Key) -> list[float]:
    """Scores of a cell's finished runs, one per seed: repeated runs of a seed are averaged."""
    scores: dict[object, list[float]] = {}
    for run, score in cell.scores(key):
        if run.status == "finished":
            scores.setdefault(run.seeds, []).append(score.value)
    return [statistics.fmean(values) for values in scores.values()]


def compare(setting: str, a: tuple[str, Sequence[float]], b: tuple[str, Sequence[float]]) -> Difference:
    """Welch's two-sided interval for the difference of two means. Values: one per seed, at least one each."""
    (name_a, values_a), (name_b, values_b) = a, b
    means = (statistics.fmean(values_a), statistics.fmean(values_b))
    seeds = (len(values_a), len(values_b))
    interval, p = None, None
    if min(seeds) < 2:
        single = [name for name, n in zip((name_a, name_b), seeds, strict=True) if n < 2]
        seeds_text = "one seed each" if len(single) == 2 else f"one seed of {single[0]}"
        statement = f"{seeds_text}: no statement"
    elif all(len(set(values)) == 1 for values in (values_a, values_b)):
        statement = "no spread between the seeds: no statement"
    else:
        from scipy.stats import ttest_ind  # imported late: it takes a second

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # one side may have no spread
            test = ttest_ind(values_a, values_b, equal_var=False)
        low, high = test.confidence_interval(LEVEL)
        interval, p = (float(low), float(high)), float(test.pvalue)
        within = interval[0] <= 0 <= interval[1]
        statement = "within seed noise" if within else "more than seed noise"
        statement += f" (n {seeds[0]} and {seeds[1]})"
    return Difference(setting, name_a, name_b, means, seeds, interval, p, statement)


def differences(section: Section, key: Key) -> Iterator[Difference]:
    """All pairs of methods that finished at a setting, in the report's order."""
    for setting in section.settings:
        scored = _scored(section, key, setting)
        for a, b in combinations(scored, 2):
            yield compare(setting, (a.label, scored[a]), (b.label, scored[b]))


def _scored(section: Section, key: Key, setting: str) -> dict[Group, list[float]]:
    cells = {g: section.cells[g, setting] for g in section.groups if (g, setting) in section.cells}
    return {g: values for g, cell in cells.items() if (values := by_seed(cell, key))}


def table(section: Section, key: Key) -> Table | None:
    """A row per method, a column per setting: its mean minus the best method's, ± Welch's interval.

    None if no setting has two methods that finished; no rows if the seeds allow no statement at all.
    """
    to_best: dict[tuple[Group, str], Difference | None] = {}  # None: the best of its setting
    for setting in section.settings:
        scored = _scored(section, key, setting)
        if len(scored) < 2:
            continue
        leader = min(scored, key=lambda g: labels.sign(key.score) * statistics.fmean(scored[g]))
        for g, values in scored.items():
            pair = ((g.label, values), (leader.label, scored[leader]))
            to_best[g, setting] = None if g == leader else compare(setting, *pair)
    if not to_best:
        return None
    pairs = [d for d in to_best.values() if d is not None]
    undecided = sum(d.interval is None for d in pairs)
    label = labels.score_label(key.score)
    columns = [Column("method"), *(Column(text.clean(s, 16), True) for s in section.settings)]
    rows = []
    for group in section.groups:
        if any(g == group for g, _ in to_best):
            fields = [_field(to_best, group, setting) for setting in section.settings]
            rows.append([Field(group.label), *fields])
    notes = []
    if undecided:
        which = f"All {undecided}" if undecided == len(pairs) else f"{undecided} of {len(pairs)}"
        notes.append(
            f"{which} comparisons of {label} have one seed, or no spread, on one side: they allow no "
            "statement about seed noise, and the difference may be chance."
        )
    if undecided < len(pairs):
        notes.append(
            "Each entry is the method's mean minus that of the best method at the setting, ± half the width "
            f"of Welch's {LEVEL:.0%} confidence interval over seeds (finished runs, one value per seed). "
            "Bold: the interval excludes 0, so the difference is more than seed noise. The intervals are not "
            f"corrected for {len(pairs) - undecided} comparisons; with 2 or 3 seeds they are wide, and one "
            "that includes 0 does not show that methods are equal. All pairs, with p and n: differences.csv."
        )
    title = f"Seed noise: {label}, each method minus the best method at the setting"
    return Table(title, columns, rows if undecided < len(pairs) else [], notes)


def _field(to_best: Mapping[tuple[Group, str], Difference | None], group: Group, setting: str) -> Field:
    """``+6.02 ± 4.13 (n 2, 3)``; ``best``; ``+5.10, one seed``."""
    if (group, setting) not in to_best:
        return Field("–")
    d = to_best[group, setting]
    if d is None:
        return Field("best")
    size = max(map(abs, d.means))
    difference = labels.signed(d.value, like=size)
    if d.interval is None:
        return Field(f"{difference}, {'one seed' if min(d.seeds) < 2 else 'no spread'}")
    half = (d.interval[1] - d.interval[0]) / 2
    beyond = not d.interval[0] <= 0 <= d.interval[1]
    words = f"{difference} ± {labels.number(half, like=size)} (n {d.seeds[0]}, {d.seeds[1]})"
    return Field(words, "lead" if beyond else "")


def csv_of(sections: Sequence[Section]) -> str:
    """``differences.csv``: every pair at every setting, for scores with a known direction."""
    rows: list[list[object]] = []
    for section, key in ranked_keys(sections):
        for d in differences(section, key):
            low, high = d.interval or (None, None)
            values: list[object] = [d.setting, d.a, d.b, *d.seeds, *d.means, d.value, low, high, d.p]
            rows.append([section.title, *key, *values, d.statement])
    return to_csv(COLUMNS, rows)
