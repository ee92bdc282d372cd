"""Published beside ours: which published rows may stand beside a figure's scores, and why others may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ganlab import text
from ganlab.papers import labels as labels_module
from ganlab.papers import published
from ganlab.report.read.cells import Cell, Group, Key, Section, groups
from ganlab.report.read.collect import Run


@dataclass(frozen=True)
class Beside:
    """For one score under one protocol: the like-for-like rows by method, and why the others are not."""

    rows: dict[Group, published.Published]
    reasons: dict[Group, list[str]]
    note: str  # what a reader must know before holding a published value against these scores


@dataclass(frozen=True)
class Comparison:
    """A table of paper beside ours: one line per method, a pair of columns per score."""

    scores: list[str]
    rows: list[tuple[str, list[tuple[str, str]], str]]  # method, (paper, ours) per score, training
    notes: list[str]


def beside(section: Section, key: Key) -> Beside:
    """Look up every method of the section; a row counts only if the score is like for like."""
    dataset, unlike = published.known_dataset(section.dataset, section.dataset_path)
    kind, record = labels_module.split_score(key.score)[0], section.protocol(key)
    rows, reasons = {}, {}
    for group in groups(section.shown(key)):
        run = _first(section, group)
        loss = published.loss_name(run.text("loss"))
        method = published.known_method(group.method, loss, run.config)
        found = published.lookup(
            *(dataset, section.net, method, loss, kind, run.scale[0]),
            resolution=section.pixels,
            head=run.head,
            wide=run.wide,
        )
        if (
            found
        ):  # the first that is like for like, else the first: a rerun by others may have another protocol
            row = min(found, key=lambda p: bool(published.differences(p, key.score, record)))
            reasons[group] = published.differences(row, key.score, record) + ([unlike] if unlike else [])
            if not reasons[group]:
                rows[group] = row
    return Beside(rows, reasons, _note(section, key, rows, reasons))


def _first(section: Section, group: Group) -> Run:
    return next(cell.runs[0] for (g, _), cell in section.cells.items() if g == group)


def _note(
    section: Section,
    key: Key,
    rows: Mapping[Group, published.Published],
    reasons: Mapping[Group, Sequence[str]],
) -> str:
    label = labels_module.score_label(key.score)
    if not reasons:
        return ""
    why = "; ".join(dict.fromkeys(r for group, rs in reasons.items() if group not in rows for r in rs))
    parts = []
    if rows:
        parts.append(f"Published: {'; '.join(dict.fromkeys(_source(p) for p in rows.values()))}.")
    if not rows:
        parts.append(f"No published value stands beside {label}, for none is comparable: {why}.")
    elif why:
        names = ", ".join(g.label for g in reasons if g not in rows)
        parts.append(f"No published value beside {names}: {why}.")
    if unstated := {published.unstated(p) for p in rows.values()} - {""}:
        split = text.clean(section.protocol(key).get("real_split", "not recorded"), 20)
        said = "; ".join(sorted(unstated))
        ours = f" (ours: {split})" if "split of" in said else ""
        parts.append(f"Its source does not state {said}{ours}.")
    if any(p.recalled for p in rows.values()):
        parts.append("Recalled values are from memory and not verified.")
    return " ".join(parts)


def comparison(section: Section, found: Mapping[Key, Beside]) -> Comparison | None:
    """Paper beside ours (the best of our settings) for all methods that have a like-for-like row."""
    keys = [key for key, there in found.items() if there.rows]
    listed = [g for g in section.groups if any(g in found[k].rows and _scored(section, g, k) for k in keys)]
    if not listed:
        return None
    several = len({key.score for key in keys}) < len(keys)
    labels = [
        labels_module.score_label(k.score) + (f" [{k.protocol_id[:8]}]" if several else "") for k in keys
    ]
    rows = [
        (group.label, [_pair(section, group, key, found[key]) for key in keys], _trained(section, group))
        for group in listed
    ]
    notes = []
    for label, key in zip(labels, keys, strict=True):
        name = labels_module.protocol_name(section.protocol(key), key.protocol_id)
        notes.append(f"{label}: ours = our best setting, {key.checkpoint} checkpoint, protocol {name}.")
    return Comparison(labels, rows, notes)


def _scored(section: Section, group: Group, key: Key) -> bool:
    return any(g == group and cell.scores(key) for (g, _), cell in section.cells.items())


def _pair(section: Section, group: Group, key: Key, there: Beside) -> tuple[str, str]:
    """``("29.30", "31.20 ± 0.40 (C, 2 seeds)")``: the paper's value and our best setting's."""
    row = there.rows.get(group)
    cells: dict[str, Cell] = {s: c for (g, s), c in section.cells.items() if g == group}
    means = {s: m for s, c in cells.items() if (m := c.summary(key).mean) is not None}
    if not means:
        return (labels_module.spread(row.value, row.std) if row else "–"), "–"
    finished = {s: m for s, m in means.items() if not cells[s].mark} or means
    pick = min if labels_module.better(key.score) == "lower" else max
    setting = pick(finished, key=lambda s: finished[s])
    ours = cells[setting].summary(key)
    about = f"{setting}, {ours.n} seed{'s' if ours.n > 1 else ''}" + (f", {ours.mark}" if ours.mark else "")
    return (
        labels_module.spread(row.value, row.std) if row else "–"
    ), f"{labels_module.spread(ours.mean, ours.std)} ({about})"


def _source(row: published.Published) -> str:
    over = f", ± over {row.std_over}" if row.std is not None and row.std_over else ""
    return f"{row.where} ({row.conditions}{over})"


def _trained(section: Section, group: Group) -> str:
    """``1,000 updates, width 0.25; settings A, D``."""
    steps, width = _first(section, group).scale
    settings = sorted((s for g, s in section.cells if g == group), key=labels_module.setting_rank)
    wide = f", width {width:g}" if width not in (None, 1) else ""
    return f"{labels_module.count(steps)} updates{wide}; {', '.join(settings)}"
