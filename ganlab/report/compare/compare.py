"""Which published rows are comparable with a figure's scores, and why others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ganlab import text
from ganlab.papers import labels, published
from ganlab.report.compare import sidebyside
from ganlab.report.read.cells import Group, Key, Section, groups
from ganlab.report.write.table import Column, Field, Table


@dataclass(frozen=True)
class PublishedMatches:
    """For one score under one protocol: the like-for-like rows, and the reasons against the others."""

    rows: dict[Group, published.Published]
    reasons: dict[Group, list[str]]
    note: str  # sources and caveats, as a sentence for the reader


def match_published(section: Section, key: Key) -> PublishedMatches:
    """Look up every method of the section; a row matches only if its score is like for like."""
    dataset, unlike = section.published_dataset
    kind, record = labels.split_score(key.score)[0], section.protocol(key)
    rows, reasons = {}, {}
    for group in groups(section.cells_for(key)):
        run = section.first_run(group)
        candidates = published.lookup(
            *(dataset, section.net, section.published_method(group), section.loss(group), kind, run.scale[0]),
            resolution=section.pixels,
            head=run.head,
            wide=run.wide,
            labels=run.labels,
        )
        if candidates:  # the first that is like for like, else the first
            row = min(candidates, key=lambda p: bool(published.differences(p, key.score, record)))
            reasons[group] = published.differences(row, key.score, record) + ([unlike] if unlike else [])
            if not reasons[group]:
                rows[group] = row
    return PublishedMatches(rows, reasons, _note(section, key, rows, reasons))


def _note(
    section: Section,
    key: Key,
    rows: Mapping[Group, published.Published],
    reasons: Mapping[Group, Sequence[str]],
) -> str:
    if not reasons:
        return ""
    unmatched = [group for group in reasons if group not in rows]
    differences = "; ".join(dict.fromkeys(r for group in unmatched for r in reasons[group]))
    parts = []
    if rows:
        parts.append(f"Published: {'; '.join(dict.fromkeys(_source(p) for p in rows.values()))}.")
    if unmatched:
        names = ", ".join(g.label for g in unmatched) if rows else labels.score_label(key.score)
        parts.append(f"No comparable published value for {names}: {differences}.")
    if unstated := {published.unstated(p) for p in rows.values()} - {""}:
        split = text.clean(section.protocol(key).get("real_split", "not recorded"), 20)
        details = "; ".join(sorted(unstated))
        ours = f" (ours: {split})" if "split of" in details else ""
        parts.append(f"The source does not state {details}{ours}.")
    if any(p.recalled for p in rows.values()):
        parts.append("Values recalled from memory are not verified.")
    return " ".join(parts)


def _source(row: published.Published) -> str:
    spread = f", ± over {row.std_over}" if row.std is not None and row.std_over else ""
    return f"{row.where} ({row.conditions}{spread})"


def table(section: Section, matches: Mapping[Key, PublishedMatches]) -> Table | None:
    """Published values and ours (best setting) for all methods with a like-for-like row; None without one."""
    keys = [key for key, match in matches.items() if match.rows]
    rows = []
    for group in section.groups:
        ours = {k: sidebyside.best_value(section, group, k) for k in keys if group in matches[k].rows}
        if any(ours.values()):
            row = [Field(group.label)]
            for key in keys:
                paper = matches[key].rows.get(group)
                row.append(Field(labels.spread(paper.value, paper.std) if paper else "–", "paper"))
                row.append(Field(ours.get(key) or sidebyside.best_value(section, group, key) or "–"))
            steps, width = section.first_run(group).scale
            wide = f", width {width:g}" if width not in (None, 1) else ""
            trained = f"{labels.count(steps)} updates{wide}; {', '.join(section.settings_of(group))}"
            rows.append([*row, Field(trained)])
    if not rows:
        return None
    several = len({key.score for key in keys}) < len(keys)
    names = [labels.score_label(k.score) + (f" [{k.protocol_id[:8]}]" if several else "") for k in keys]
    columns = [Column(f"{name}, {who}", True) for name in names for who in ("paper", "ours")]
    notes = [
        f"{name}: ours is our best setting at the {key.checkpoint} checkpoint, protocol "
        f"{labels.protocol_name(section.protocol(key), key.protocol_id)}."
        for name, key in zip(names, keys, strict=True)
    ]
    return Table("", [Column("method"), *columns, Column("ours: updates; settings")], rows, notes)
