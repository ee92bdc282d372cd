"""One checkpoint, several protocols: how far a generator's scores lie apart by counts and splits alone.

``ganlab evaluate RUN protocols=A,B`` scores a checkpoint again; its records lie in ``RUN/evaluations/``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ganlab import text
from ganlab.metrics.protocol import apart
from ganlab.papers import labels
from ganlab.report.read.cells import Section
from ganlab.report.read.collect import Run, Score
from ganlab.report.write.table import Column, Field, Table

MAX_ROWS = 200


def table(section: Section) -> Table | None:
    """The runs scored under several protocols at one step: a column per protocol; None if there are none."""
    found = [(run, step, scores) for run in section.runs for step, scores in _twice(run).items()]
    if not found:
        return None
    ordered = _protocols(found)
    columns = [
        Column("method"),
        Column("setting"),
        Column("seed", True),
        Column("step", True),
        Column("score"),
    ]
    columns += [Column(_name(record, ident), True) for ident, record in ordered.items()]
    columns.append(Column("apart by", True))
    group_of = {id(r): g.label for (g, _), cell in section.cells.items() for r in cell.runs}
    rows = []
    for run, step, scores in found:
        for name in sorted({s.name for s in scores}, key=labels.score_rank):
            values = {s.protocol_id: s for s in scores if s.name == name}
            if len(values) < 2:
                continue
            seen = [s.value for s in values.values()]
            by = max(seen) - min(seen)
            words = [group_of[id(run)], text.clean(run.text("setting"), 16), labels.count(run.number("seed"))]
            words += [labels.count(step), labels.score_label(name)]
            words += [labels.spread(values[i].value, values[i].std) if i in values else "–" for i in ordered]
            rows.append(
                [Field(w) for w in words] + [Field(labels.number(by, like=max(map(abs, seen))), "lead")]
            )
    if not rows:
        return None
    notes = [f"The same weights in every column: only the protocol differs. {_differing(ordered)}"]
    if len(rows) > MAX_ROWS:
        notes.append(f"The first {MAX_ROWS} of {len(rows)} rows; all scores are in results.csv.")
    return Table("One checkpoint, several protocols", columns, rows[:MAX_ROWS], notes)


def _twice(run: Run) -> dict[int, list[Score]]:
    """Step -> its scores, each once, where a score's name comes under two protocols or more."""
    by_step: dict[int, dict[tuple[str, str], Score]] = {}
    for s in run.scores:
        if s.step is not None:
            by_step.setdefault(s.step, {}).setdefault((s.name, s.protocol_id), s)
    found = {}
    for step, scores in sorted(by_step.items()):
        names = [name for name, _ in scores]
        kept = [s for (name, _), s in scores.items() if names.count(name) > 1]
        if kept:
            found[step] = kept
    return found


def _protocols(found: Sequence[tuple[Run, int, list[Score]]]) -> dict[str, dict[str, Any]]:
    """Id -> record, those with fewer images first."""
    records = {s.protocol_id: s.protocol for _, _, scores in found for s in scores}

    def size(ident: str) -> tuple[float, str]:
        value = records[ident].get("fid_n_fake")
        return (float(value) if isinstance(value, (int, float)) else 0.0, ident)

    return {ident: records[ident] for ident in sorted(records, key=size)}


def _name(record: Mapping[str, Any], ident: str) -> str:
    return f"{labels.protocol_name(record, ident).split(' [')[0]} [{ident[:8]}]"


def _differing(records: Mapping[str, Mapping[str, Any]]) -> str:
    """``Differing: fid_n_fake 5000 | 50000; ...``, in the order of the columns."""
    keys = apart(list(records.values()))
    told = [f"{text.clean(k, 30)} {' | '.join(text.clean(v, 30) for v in vs)}" for k, vs in keys.items()]
    return f"Differing, in the columns' order: {'; '.join(told[:12])}." if told else ""
