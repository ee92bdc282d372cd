"""A report's tables as plain values for the templates: cells, runs, protocols, facts and warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ganlab import text
from ganlab.evaluation.scores import SUSPICIOUS, is_better
from ganlab.papers import labels, published
from ganlab.report.read import cells
from ganlab.report.read.cells import Key, Section
from ganlab.report.read.collect import Run, Score
from ganlab.report.write.table import Column, Field, Table


@dataclass(frozen=True)
class RunRow:
    """One run at one checkpoint. ``first``: the first of the run's ``span`` rows."""

    run: Run
    label: str
    first: bool
    span: int
    checkpoint: str
    step: str
    protocol: str
    protocol_id: str
    values: list[str] = field(default_factory=list)


def matrix(section: Section, key: Key) -> Table:
    """Mean ± std of every cell; the best finished cell leads."""
    drawn = section.cells_for(key)
    summaries = {place: cell.summary(key) for place, cell in drawn.items()}
    means = [s.mean for s in summaries.values() if s.mean is not None and not s.mark]
    direction = labels.better(key.score)
    best = (min(means) if direction == "lower" else max(means)) if means and direction else None
    settings = cells.settings(drawn)
    rows = []
    for group in cells.groups(drawn):
        entries = [summaries.get((group, setting)) for setting in settings]
        fields = [
            Field("") if s is None
            else Field(f"{labels.spread(s.mean, s.std)} {s.mark}", "mark") if s.mark
            else Field(labels.spread(s.mean, s.std), "lead" if s.mean is not None and s.mean == best else "")
            for s in entries
        ]  # fmt: skip
        rows.append([Field(group.label), *fields])
    name = labels.protocol_name(section.protocol(key), key.protocol_id)
    title = f"{labels.score_label(key.score)}, {key.checkpoint} checkpoint, {name}"
    return Table(title, [Column("method"), *(Column(s, True) for s in settings)], rows)


def score_names(section: Section) -> list[str]:
    return list(dict.fromkeys(key.score for key in section.score_keys()))


def run_rows(section: Section, names: Sequence[str]) -> list[RunRow]:
    """Every run at each of its checkpoints (last, best): step, protocol and scores."""
    rows = []
    order = {group: i for i, group in enumerate(section.groups)}
    listing = [(group, run) for (group, _), cell in section.cells.items() for run in cell.runs]
    listing.sort(key=lambda p: (order[p[0]], labels.setting_rank(p[1].text("setting")), p[1].by_seed))
    for group, run in listing:
        nodes: dict[tuple[str, int | None, str], dict[str, Score]] = {}
        for s in run.scores:
            nodes.setdefault((s.checkpoint, s.step, s.protocol_id), {})[s.name] = s
        ordered = sorted(nodes.items(), key=lambda n: (n[0][0] != "last", n[0][0] != "best", n[0][0]))
        for i, ((checkpoint, step, ident), scores) in enumerate(ordered):
            name = labels.protocol_name(next(iter(scores.values())).protocol, ident).split(" [")[0]
            values = [labels.spread(scores[n].value, scores[n].std) if n in scores else "–" for n in names]
            where = (checkpoint, labels.count(step), name, ident)
            rows.append(RunRow(run, group.label, i == 0, len(ordered), *where, values))
        if not ordered:
            rows.append(RunRow(run, group.label, True, 1, "–", "–", "–", "–", ["–"] * len(names)))
    return rows


def facts(section: Section) -> list[str]:
    """Summary of the section's runs, one short line per fact."""
    runs = section.runs
    steps, widths = section.scales()
    counts = Counter(r.status for r in runs)
    seeds = {r.number("seed") for r in runs} - {None}
    statuses = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    lines = [f"{len(runs)} run{'s' * (len(runs) > 1)}: {statuses}"]
    if scale := published.reduced_scale(section.published_dataset[0], section.architecture, steps, widths):
        lines.append(f"reduced scale: {scale}")
    for label, values in (
        ("updates", [labels.count(s) for s in steps]),
        ("width", [f"{w:g}" for w in widths]),
        ("batch", _listed(runs, "batch_size")),
        ("precision", _listed(runs, "precision")),
        ("seeds", [labels.count(s) for s in sorted(s for s in seeds if s is not None)]),
        ("device", sorted({r.text("device") for r in runs} - {""})),
        ("torch", sorted({r.text("torch") for r in runs} - {""})),
    ):
        if values:
            lines.append(f"{label}: {', '.join(values[:8])}{' …' if len(values) > 8 else ''}")
    if total := sum(r.number("wall_s") or 0 for r in runs):
        lines.append(f"total wall time: {labels.duration(total)}")
    return lines


def _listed(runs: Sequence[Run], key: str) -> list[str]:
    return sorted({text.clean(r.config[key], 20) for r in runs if key in r.config}, key=labels.natural)


def warnings(section: Section) -> list[str]:
    """What could mislead a reader: suspicious scores, mixed protocols, repeated seeds."""
    lines = [
        f"{run.label}, {s.checkpoint}: {labels.score_label(s.name)} {s.value:.4g} is better than "
        f"{s.among_real:.4g}, {SUSPICIOUS}."
        for run in section.runs
        for s in run.scores
        if s.among_real is not None and is_better(s.value, s.among_real, labels.better(s.name))
    ]
    by_score: dict[tuple[str, str], list[Key]] = {}
    for key in section.score_keys():
        by_score.setdefault((key.checkpoint, key.score), []).append(key)
    mixed: dict[tuple[str, ...], list[str]] = {}
    for (checkpoint, score), keys in by_score.items():
        if len(keys) > 1:
            names = tuple(sorted(labels.protocol_name(section.protocol(k), k.protocol_id) for k in keys))
            mixed.setdefault(names, []).append(f"{labels.score_label(score)} ({checkpoint})")
    for names, scores in mixed.items():
        first = f"{', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
        mixed_scores = f"{', '.join(scores)}: measured under {len(names)} protocols ({first})."
        lines.append(f"{mixed_scores} Each has its own figure and table; do not compare across protocols.")
    for (group, setting), cell in section.cells.items():
        seeds = Counter(r.seeds for r in cell.runs)
        if repeated := [labels.count(s) for (s, _), n in seeds.items() if n > 1]:
            repeats = f"several runs with seed {', '.join(repeated)}; the mean includes all of them"
            lines.append(f"{group.label}, setting {setting}: {repeats}.")
    return lines


def all_protocols(runs: Iterable[Run]) -> tuple[list[tuple[str, str, list[tuple[str, str]]]], list[str]]:
    """Every protocol as (id, name, record items), and warnings on ids with two different records."""
    records: dict[str, dict[str, Any]] = {}
    clashes = []
    for score in (s for r in runs for s in r.scores):
        record = records.setdefault(score.protocol_id, score.protocol)
        if record != score.protocol and _numbers(record) != _numbers(score.protocol):
            clashes.append(f"Protocol id {score.protocol_id} has two different records; trust neither.")
    protocols = []
    for ident, record in sorted(records.items()):
        pairs = [(text.clean(k, 40), text.clean(v, 160)) for k, v in _flat(record)[:60]]
        protocols.append((ident, labels.protocol_name(record, ident).split(" [")[0], pairs))
    return protocols, list(dict.fromkeys(clashes))


def _flat(record: dict[str, Any]) -> list[tuple[str, object]]:
    """``extractor: {name: cifar}`` as ``extractor.name``; records have one level of nesting."""
    pairs: list[tuple[str, object]] = []
    for key, value in record.items():
        inner = value.items() if isinstance(value, dict) and value else None
        pairs += [(key, value)] if inner is None else [(f"{key}.{k}", v) for k, v in inner]
    return pairs


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    """The record without labels, which don't affect the numbers."""
    return {k: v for k, v in record.items() if k not in ("protocol", "dataset", "batch_size", "name")}
