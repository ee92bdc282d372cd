"""Ranking of methods at each setting, their robustness over settings, and agreement with the paper's ranking.

SNGAN (arXiv 1802.05957, section 4.1) claims that spectral normalization is among the best methods, and so at
most of the settings A-F. The paper has numbers only for each method's best setting (Table 2).
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ganlab import text
from ganlab.papers import labels, published
from ganlab.report.read.cells import Cell, Group, Key, Section, ranked_keys
from ganlab.report.write.table import Column, Field, Table
from ganlab.tables import to_csv

COLUMNS = (
    *("section", "score", "checkpoint", "protocol_id", "method", "setting", "value", "rank", "of", "status"),
)
MIN_METHODS = 3  # methods for a rank correlation


@dataclass(frozen=True)
class Standing:
    """One method's means over finished seeds by setting. unfinished: setting -> why it has no mean."""

    group: Group
    values: Mapping[str, float]
    unfinished: Mapping[str, str]

    def best(self, sign: int) -> str:
        """The setting with the best value. ``sign``: see ``labels.sign``."""
        return min(self.values, key=lambda s: sign * self.values[s])

    def worst(self, sign: int) -> str:
        return max(self.values, key=lambda s: sign * self.values[s])


def standings(section: Section, key: Key) -> list[Standing]:
    """Every method with the score or with an unfinished cell, in the report's order."""
    cells = section.cells_for(key)
    by_group = []
    for group in dict.fromkeys(g for g in section.groups if any(g == h for h, _ in cells)):
        values, unfinished = {}, {}
        for setting in section.settings:
            if (cell := cells.get((group, setting))) is None:
                continue
            if (mean := finished_mean(cell, key)) is not None:
                values[setting] = mean
            else:
                unfinished[setting] = cell.mark or "no score"
        by_group.append(Standing(group, values, unfinished))
    return by_group


def finished_mean(cell: Cell, key: Key) -> float | None:
    """The mean over finished runs; None without one: a diverged run's last score doesn't count."""
    values = [s.value for run, s in cell.scores(key) if run.status == "finished"]
    return statistics.fmean(values) if values else None


def order(values: Mapping[Group, float], sign: int) -> list[Group]:
    """The methods, best first."""
    return sorted(values, key=lambda g: sign * values[g])


def at_setting(standings: Iterable[Standing], setting: str) -> dict[Group, float]:
    """The values of the methods that have one at a setting."""
    return {s.group: s.values[setting] for s in standings if setting in s.values}


def paper_values(section: Section, key: Key) -> dict[str, published.Published]:
    """The paper's best of A-F by method, under any protocol: valid only for ranking.

    Methods that we ran are looked up with their run's loss, others with the loss of the paper's grid.
    """
    dataset = section.published_dataset[0]
    kind = labels.split_score(key.score)[0]
    losses = {m: "wasserstein" if m == "wgan-gp" else "standard" for m in labels.METHODS}
    losses |= {g.method: section.loss(g) for g in section.groups}
    by_method = {}
    for method, loss in losses.items():
        rows = published.lookup(dataset, section.net, method, loss, kind, resolution=section.pixels)
        if rows := [r for r in rows if r.hparams == "best of A-F"]:
            by_method[method] = rows[0]
    return by_method


def one_per_method(all_standings: Sequence[Standing]) -> dict[str, Standing]:
    """The variant of each method with the most settings; the first of equals."""
    by_method: dict[str, Standing] = {}
    for s in all_standings:
        if s.group.method not in by_method or len(s.values) > len(by_method[s.group.method].values):
            by_method[s.group.method] = s
    return by_method


def correlation(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float, float]:
    """Kendall's tau-b and its p, Spearman's rho and its p, for values of the same methods in two lists."""
    from scipy.stats import kendalltau, spearmanr  # imported late: it takes a second

    with warnings.catch_warnings():  # constant values have no correlation (NaN)
        warnings.simplefilter("ignore")
        tau, rho = kendalltau(a, b), spearmanr(a, b)
    return float(tau.statistic), float(tau.pvalue), float(rho.statistic), float(rho.pvalue)


def tables(section: Section, key: Key, scale: str = "") -> list[Table]:
    """Ranking by setting and robustness over settings; none with fewer than two scored methods.

    ``scale``: how the runs are smaller than the paper's, "" at full scale.
    """
    everyone = standings(section, key)
    scored = [s for s in everyone if s.values]
    if not labels.better(key.score) or len(scored) < 2:
        return []
    paper = paper_values(section, key)
    notes = _agreement(scored, paper, key, scale)
    result = [_orders(section, scored, everyone, paper, key, notes)]
    if len(section.settings) > 1:
        result.append(_robustness(section, everyone, key, paper))
    return result


def _orders(
    section: Section,
    scored: Sequence[Standing],
    everyone: Sequence[Standing],
    paper: Mapping[str, published.Published],
    key: Key,
    notes: Sequence[str],
) -> Table:
    sign, label = labels.sign(key.score), labels.score_label(key.score)
    columns, ranked = [], []
    for setting in section.settings:
        values = at_setting(scored, setting)
        left = [s for s in everyone if setting in s.unfinished]
        unfinished = [Field(f"{s.group.label} {s.unfinished[setting]}", "mark") for s in left]
        finished = [Field(f"{g.label} {labels.number(values[g])}") for g in order(values, sign)]
        columns.append(Column(text.clean(setting, 16)))
        ranked.append(finished + unfinished)
    if len(section.settings) > 1:
        at = {s.group: s.best(sign) for s in scored}
        best = {s.group: s.values[at[s.group]] for s in scored}
        words = [f"{g.label} {labels.number(best[g])} ({at[g]})" for g in order(best, sign)]
        columns.append(Column("best setting"))
        ranked.append([Field(w, "lead") for w in words])
    if paper:
        theirs = {Group(method, ""): row.value for method, row in paper.items()}
        words = [f"{g.label} {labels.number(theirs[g])}" for g in order(theirs, sign)]
        columns.append(Column("paper, best of A-F"))
        ranked.append([Field(w, "paper") for w in words])
    lines = zip_longest(*ranked, fillvalue=Field(""))
    rows = [[Field(str(place)), *line] for place, line in enumerate(lines, 1)]
    title = f"Ranking of methods: {label}, best first"
    return Table(title, [Column("", True), *columns], rows, notes)


def _agreement(
    scored: Sequence[Standing],
    paper: Mapping[str, published.Published],
    key: Key,
    scale: str,
) -> list[str]:
    """Notes on agreement with the paper's ranking: rank correlations and their caveats."""
    if not paper:
        return ["The paper has no best-of-A-F value for these methods on this dataset and net."]
    kind, suffix = labels.split_score(key.score)
    both = [s for method, s in one_per_method(scored).items() if method in paper]
    common = [row for method, row in paper.items() if any(s.group.method == method for s in both)]
    tables = ", ".join(dict.fromkeys(row.where for row in common or paper.values()))
    network = f"Our {key.score} uses another network's features, so only rankings can be compared. "
    reduced_scale = f"Our runs are at reduced scale: {scale}." if scale else ""
    notes = [
        f"Paper: {labels.score_label(kind)} from {tables}, best of A-F for each method. "
        f"{network * bool(suffix)}{reduced_scale}"
    ]
    if len(both) < MIN_METHODS:
        few = f"{len(both)} method{'s' * (len(both) != 1)} in common with the paper"
        return [*notes, f"{few}; a rank correlation needs at least {MIN_METHODS}."]
    theirs = [paper[s.group.method].value for s in both]
    ours = [s.values[s.best(labels.sign(key.score))] for s in both]
    tau, tau_p, rho, rho_p = correlation(ours, theirs)
    reduced = " (reduced scale)" if scale else ""
    notes.append(
        f"Agreement with the paper's ranking{reduced}, {len(both)} methods, each at its best setting: "
        f"Kendall tau {tau:+.2f} (p {tau_p:.2g}), Spearman rho {rho:+.2f} (p {rho_p:.2g}); "
        "1 is the same order, 0 no relation, -1 the reverse."
    )
    by_setting = []
    for setting in sorted({x for s in both for x in s.values}, key=labels.setting_rank):
        at_setting = [s for s in both if setting in s.values]
        if len(at_setting) >= MIN_METHODS:
            own = [s.values[setting] for s in at_setting]
            tau = correlation(own, [paper[s.group.method].value for s in at_setting])[0]
            by_setting.append(f"{text.clean(setting, 16)} {tau:+.2f} (n {len(at_setting)})")
    if len(by_setting) > 1:
        listed = ", ".join(by_setting)
        notes.append(f"Kendall tau at each setting, against the paper's best-of-A-F: {listed}.")
    return notes


def _robustness(
    section: Section,
    everyone: Sequence[Standing],
    key: Key,
    paper: Mapping[str, published.Published],
) -> Table:
    """Best, median and worst over settings, and how many settings finished."""
    sign, label = labels.sign(key.score), labels.score_label(key.score)
    scored = [s for s in everyone if s.values]
    by_worst = sorted(scored, key=lambda s: (len(s.unfinished), sign * s.values[s.worst(sign)]))
    firsts = {s.group: 0 for s in everyone}
    for setting in section.settings:
        values = at_setting(scored, setting)
        if len(values) > 1:
            firsts[order(values, sign)[0]] += 1
    both = {m: s for m, s in one_per_method(scored).items() if m in paper}
    ours = order({s.group: s.values[s.best(sign)] for s in both.values()}, sign)
    theirs = order({s.group: paper[m].value for m, s in both.items()}, sign)
    rows = []
    for s in [*by_worst, *(s for s in everyone if not s.values)]:
        finished = f"{len(s.values)} of {len(s.values) + len(s.unfinished)}"
        unfinished = ", ".join(f"{text.clean(k, 16)} {mark}" for k, mark in s.unfinished.items())
        spread = ["–"] * 4
        if s.values:
            best, worst = s.best(sign), s.worst(sign)
            median = statistics.median(s.values.values())
            high, low = s.values[best], s.values[worst]
            ratio = max(high, low) / min(high, low) if min(high, low) > 0 else None
            spread = [
                f"{labels.number(high)} ({text.clean(best, 16)})",
                labels.number(median),
                f"{labels.number(low)} ({text.clean(worst, 16)})",
                "–" if ratio is None else f"{ratio:.2f}",
            ]
        rank = f"{ours.index(s.group) + 1} / {theirs.index(s.group) + 1}" if s.group in ours else "–"
        texts = [s.group.label, *spread, str(firsts[s.group]), rank, finished]
        rows.append([*map(Field, texts), Field(unfinished, "mark")])
    heads = ("best (setting)", "median", "worst (setting)", "spread", "first at", "rank / paper's")
    columns = [Column("method"), *(Column(h, True) for h in (*heads, "finished")), Column("not finished")]
    notes = [
        "Sorted by the number of unfinished settings, then by the worst score: a robust method is near the "
        "top and has a small spread (the ratio between best and worst, 1 if equal). first at: number of "
        "settings at which the method ranks first. rank / paper's: by best setting, among the methods that "
        "both have. Settings at which a method was not run are not counted."
    ]
    return Table(f"Robustness over settings: {label}", columns, rows, notes)


def csv_of(sections: Sequence[Section]) -> str:
    """``ranking.csv``: each method's rank at each setting, for scores with a known direction."""
    rows: list[list[object]] = []
    for section, key in ranked_keys(sections):
        everyone = standings(section, key)
        for setting in section.settings:
            values = at_setting(everyone, setting)
            ranks = {g: i for i, g in enumerate(order(values, labels.sign(key.score)), 1)}
            for s in everyone:
                head = [section.title, *key, s.group.label, setting]
                if setting in s.values:
                    rows.append([*head, values[s.group], ranks[s.group], len(ranks), "finished"])
                elif setting in s.unfinished:
                    rows.append([*head, None, None, len(ranks), s.unfinished[setting]])
    return to_csv(COLUMNS, rows)
