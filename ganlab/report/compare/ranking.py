"""The order of the methods at each setting, and how much each hangs on the setting; beside the paper's order.

SNGAN's claim (arXiv 1802.05957, section 4.1) is about both: spectral normalization is among the best, and is
so at most of the settings A-F. The paper prints numbers only for each method's best setting (Table 2).
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ganlab import text
from ganlab.papers import labels, published
from ganlab.report.read.cells import Cell, Group, Key, Section
from ganlab.report.write.table import Column, Field, Table, to_csv

COLUMNS = (
    *("section", "score", "checkpoint", "protocol_id", "method", "setting", "value", "rank", "of", "status"),
)
LEAST = 3  # methods for a rank correlation


@dataclass(frozen=True)
class Standing:
    """One method's means over its finished seeds by setting, and its settings that did not finish (why)."""

    group: Group
    values: Mapping[str, float]
    lost: Mapping[str, str]

    def best(self, better: str) -> str:
        """The setting of its best value."""
        return (min if better == "lower" else max)(self.values, key=lambda s: self.values[s])

    def worst(self, better: str) -> str:
        return (max if better == "lower" else min)(self.values, key=lambda s: self.values[s])


def standings(section: Section, key: Key) -> list[Standing]:
    """Every method that has the score, or lost a cell of it, in the report's order."""
    shown = section.shown(key)
    found = []
    for group in dict.fromkeys(g for g in section.groups if any(g == h for h, _ in shown)):
        values, lost = {}, {}
        for setting in section.settings:
            if (cell := shown.get((group, setting))) is None:
                continue
            if (mean := finished_mean(cell, key)) is not None:
                values[setting] = mean
            else:
                lost[setting] = cell.mark or "no score"
        found.append(Standing(group, values, lost))
    return found


def finished_mean(cell: Cell, key: Key) -> float | None:
    """The mean over finished runs; None where none finished: a diverged run's last score is no result."""
    values = [s.value for run, s in cell.scores(key) if run.status == "finished"]
    return statistics.fmean(values) if values else None


def order(values: Mapping[Group, float], better: str) -> list[Group]:
    """The methods, the best first."""
    return sorted(values, key=lambda g: values[g] if better == "lower" else -values[g])


def papers_values(section: Section, key: Key) -> dict[str, published.Published]:
    """The paper's best of A-F by method, whatever its protocol: good for the order alone.

    A method that we ran has its run's loss, any other the one that the paper's grid has.
    """
    dataset = published.known_dataset(section.dataset, section.dataset_path)[0]
    kind = labels.split_score(key.score)[0]
    losses = {m: "wasserstein" if m == "wgan-gp" else "standard" for m in labels.METHODS}
    losses |= {g.method: published.loss_name(section.of(g)[0].text("loss")) for g in section.groups}
    found = {}
    for method, loss in losses.items():
        rows = published.lookup(dataset, section.net, method, loss, kind, resolution=section.pixels)
        if rows := [r for r in rows if r.hparams == "best of A-F"]:
            found[method] = rows[0]
    return found


def one_per_method(there: Sequence[Standing]) -> dict[str, Standing]:
    """Of a method's variants the one that was run at most settings, the first of equals."""
    found: dict[str, Standing] = {}
    for s in there:
        if s.group.method not in found or len(s.values) > len(found[s.group.method].values):
            found[s.group.method] = s
    return found


def correlation(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float, float]:
    """Kendall's tau-b and its p, Spearman's rho and its p, of two lists of the same methods' values."""
    from scipy.stats import kendalltau, spearmanr  # imported late: it takes a second

    with warnings.catch_warnings():  # of constant values, whose correlation is NaN
        warnings.simplefilter("ignore")
        tau, rho = kendalltau(a, b), spearmanr(a, b)
    return float(tau.statistic), float(tau.pvalue), float(rho.statistic), float(rho.pvalue)


def tables(section: Section, key: Key, scale: str = "") -> list[Table]:
    """Orders by setting and robustness over settings; none for fewer than two methods with the score.

    ``scale``: what is smaller than in the paper, "" at full scale.
    """
    better = labels.better(key.score)
    there = [s for s in standings(section, key) if s.values]
    if not better or len(there) < 2:
        return []
    paper = papers_values(section, key)
    notes = _agreement(there, paper, key, better, scale)
    found = [_orders(section, there, standings(section, key), paper, key, notes)]
    if len(section.settings) > 1:
        found.append(_robustness(section, standings(section, key), key, paper))
    return found


def _orders(
    section: Section,
    there: Sequence[Standing],
    everyone: Sequence[Standing],
    paper: Mapping[str, published.Published],
    key: Key,
    notes: Sequence[str],
) -> Table:
    better, label = labels.better(key.score), labels.score_label(key.score)
    columns, ranked = [], []
    for setting in section.settings:
        values = {s.group: s.values[setting] for s in there if setting in s.values}
        lost = [Field(f"{s.group.label} {s.lost[setting]}", "mark") for s in everyone if setting in s.lost]
        told = [Field(f"{g.label} {labels.number(values[g])}") for g in order(values, better)]
        columns.append(Column(text.clean(setting, 16)))
        ranked.append(told + lost)
    if len(section.settings) > 1:
        best = {s.group: s.values[s.best(better)] for s in there}
        where = {s.group: s.best(better) for s in there}
        columns.append(Column("best of its settings"))
        ranked.append(
            [Field(f"{g.label} {labels.number(best[g])} ({where[g]})", "lead") for g in order(best, better)]
        )
    if paper:
        theirs = {Group(method, ""): row.value for method, row in paper.items()}
        columns.append(Column("paper, best of A-F"))
        ranked.append(
            [Field(f"{g.label} {labels.number(theirs[g])}", "paper") for g in order(theirs, better)]
        )
    depth = max(map(len, ranked))
    rows = [
        [Field(str(i + 1)), *(column[i] if i < len(column) else Field("") for column in ranked)]
        for i in range(depth)
    ]
    title = f"Order of methods: {label}, the best first"
    return Table(title, [Column("", True), *columns], rows, notes)


def _agreement(
    there: Sequence[Standing],
    paper: Mapping[str, published.Published],
    key: Key,
    better: str,
    scale: str,
) -> list[str]:
    """Whether the order is the paper's: rank correlations, with what they are worth."""
    if not paper:
        return ["The paper prints no best-of-A-F value for these methods on this dataset and net."]
    kind, suffix = labels.split_score(key.score)
    both = [s for method, s in one_per_method(there).items() if method in paper]
    shown = [row for method, row in paper.items() if any(s.group.method == method for s in both)]
    tables = ", ".join(dict.fromkeys(row.where for row in shown or paper.values()))
    notes = [
        f"Paper: {labels.score_label(kind)} of {tables}, each method's best of A-F. "
        + (
            f"Ours is {key.score}, another network's score: only the orders can be compared. "
            if suffix
            else ""
        )
        + (f"Ours is at reduced scale: {scale}." if scale else "")
    ]
    if len(both) < LEAST:
        return [*notes, f"{len(both)} methods in common with the paper: no rank correlation under {LEAST}."]
    theirs = [paper[s.group.method].value for s in both]
    ours = [s.values[s.best(better)] for s in both]
    tau, tau_p, rho, rho_p = correlation(ours, theirs)
    reduced = " (reduced scale)" if scale else ""
    notes.append(
        f"Agreement with the paper's order{reduced}, {len(both)} methods, ours by best setting: "
        f"Kendall tau {tau:+.2f} (p {tau_p:.2g}), Spearman rho {rho:+.2f} (p {rho_p:.2g}); "
        "1 is the same order, 0 none, -1 the reverse."
    )
    by_setting = []
    for setting in sorted({x for s in both for x in s.values}, key=labels.setting_rank):
        here = [s for s in both if setting in s.values]
        if len(here) >= LEAST:
            tau = correlation([s.values[setting] for s in here], [paper[s.group.method].value for s in here])[
                0
            ]
            by_setting.append(f"{text.clean(setting, 16)} {tau:+.2f} (n {len(here)})")
    if len(by_setting) > 1:
        notes.append(
            f"Kendall tau at single settings, against the paper's best-of-A-F: {', '.join(by_setting)}."
        )
    return notes


def _robustness(
    section: Section,
    everyone: Sequence[Standing],
    key: Key,
    paper: Mapping[str, published.Published],
) -> Table:
    """Best, median and worst over the settings, and the share of settings that came to an end."""
    better, label = labels.better(key.score), labels.score_label(key.score)
    scored = [s for s in everyone if s.values]
    by_worst = sorted(scored, key=lambda s: (len(s.lost), _toward(s.values[s.worst(better)], better)))
    firsts = {s.group: 0 for s in everyone}
    for setting in section.settings:
        values = {s.group: s.values[setting] for s in scored if setting in s.values}
        if len(values) > 1:
            firsts[order(values, better)[0]] += 1
    both = {m: s for m, s in one_per_method(scored).items() if m in paper}
    ours = order({s.group: s.values[s.best(better)] for s in both.values()}, better)
    theirs = order({s.group: paper[m].value for m, s in both.items()}, better)
    rows = []
    for s in [*by_worst, *(s for s in everyone if not s.values)]:
        ended = f"{len(s.values)} of {len(s.values) + len(s.lost)}"
        lost = ", ".join(f"{text.clean(k, 16)} {mark}" for k, mark in s.lost.items())
        told = ["–"] * 4
        if s.values:
            high, low = s.best(better), s.worst(better)
            middle = statistics.median(s.values.values())
            top, bottom = s.values[high], s.values[low]
            ratio = max(top, bottom) / min(top, bottom) if min(top, bottom) > 0 else None
            told = [
                f"{labels.number(top)} ({text.clean(high, 16)})",
                labels.number(middle),
                f"{labels.number(bottom)} ({text.clean(low, 16)})",
                "–" if ratio is None else f"{ratio:.2f}",
            ]
        place = f"{ours.index(s.group) + 1} / {theirs.index(s.group) + 1}" if s.group in ours else "–"
        words = [s.group.label, *told, str(firsts[s.group]), place, ended]
        rows.append([*map(Field, words), Field(lost, "mark")])
    heads = (
        "best (setting)",
        "median",
        "worst (setting)",
        "spread",
        "first at",
        "place / paper's",
        "finished",
    )
    columns = [Column("method"), *(Column(h, True) for h in heads), Column("not finished")]
    notes = [
        "Sorted by settings not finished, then by the worst one: a robust method is high here and has a "
        "small spread (worst and best as a ratio). first at: settings at which it leads others. place / "
        "paper's: by the best setting, among the methods that both have. Settings a method was not run at "
        "are not counted."
    ]
    return Table(f"Robustness over settings: {label}", columns, rows, notes)


def _toward(value: float, better: str) -> float:
    return value if better == "lower" else -value


def csv_of(sections: Sequence[Section]) -> str:
    """``ranking.csv``: each method's place at each setting, for scores whose better direction is known."""
    rows: list[list[object]] = []
    for section in sections:
        for key in section.measured("last"):
            better = labels.better(key.score)
            if not better:
                continue
            everyone = standings(section, key)
            for setting in section.settings:
                values = {s.group: s.values[setting] for s in everyone if setting in s.values}
                ranks = {g: i for i, g in enumerate(order(values, better), 1)}
                for s in everyone:
                    if setting in s.values:
                        place: list[object] = [values[s.group], ranks[s.group], len(ranks), "finished"]
                    elif setting in s.lost:
                        place = [None, None, len(ranks), s.lost[setting]]
                    else:
                        continue
                    rows.append([section.title, *key, s.group.label, setting, *place])
    return to_csv(COLUMNS, rows)
