"""Whether two methods differ by more than their seeds do: Welch's t interval, said with the numbers of seeds.

B. L. Welch, "The generalization of Student's problem when several different population variances are
involved", Biometrika 34, 1947; computed by scipy. One seed has no spread, so it allows no statement.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from ganlab import text
from ganlab.papers import labels
from ganlab.report.read.cells import Cell, Group, Key, Section
from ganlab.report.write.table import Column, Field, Table, to_csv

LEVEL = 0.95
COLUMNS = (
    *(
        "section",
        "score",
        "checkpoint",
        "protocol_id",
        "setting",
        "method_a",
        "method_b",
        "seeds_a",
        "seeds_b",
    ),
    *("mean_a", "mean_b", "difference", "low", "high", "p", "statement"),
)


@dataclass(frozen=True)
class Difference:
    """Method ``a`` less method ``b`` at one setting; the interval is None where no statement is possible."""

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
    """A cell's scores of its finished runs, one per seed: a seed run twice is no second seed."""
    found: dict[object, list[float]] = {}
    for run, score in cell.scores(key):
        if run.status == "finished":
            found.setdefault(run.number("seed"), []).append(score.value)
    return [statistics.fmean(values) for values in found.values()]


def compare(setting: str, a: tuple[str, Sequence[float]], b: tuple[str, Sequence[float]]) -> Difference:
    """Welch's two-sided interval for the difference of two means, one value per seed. Each needs a value."""
    (name_a, values_a), (name_b, values_b) = a, b
    means = (statistics.fmean(values_a), statistics.fmean(values_b))
    seeds = (len(values_a), len(values_b))
    interval, p = None, None
    if min(seeds) < 2:
        single = [name for name, n in zip((name_a, name_b), seeds, strict=True) if n < 2]
        told = "one seed each" if len(single) == 2 else f"one seed of {single[0]}"
        statement = f"{told}: no statement"
    elif all(len(set(values)) == 1 for values in (values_a, values_b)):
        statement = "no spread between the seeds: no statement"
    else:
        from scipy.stats import ttest_ind  # imported late: it takes a second

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # one side may have no spread: its share is 0
            found = ttest_ind(values_a, values_b, equal_var=False)
        low, high = found.confidence_interval(LEVEL)
        interval, p = (float(low), float(high)), float(found.pvalue)
        within = interval[0] <= 0 <= interval[1]
        statement = "within seed noise" if within else "more than seed noise"
        statement += f" (n {seeds[0]} and {seeds[1]})"
    return Difference(setting, name_a, name_b, means, seeds, interval, p, statement)


def differences(section: Section, key: Key) -> Iterator[Difference]:
    """All pairs of methods at each setting that both finished, in the report's order."""
    for setting in section.settings:
        scored = _scored(section, key, setting)
        for a, b in combinations(scored, 2):
            yield compare(setting, (a.label, scored[a]), (b.label, scored[b]))


def _scored(section: Section, key: Key, setting: str) -> dict[Group, list[float]]:
    there = {g: section.cells[g, setting] for g in section.groups if (g, setting) in section.cells}
    return {g: values for g, cell in there.items() if (values := by_seed(cell, key))}


def table(section: Section, key: Key) -> Table | None:
    """A row per method, a column per setting: its mean less the best method's there, ± Welch's interval.

    None where no setting has two methods that finished; no rows where the seeds allow no statement at all.
    """
    found: dict[tuple[Group, str], Difference | None] = {}  # None: the best one of its setting
    for setting in section.settings:
        scored = _scored(section, key, setting)
        if len(scored) < 2:
            continue
        sign = 1 if labels.better(key.score) == "lower" else -1
        leader = min(scored, key=lambda g: sign * statistics.fmean(scored[g]))
        for g, values in scored.items():
            pair = ((g.label, values), (leader.label, scored[leader]))
            found[g, setting] = None if g == leader else compare(setting, *pair)
    if not found:
        return None
    pairs = [d for d in found.values() if d is not None]
    silent = sum(d.interval is None for d in pairs)
    label = labels.score_label(key.score)
    columns = [Column("method"), *(Column(text.clean(s, 16), True) for s in section.settings)]
    rows = []
    for group in section.groups:
        if any(g == group for g, _ in found):
            fields = [_field(found, group, setting) for setting in section.settings]
            rows.append([Field(group.label), *fields])
    notes = []
    if silent:
        which = f"All {silent}" if silent == len(pairs) else f"{silent} of {len(pairs)}"
        notes.append(
            f"{which} comparisons of {label} have one seed, or no spread, on a side: no statement about seed "
            "noise is possible there, and any difference may be chance."
        )
    if silent < len(pairs):
        notes.append(
            "A mean less that of the best one at the setting, ± half of Welch's t interval over seeds "
            "(one value per seed, finished runs). Bold: more than seed noise, the interval leaves 0 out. "
            f"Each interval is at {LEVEL:.0%} for itself, not corrected for the {len(pairs) - silent} "
            "comparisons; with 2 or 3 seeds it is wide, and within it does not mean equal. All pairs, with p "
            "and n: differences.csv."
        )
    title = f"Seed noise: {label}, each method less the best one of its setting"
    return Table(title, columns, rows if silent < len(pairs) else [], notes)


def _field(found: Mapping[tuple[Group, str], Difference | None], group: Group, setting: str) -> Field:
    """``+6.02 ± 4.13 (n 2, 3)``; ``best``; ``+5.10, one seed``."""
    if (group, setting) not in found:
        return Field("–")
    d = found[group, setting]
    if d is None:
        return Field("best")
    size = max(map(abs, d.means))
    told = labels.signed(d.value, like=size)
    if d.interval is None:
        return Field(f"{told}, {'one seed' if min(d.seeds) < 2 else 'no spread'}")
    half = (d.interval[1] - d.interval[0]) / 2
    beyond = not d.interval[0] <= 0 <= d.interval[1]
    return Field(
        f"{told} ± {labels.number(half, like=size)} (n {d.seeds[0]}, {d.seeds[1]})", "lead" if beyond else ""
    )


def csv_of(sections: Sequence[Section]) -> str:
    """``differences.csv``: every pair at every setting, of all scores whose better direction is known."""
    rows: list[list[object]] = []
    for section in sections:
        for key in section.measured("last"):
            if not labels.better(key.score):
                continue
            for d in differences(section, key):
                low, high = d.interval or (None, None)
                found: list[object] = [d.setting, d.a, d.b, *d.seeds, *d.means, d.value, low, high, d.p]
                rows.append([section.title, *key, *found, d.statement])
    return to_csv(COLUMNS, rows)
