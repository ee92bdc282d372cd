"""Which published rows are comparable with a figure's scores, and why others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ganlab import text
from ganlab.papers import labels, published
from ganlab.report.read.cells import Cell, Group, Key, Section, groups
from ganlab.report.read.collect import Run


@dataclass(frozen=True)
class PublishedMatches:
    """For one score under one protocol: the like-for-like rows, and the reasons against the others."""

    rows: dict[Group, published.Published]
    reasons: dict[Group, list[str]]
    note: str  # sources and caveats, as a sentence for the reader


@dataclass(frozen=True)
class Comparison:
    """A table of published and our values: one row per method, a pair of columns per score."""

    scores: list[str]
    rows: list[tuple[str, list[tuple[str, str]], str]]  # method, (paper, ours) per score, training
    notes: list[str]


def match_published(section: Section, key: Key) -> PublishedMatches:
    """Look up every method of the section; a row matches only if its score is like for like."""
    dataset, unlike = published.canonical_dataset(section.dataset, section.dataset_path)
    kind, record = labels.split_score(key.score)[0], section.protocol(key)
    rows, reasons = {}, {}
    for group in groups(section.cells_for(key)):
        run = _first(section, group)
        loss = published.loss_name(run.text("loss"))
        method = published.canonical_method(group.method, loss, run.config)
        candidates = published.lookup(
            *(dataset, section.net, method, loss, kind, run.scale[0]),
            resolution=section.pixels,
            head=run.head,
            wide=run.wide,
        )
        if candidates:  # the first that is like for like, else the first
            row = min(candidates, key=lambda p: bool(published.differences(p, key.score, record)))
            reasons[group] = published.differences(row, key.score, record) + ([unlike] if unlike else [])
            if not reasons[group]:
                rows[group] = row
    return PublishedMatches(rows, reasons, _note(section, key, rows, reasons))


def _first(section: Section, group: Group) -> Run:
    return next(cell.runs[0] for (g, _), cell in section.cells.items() if g == group)


def _note(
    section: Section,
    key: Key,
    rows: Mapping[Group, published.Published],
    reasons: Mapping[Group, Sequence[str]],
) -> str:
    label = labels.score_label(key.score)
    if not reasons:
        return ""
    differences = "; ".join(
        dict.fromkeys(r for group, rs in reasons.items() if group not in rows for r in rs)
    )
    parts = []
    if rows:
        parts.append(f"Published: {'; '.join(dict.fromkeys(_source(p) for p in rows.values()))}.")
    if not rows:
        parts.append(f"No comparable published value for {label}: {differences}.")
    elif differences:
        names = ", ".join(g.label for g in reasons if g not in rows)
        parts.append(f"No comparable published value for {names}: {differences}.")
    if unstated := {published.unstated(p) for p in rows.values()} - {""}:
        split = text.clean(section.protocol(key).get("real_split", "not recorded"), 20)
        details = "; ".join(sorted(unstated))
        ours = f" (ours: {split})" if "split of" in details else ""
        parts.append(f"The source does not state {details}{ours}.")
    if any(p.recalled for p in rows.values()):
        parts.append("Values recalled from memory are not verified.")
    return " ".join(parts)


def comparison(section: Section, matches: Mapping[Key, PublishedMatches]) -> Comparison | None:
    """Published values and ours (best setting) for all methods with a like-for-like row; None without one."""
    keys = [key for key, match in matches.items() if match.rows]
    matched = [
        g for g in section.groups if any(g in matches[k].rows and _scored(section, g, k) for k in keys)
    ]
    if not matched:
        return None
    several = len({key.score for key in keys}) < len(keys)
    columns = [labels.score_label(k.score) + (f" [{k.protocol_id[:8]}]" if several else "") for k in keys]
    rows = [
        (group.label, [_pair(section, group, key, matches[key]) for key in keys], _trained(section, group))
        for group in matched
    ]
    notes = []
    for label, key in zip(columns, keys, strict=True):
        name = labels.protocol_name(section.protocol(key), key.protocol_id)
        notes.append(
            f"{label}: ours is our best setting at the {key.checkpoint} checkpoint, protocol {name}."
        )
    return Comparison(columns, rows, notes)


def _scored(section: Section, group: Group, key: Key) -> bool:
    return any(g == group and cell.scores(key) for (g, _), cell in section.cells.items())


def _pair(section: Section, group: Group, key: Key, match: PublishedMatches) -> tuple[str, str]:
    """``("29.30", "31.20 ± 0.40 (C, 2 seeds)")``: the paper's value and our best setting's."""
    row = match.rows.get(group)
    cells: dict[str, Cell] = {s: c for (g, s), c in section.cells.items() if g == group}
    means = {s: m for s, c in cells.items() if (m := c.summary(key).mean) is not None}
    paper = labels.spread(row.value, row.std) if row else "–"
    if not means:
        return paper, "–"
    finished = {s: m for s, m in means.items() if not cells[s].mark} or means
    pick = min if labels.better(key.score) == "lower" else max
    setting = pick(finished, key=lambda s: finished[s])
    ours = cells[setting].summary(key)
    about = f"{setting}, {ours.n} seed{'s' if ours.n > 1 else ''}" + (f", {ours.mark}" if ours.mark else "")
    return paper, f"{labels.spread(ours.mean, ours.std)} ({about})"


def _source(row: published.Published) -> str:
    spread = f", ± over {row.std_over}" if row.std is not None and row.std_over else ""
    return f"{row.where} ({row.conditions}{spread})"


def _trained(section: Section, group: Group) -> str:
    """``1,000 updates, width 0.25; settings A, D``."""
    steps, width = _first(section, group).scale
    settings = sorted((s for g, s in section.cells if g == group), key=labels.setting_rank)
    wide = f", width {width:g}" if width not in (None, 1) else ""
    return f"{labels.count(steps)} updates{wide}; {', '.join(settings)}"
