"""One checkpoint under several protocols: how much the protocol alone changes a score.

``ganlab evaluate RUN protocols=A,B`` scores a checkpoint again and writes to ``RUN/evaluations/``.
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
    """Runs scored under several protocols at one step, one column per protocol; None without such runs."""
    rescored = [(run, step, scores) for run in section.runs for step, scores in _rescored(run).items()]
    if not rescored:
        return None
    ordered = _protocols(rescored)
    numbers = [Column("seed", True), Column("step", True)]
    columns = [Column("method"), Column("setting"), *numbers, Column("score")]
    columns += [Column(_name(record, ident), True) for ident, record in ordered.items()]
    columns.append(Column("range", True))
    group_of = {id(r): g.label for (g, _), cell in section.cells.items() for r in cell.runs}
    rows = []
    for run, step, scores in rescored:
        for name in sorted({s.name for s in scores}, key=labels.score_rank):
            values = {s.protocol_id: s for s in scores if s.name == name}
            if len(values) < 2:
                continue
            sizes = [s.value for s in values.values()]
            span = max(sizes) - min(sizes)
            texts = [group_of[id(run)], text.clean(run.text("setting"), 16), labels.count(run.number("seed"))]
            texts += [labels.count(step), labels.score_label(name)]
            texts += [labels.spread(values[i].value, values[i].std) if i in values else "–" for i in ordered]
            size = labels.number(span, like=max(map(abs, sizes)))
            rows.append([*map(Field, texts), Field(size, "lead")])
    if not rows:
        return None
    notes = [f"Every column scores the same weights; only the protocol differs. {_differing(ordered)}"]
    if len(rows) > MAX_ROWS:
        notes.append(f"Shows the first {MAX_ROWS} of {len(rows)} rows; results.csv has all scores.")
    return Table("One checkpoint, several protocols", columns, rows[:MAX_ROWS], notes)


def _rescored(run: Run) -> dict[int, list[Score]]:
    """Step -> the scores that it has under two or more protocols."""
    by_step: dict[int, dict[tuple[str, str], Score]] = {}
    for s in run.scores:
        if s.step is not None:
            by_step.setdefault(s.step, {}).setdefault((s.name, s.protocol_id), s)
    rescored = {}
    for step, scores in sorted(by_step.items()):
        names = [name for name, _ in scores]
        repeated = [s for (name, _), s in scores.items() if names.count(name) > 1]
        if repeated:
            rescored[step] = repeated
    return rescored


def _protocols(rescored: Sequence[tuple[Run, int, list[Score]]]) -> dict[str, dict[str, Any]]:
    """Protocol id -> record, fewest images first."""
    records = {s.protocol_id: s.protocol for _, _, scores in rescored for s in scores}

    def size(ident: str) -> tuple[float, str]:
        value = records[ident].get("fid_n_fake")
        return (float(value) if isinstance(value, (int, float)) else 0.0, ident)

    return {ident: records[ident] for ident in sorted(records, key=size)}


def _name(record: Mapping[str, Any], ident: str) -> str:
    return f"{labels.protocol_name(record, ident).split(' [')[0]} [{ident[:8]}]"


def _differing(records: Mapping[str, Mapping[str, Any]]) -> str:
    """``In column order: fid_n_fake 5000 | 50000; ...``."""
    keys = apart(list(records.values()))
    differences = [
        f"{text.clean(k, 30)} {' | '.join(text.clean(v, 30) for v in vs)}" for k, vs in keys.items()
    ]
    return f"In column order: {'; '.join(differences[:12])}." if differences else ""
