"""Papers, other implementations and ours, side by side: scores, their protocols, and what may be compared.

A line is "like for like" only if one of our protocols matches the line's in all that its source tells, on the
same images, with the same loss; else the reasons are listed. Reduced training is said beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ganlab import text
from ganlab.papers import labels as labels_module
from ganlab.papers import published
from ganlab.papers.published import Published
from ganlab.report.read.cells import Cell, Group, Key, Section
from ganlab.report.write.table import Column, Field, Table, to_csv

MAX_REASONS = 3  # of one line in the table; the CSV has all
ITS_PAPER = "the method's paper"  # an implementation's copy of a value that has a line of its own
COLUMNS = (
    *("section", "method", "who", "kind", "score", "value", "std", "std_over", "protocol", "training"),
    *("like_for_like", "why_not", "recalled", "provenance", "source", "note", "id"),
)


@dataclass(frozen=True)
class Verdict:
    """Whether a published score may stand beside ours: reasons against, and what must be added if it may."""

    reasons: tuple[str, ...]
    adding: str = ""
    ours: str = ""  # the protocol of ours that matches

    @property
    def word(self) -> str:
        return "no" if self.reasons else "yes"


def verdict(section: Section, group: Group, row: Published, key: Key) -> Verdict:
    """Hold ``row`` against our scores ``key`` of the group."""
    run = section.of(group)[0]
    unlike = published.known_dataset(section.dataset, section.dataset_path)[1]
    reasons = published.differences(row, key.score, section.protocol(key), key.checkpoint)
    reasons += [unlike] if unlike else []
    loss = published.loss_name(run.text("loss"))
    if row.loss and loss and row.loss != loss:
        reasons.append(f"loss: {text.clean(loss, 20)} here, {row.loss} published")
    if row.wide != run.wide:
        reasons.append(f"D is {'1.5 times as wide' if row.wide else 'of the usual width'} there")
    adding = []
    if left := published.unstated(row):
        adding.append(f"not stated: {left}")
    steps, width = run.scale
    if row.updates and steps and steps != row.updates:
        adding.append(f"ours: {steps / row.updates:.3g} of its updates")
    if width not in (None, 1):
        adding.append(f"{width:g} of the width" if adding else f"ours: {width:g} of the width")
    name = labels_module.protocol_name(section.protocol(key), key.protocol_id)
    return Verdict(tuple(reasons), "; ".join(adding), name.split(" [")[0])


def best_verdict(section: Section, group: Group, row: Published) -> Verdict | None:
    """Against whichever of our scores is nearest in protocol; None if we have none of that kind."""
    kind = row.score
    keys = [k for k in section.measured() if labels_module.split_score(k.score)[0] == kind]
    keys = [k for k in keys if any(c.scores(k) for (g, _), c in section.cells.items() if g == group)]
    found = [verdict(section, group, row, key) for key in keys]
    return min(found, key=lambda v: len(v.reasons), default=None)


def rows_of(section: Section, group: Group) -> list[Published]:
    """All rows on this method, dataset and net: papers first, then other implementations; best-known last."""
    dataset = published.known_dataset(section.dataset, section.dataset_path)[0]
    run = section.of(group)[0]
    head = run.head
    method = published.known_method(group.method, run.text("loss"), run.config)
    found = published.of_method(dataset, section.net, method, section.pixels)
    found = [
        p
        for p in found
        if p.score in labels_module.SCORES and (p.head == head if head else not p.conditional)
    ]
    return sorted(found, key=lambda p: (not p.by_its_authors, p.quoted, p.provenance == "recalled"))


def table(section: Section) -> Table | None:
    """Every method's published, other implementations' and own values; None where nothing is published."""
    kinds = [
        k
        for k in labels_module.SCORES
        if any(labels_module.split_score(x.score)[0] == k for x in section.measured())
    ]
    rows: list[list[Field]] = []
    several: set[tuple[str, str]] = set()  # by method, and by how D is told the class: their rows differ
    for group in section.groups:
        there = [p for p in rows_of(section, group) if p.score in kinds and p.quoted_from != ITS_PAPER]
        kind = (group.method, section.of(group)[0].head)
        if not there or kind in several:
            continue  # the variants of a method follow its first one
        several.add(kind)
        variants = [g for g in section.groups if (g.method, section.of(g)[0].head) == kind]
        lines = [line for g in variants for line in _ours(section, g, kinds)]
        lines += [_published(section, group, same, kinds) for same in _together(there)]
        rows += [[Field(group.label if i == 0 else ""), *line] for i, line in enumerate(lines)]
    if not rows:
        return None
    heads = [labels_module.score_label(k) for k in kinds]
    columns = [Column("method"), Column("who"), *(Column(h, True) for h in heads)]
    columns += [Column("protocol"), Column("training"), Column("like for like with ours?")]
    notes = [
        "ours: our best setting by each score, last checkpoint, ± over seeds. ± of published values is over "
        "splits or seeds, as their source has it. Like for like: the protocols match in all that the source "
        "tells, and the images and the loss are the same."
    ]
    if unlike := published.known_dataset(section.dataset, section.dataset_path)[1]:
        notes.append(f"No line is like for like with ours, for {unlike}.")
    if any("recalled" in f.words for line in rows for f in line):
        notes.append("Recalled values are from memory and not verified.")
    return Table("Papers, other implementations and ours", columns, rows, notes, look="wide")


def _together(rows: Sequence[Published]) -> list[list[Published]]:
    """The scores that one line of a source's table has."""
    lines: dict[tuple[object, ...], list[Published]] = {}
    for p in rows:
        place = (p.paper, p.table, p.loss, p.details, p.updates, p.hparams, p.quoted_from, p.protocol)
        lines.setdefault((*place, p.checkpoint, p.provenance), []).append(p)
    return list(lines.values())


def _published(
    section: Section, group: Group, same: Sequence[Published], kinds: Sequence[str]
) -> list[Field]:
    by_kind = {p.score: p for p in same}
    first = same[0]
    scores = []
    for kind in kinds:
        p = by_kind.get(kind)
        about = "≈ " if p and p.approximate else ""
        scores.append(
            Field("–" if p is None else about + labels_module.spread(p.value, p.std), "paper" if p else "")
        )
    protocol = str(published.table()["protocols"][first.protocol]["label"])
    return [
        Field(first.where),
        *scores,
        Field(protocol),
        Field(training(first)),
        Field(_said(section, {kind: best_verdict(section, group, p) for kind, p in by_kind.items()})),
    ]


def training(p: Published) -> str:
    """``hinge, 100,000 updates, best of A-F, lr 0.0002, ...`` and what to mind."""
    updates = f"{p.updates:,} updates" if p.updates else ""
    checkpoint = f"{p.checkpoint} checkpoint" if p.checkpoint else ""
    parts = [p.loss, p.head, updates, p.hparams, checkpoint, p.details.replace("; ", ", "), p.flag, p.note]
    return "; ".join(part for part in parts if part) or "not told"


def _said(section: Section, verdicts: dict[str, Verdict | None]) -> str:
    """One phrase for the scores of a line; equal verdicts are said once, and what all lines share is not."""
    unlike = published.known_dataset(section.dataset, section.dataset_path)[1]
    phrases: dict[str, list[str]] = {}
    for kind, v in verdicts.items():
        if v is None:
            phrase = "ours has no such score"
        elif v.reasons:
            told = [r for r in v.reasons if r != unlike] or ["other images"]
            more = f"; … ({len(told)} in all)" if len(told) > MAX_REASONS else ""
            phrase = f"no: {'; '.join(told[:MAX_REASONS])}{more}"
        else:
            phrase = f"yes, with {v.ours}" + (f" ({v.adding})" if v.adding else "")
        phrases.setdefault(phrase, []).append(labels_module.score_label(kind))
    if len(phrases) == 1:
        return next(iter(phrases))
    return " / ".join(f"{', '.join(labels)}: {phrase}" for phrase, labels in phrases.items())


def _ours(section: Section, group: Group, kinds: Sequence[str]) -> list[list[Field]]:
    """One line for each protocol that scored the group's last checkpoints."""
    keys = [k for k in section.measured("last") if labels_module.split_score(k.score)[0] in kinds]
    lines = []
    for ident in dict.fromkeys(k.protocol_id for k in keys):
        mine = [k for k in keys if k.protocol_id == ident]
        scores = [
            _own(section, group, [k for k in mine if labels_module.split_score(k.score)[0] == d])
            for d in kinds
        ]
        if any(s.words != "–" for s in scores):
            record = section.protocol(mine[0])
            who = f"ours, {group.variant}" if group.variant else "ours"
            lines.append([Field(who, "lead"), *scores, Field(counts(record, ident)), *_about(section, group)])
    return lines


def _own(section: Section, group: Group, keys: Sequence[Key]) -> Field:
    """``31.20 ± 0.40 (C, 2 seeds)``; a score of another network carries its own name."""
    told = []
    for key in keys:
        if found := best_setting(section, group, key):
            setting, cell = found
            s = cell.summary(key)
            seeds = f", {s.n} seeds" if s.n > 1 else ""
            mark = f", {s.mark}" if s.mark else ""
            name = f"{key.score} " if labels_module.split_score(key.score)[1] else ""
            told.append(
                f"{name}{labels_module.spread(s.mean, s.std)} ({text.clean(setting, 16)}{seeds}{mark})"
            )
    return Field("; ".join(told) or "–", "lead" if told else "")


def best_setting(section: Section, group: Group, key: Key) -> tuple[str, Cell] | None:
    """A group's best setting, finished ones first; None without a score or a known better direction."""
    cells = {s: c for (g, s), c in section.cells.items() if g == group and c.summary(key).mean is not None}
    done = {s: c for s, c in cells.items() if not c.mark} or cells
    better = labels_module.better(key.score)
    if not done or not better:
        return None
    sign = 1 if better == "lower" else -1
    setting = min(done, key=lambda s: sign * (done[s].summary(key).mean or 0.0))
    return setting, done[setting]


def counts(record: dict[str, object], ident: str) -> str:
    """``sngan_paper: IS 50,000 in 10; FID 10,000 test / 5,000; inception``."""
    name = labels_module.protocol_name(record, ident).split(" [")[0]
    network = published.extractor(record, "")

    def told(key: str) -> str:
        value = record.get(key)
        return f"{value:,}" if isinstance(value, int) else "?"

    real = f"{told('fid_n_real')} {text.clean(record.get('real_split', '?'), 16)}"
    is_part = f"IS {told('is_n_fake')} in {told('is_splits')}"
    return f"{name}: {is_part}; FID {real} / {told('fid_n_fake')}; {network} network"


def _about(section: Section, group: Group) -> list[Field]:
    steps, width = section.of(group)[0].scale
    loss = published.loss_name(section.of(group)[0].text("loss"))
    settings = sorted((s for g, s in section.cells if g == group), key=labels_module.setting_rank)
    wide = f"width {width:g}" if width not in (None, 1) else ""
    listed = "A-F" if settings == list("ABCDEF") else ", ".join(text.clean(s, 16) for s in settings[:8])
    among = f"best of {listed}" if len(settings) > 1 else ""
    updates = "" if steps is None else f"{labels_module.count(steps)} updates"
    parts = [text.clean(loss, 20), updates, wide, among]
    return [Field("; ".join(p for p in parts if p)), Field("")]


def csv_of(sections: Sequence[Section]) -> str:
    """A report's ``published.csv``: every row on the methods of its sections, with the verdict on it."""
    rows: list[list[object]] = []
    for section in sections:
        for group in section.groups:
            for p in rows_of(section, group):
                v = best_verdict(section, group, p)
                kind = "paper" if p.by_its_authors else "implementation"
                label = published.table()["protocols"][p.protocol]["label"]
                head = [section.title, group.label, p.where, kind, p.score, p.value, p.std, p.std_over, label]
                why = "ours has no such score" if v is None else "; ".join(v.reasons)
                told = ["no" if v is None else v.word, why, p.recalled, p.provenance]
                rows.append([*head, training(p), *told, published.table()["sources"][p.source], p.note, p.id])
    return to_csv(COLUMNS, rows)
