"""Table of values from papers, other implementations and our runs, and whether they are comparable.

A row is like for like only with the same images, the same loss, and a protocol of ours that matches all that
its source states; otherwise the reasons are listed. Reduced training is added as a caveat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ganlab import text
from ganlab.papers import labels, published
from ganlab.papers.published import Published
from ganlab.report.read.cells import Group, Key, Section
from ganlab.report.write.table import Column, Field, Table
from ganlab.tables import to_csv

MAX_REASONS = 3  # per row of the table; the CSV has all
ITS_PAPER = "the method's paper"  # an implementation's copy of a value that has its own row
COLUMNS = (
    *("section", "method", "who", "kind", "score", "value", "std", "std_over", "protocol", "training"),
    *("like_for_like", "why_not", "recalled", "provenance", "source", "note", "id"),
)


@dataclass(frozen=True)
class Verdict:
    """Whether a published score is like for like with ours: the reasons against, or the caveats."""

    reasons: tuple[str, ...]
    caveats: str = ""
    ours: str = ""  # our matching protocol


def verdict(section: Section, group: Group, row: Published, key: Key) -> Verdict:
    """Compare ``row`` with the group's scores ``key``."""
    run, unlike, loss = section.first_run(group), section.published_dataset[1], section.loss(group)
    reasons = published.differences(row, key.score, section.protocol(key), key.checkpoint)
    reasons += [unlike] if unlike else []
    if row.loss and loss and row.loss != loss:
        reasons.append(f"loss: ours {text.clean(loss, 20)}, published {row.loss}")
    if row.wide != run.wide:
        reasons.append(f"the published D {'is 1.5 times as wide' if row.wide else 'has the usual width'}")
    if row.labels != run.labels:
        reasons.append(f"labels: ours {run.labels}, published {row.labels}")
    caveats = []
    if unstated := published.unstated(row):
        caveats.append(f"not stated: {unstated}")
    steps, width = run.scale
    if row.updates and steps and steps != row.updates:
        caveats.append(f"ours: {steps / row.updates:.3g}× its updates")
    if width not in (None, 1):
        caveats.append(f"ours: {width:g}× the width")
    name = labels.protocol_name(section.protocol(key), key.protocol_id)
    return Verdict(tuple(reasons), "; ".join(caveats), name.split(" [")[0])


def best_verdict(section: Section, group: Group, row: Published) -> Verdict | None:
    """The verdict for our score whose protocol is closest; None without a score of that kind."""
    kind = row.score
    keys = [k for k in section.score_keys() if labels.split_score(k.score)[0] == kind]
    keys = [k for k in keys if any(c.scores(k) for (g, _), c in section.cells.items() if g == group)]
    verdicts = [verdict(section, group, row, key) for key in keys]
    return min(verdicts, key=lambda v: len(v.reasons), default=None)


def rows_of(section: Section, group: Group) -> list[Published]:
    """All rows for the group's method, dataset and net: papers, then other implementations, then recalled."""
    head, method = section.first_run(group).head, section.published_method(group)
    candidates = published.of_method(section.published_dataset[0], section.net, method, section.pixels)
    rows = [
        p for p in candidates if p.score in labels.SCORES and (p.head == head if head else not p.conditional)
    ]
    return sorted(rows, key=lambda p: (not p.by_its_authors, p.quoted, p.provenance == "recalled"))


def table(section: Section) -> Table | None:
    """Our values, published ones and other implementations', by method; None if nothing is published."""
    kinds = [
        k for k in labels.SCORES if any(labels.split_score(x.score)[0] == k for x in section.score_keys())
    ]
    rows: list[list[Field]] = []
    done: set[tuple[str, str]] = set()  # methods with D's conditional head, which decides the rows
    for group in section.groups:
        published_rows = [
            p for p in rows_of(section, group) if p.score in kinds and p.quoted_from != ITS_PAPER
        ]
        kind = (group.method, section.first_run(group).head)
        if not published_rows or kind in done:
            continue  # the variants of a method are listed with its first one
        done.add(kind)
        variants = [g for g in section.groups if (g.method, section.first_run(g).head) == kind]
        lines = [line for g in variants for line in _ours(section, g, kinds)]
        lines += [_published(section, group, row, kinds) for row in _by_source_row(published_rows)]
        rows += [[Field(group.label if i == 0 else ""), *line] for i, line in enumerate(lines)]
    if not rows:
        return None
    heads = [labels.score_label(k) for k in kinds]
    columns = [Column("method"), Column("who"), *(Column(h, True) for h in heads)]
    columns += [Column("protocol"), Column("training"), Column("like for like with ours?")]
    notes = [
        "Ours: the best setting for each score, last checkpoint, ± over seeds. Published ± is over splits or "
        "seeds, as in the source. Like for like: same images, same loss, and a protocol that matches "
        "everything the source states."
    ]
    if unlike := section.published_dataset[1]:
        notes.append(f"No row is like for like with ours: {unlike}.")
    if any("recalled" in f.text for line in rows for f in line):
        notes.append("Values recalled from memory are not verified.")
    return Table("Papers, other implementations and ours", columns, rows, notes, css="wide")


def _by_source_row(rows: Sequence[Published]) -> list[list[Published]]:
    """Rows grouped by the row of the source's table that they come from."""
    lines: dict[tuple[object, ...], list[Published]] = {}
    for p in rows:
        origin = (p.paper, p.table, p.loss, p.details, p.updates, p.hparams, p.quoted_from, p.protocol)
        lines.setdefault((*origin, p.checkpoint, p.provenance), []).append(p)
    return list(lines.values())


def _published(section: Section, group: Group, row: Sequence[Published], kinds: Sequence[str]) -> list[Field]:
    by_kind = {p.score: p for p in row}
    first = row[0]
    scores = [
        Field(f"{'≈ ' * p.approximate}{labels.spread(p.value, p.std)}", "paper") if p else Field("–")
        for p in map(by_kind.get, kinds)
    ]
    verdicts = {kind: best_verdict(section, group, p) for kind, p in by_kind.items()}
    words = [published.table()["protocols"][first.protocol]["label"], training(first)]
    return [Field(first.where), *scores, *map(Field, [*words, _verdict_text(section, verdicts)])]


def training(p: Published) -> str:
    """``hinge, 100,000 updates, best of A-F, lr 0.0002, ...`` and remarks."""
    updates = f"{p.updates:,} updates" if p.updates else ""
    checkpoint = f"{p.checkpoint} checkpoint" if p.checkpoint else ""
    parts = [p.loss, p.head, updates, p.hparams, checkpoint, p.details.replace("; ", ", "), p.flag, p.note]
    return "; ".join(part for part in parts if part) or "not stated"


def _verdict_text(section: Section, verdicts: dict[str, Verdict | None]) -> str:
    """The verdicts on the scores of a row: equal ones once, without the reason that all rows share."""
    unlike = section.published_dataset[1]
    phrases: dict[str, list[str]] = {}
    for kind, v in verdicts.items():
        if v is None:
            phrase = "we have no such score"
        elif v.reasons:
            reasons = [r for r in v.reasons if r != unlike] or ["different images"]
            more = f"; … ({len(reasons)} reasons)" if len(reasons) > MAX_REASONS else ""
            phrase = f"no: {'; '.join(reasons[:MAX_REASONS])}{more}"
        else:
            phrase = f"yes, under {v.ours}" + (f" ({v.caveats})" if v.caveats else "")
        phrases.setdefault(phrase, []).append(labels.score_label(kind))
    if len(phrases) == 1:
        return next(iter(phrases))
    return " / ".join(f"{', '.join(names)}: {phrase}" for phrase, names in phrases.items())


def _ours(section: Section, group: Group, kinds: Sequence[str]) -> list[list[Field]]:
    """One row for each protocol that scored the group's last checkpoints."""
    keys = [k for k in section.score_keys("last") if labels.split_score(k.score)[0] in kinds]
    lines = []
    for ident in dict.fromkeys(k.protocol_id for k in keys):
        mine = [k for k in keys if k.protocol_id == ident]
        scores = []
        for kind in kinds:
            own = [k for k in mine if labels.split_score(k.score)[0] == kind]
            scores.append("; ".join(filter(None, (best_value(section, group, k, named=True) for k in own))))
        if any(scores):
            source = f"ours, {group.variant}" if group.variant else "ours"
            fields = [Field(s or "–", "lead" if s else "") for s in scores]
            protocol = Field(counts(section.protocol(mine[0]), ident))
            lines.append([Field(source, "lead"), *fields, protocol, *_training(section, group)])
    return lines


def best_value(section: Section, group: Group, key: Key, named: bool = False) -> str:
    """A group's score at its best setting, finished ones first: ``31.20 ± 0.40 (C, 2 seeds)``.

    "" without a score or if its direction is unknown. ``named``: a score with another network keeps its name.
    """
    cells = {s: c for (g, s), c in section.cells.items() if g == group and c.summary(key).mean is not None}
    finished = {s: c for s, c in cells.items() if not c.mark} or cells
    if not finished or not labels.better(key.score):
        return ""
    sign = labels.sign(key.score)
    setting = min(finished, key=lambda s: sign * (finished[s].summary(key).mean or 0.0))
    s = finished[setting].summary(key)
    name = f"{key.score} " if named and labels.split_score(key.score)[1] else ""
    details = [text.clean(setting, 16), f"{s.n} seeds" if s.n > 1 else "one seed", s.mark]
    return f"{name}{labels.spread(s.mean, s.std)} ({', '.join(filter(None, details))})"


def counts(record: dict[str, object], ident: str) -> str:
    """``sngan_paper: IS 50,000 in 10; FID 10,000 test / 5,000; inception``."""
    name = labels.protocol_name(record, ident).split(" [")[0]
    network = published.extractor(record, "")

    def count(key: str) -> str:
        value = record.get(key)
        return f"{value:,}" if isinstance(value, int) else "?"

    real = f"{count('fid_n_real')} {text.clean(record.get('real_split', '?'), 16)}"
    is_part = f"IS {count('is_n_fake')} in {count('is_splits')}"
    return f"{name}: {is_part}; FID {real} / {count('fid_n_fake')}; {network} network"


def _training(section: Section, group: Group) -> list[Field]:
    (steps, width), loss = section.first_run(group).scale, section.loss(group)
    settings = section.settings_of(group)
    width_part = f"width {width:g}" if width not in (None, 1) else ""
    names = "A-F" if settings == list("ABCDEF") else ", ".join(text.clean(s, 16) for s in settings[:8])
    best_of = f"best of {names}" if len(settings) > 1 else ""
    updates = "" if steps is None else f"{labels.count(steps)} updates"
    parts = [text.clean(loss, 20), updates, width_part, best_of]
    return [Field("; ".join(p for p in parts if p)), Field("")]


def csv_of(sections: Sequence[Section]) -> str:
    """``published.csv``: every published row for the methods of the sections, with its verdict."""
    rows: list[list[object]] = []
    for section in sections:
        for group in section.groups:
            for p in rows_of(section, group):
                v = best_verdict(section, group, p)
                kind = "paper" if p.by_its_authors else "implementation"
                label = published.table()["protocols"][p.protocol]["label"]
                head = [section.title, group.label, p.where, kind, p.score, p.value, p.std, p.std_over, label]
                why_not = "we have no such score" if v is None else "; ".join(v.reasons)
                answer = ["no" if v is None or v.reasons else "yes", why_not, p.recalled, p.provenance]
                rows.append(
                    [*head, training(p), *answer, published.table()["sources"][p.source], p.note, p.id]
                )
    return to_csv(COLUMNS, rows)
