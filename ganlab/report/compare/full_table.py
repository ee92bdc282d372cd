"""Complete published tables with our runs in their rows: both halves of WGAN-GP's Table 3.

``published.yaml`` (``whole``) lists the tables, each with our method and net that it is shown for. Rows that
the table's authors copied from other papers are marked as quoted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ganlab.papers import labels, published
from ganlab.papers.published import Published
from ganlab.report.compare import sidebyside
from ganlab.report.read.cells import Group, Section
from ganlab.report.write.table import Column, Field, Table


def tables(section: Section) -> list[Table]:
    """The complete tables that have a row for a method and net of the section."""
    place = (section.published_dataset[0], section.net)
    complete = []
    for spec in published.table()["whole"]:
        mine = [g for g in section.groups if section.published_method(g) == spec["method"]]
        if place == (spec["dataset"], spec["architecture"]) and mine:
            complete.append(_table(section, spec, mine))
    return complete


def _table(section: Section, spec: Mapping[str, Any], mine: list[Group]) -> Table:
    place = (spec["paper"], spec["table"], spec["dataset"])
    rows = [p for p in published.values() if (p.paper, p.table, p.dataset) == place]
    lines: list[list[Field]] = []
    for half, conditional in (("unsupervised", False), ("supervised", True)):
        part = sorted((p for p in rows if p.conditional is conditional), key=lambda p: p.value)
        half_rows = [line for p in part for line in _lines(section, p, spec, mine)]
        lines += [[Field(half if i == 0 else ""), *line] for i, line in enumerate(half_rows)]
    paper = str(published.table()["papers"][spec["paper"]]["name"])
    label = labels.score_label(rows[0].score) if rows else ""
    numbers = [Column(f"{label}, {who}", True) for who in ("published", "ours")]
    columns = [*map(Column, ("", "method")), *numbers, *map(Column, ("source", "like for like with ours?"))]
    notes = [
        f"Quoted: {paper} took the value from the method's own paper. Published ± is over splits or seeds, "
        "as in the source. Ours: the best setting, last checkpoint."
    ]
    return Table(f"{paper} {spec['table']}, complete", columns, lines, notes, css="wide")


def _lines(
    section: Section, row: Published, spec: Mapping[str, Any], mine: list[Group]
) -> Iterator[list[Field]]:
    """A published row, with a line for each of our variants of its method and net."""
    names: dict[str, str] = published.table()["names"]
    name = names.get(row.method) or labels.method_label(row.method)
    net = labels.ARCHITECTURES.get(row.architecture, "") if row.architecture == spec["architecture"] else ""
    head = [Field(f"{name} {net}".strip()), Field(labels.spread(row.value, row.std), "paper")]
    source = Field("quoted" if row.quoted else "the authors' own")
    ours = (row.method, row.architecture) == (spec["method"], spec["architecture"])
    groups = [g for g in mine if section.first_run(g).head == row.head] if ours else []
    scores = [pair for group in groups if (pair := _ours(section, group, row, len(groups) > 1)) is not None]
    yield [*head, scores[0][0] if scores else Field("–"), source, scores[0][1] if scores else Field("")]
    for value, verdict in scores[1:]:
        yield [Field(""), Field(""), value, Field(""), verdict]


def _ours(section: Section, group: Group, row: Published, several: bool) -> tuple[Field, Field] | None:
    """Our value for a row, and its verdict (named by variant if ``several``); None without a score."""
    keys = [k for k in section.score_keys("last") if labels.split_score(k.score)[0] == row.score]
    candidates = []
    for key in keys:
        if value := sidebyside.best_value(section, group, key, named=True):
            v = sidebyside.verdict(section, group, row, key)
            yes = "yes" + (f" ({v.caveats})" if v.caveats else "")
            answer = f"no: {'; '.join(v.reasons)}" if v.reasons else yes
            candidates.append((len(v.reasons), value, f"{group.variant}: {answer}" if several else answer))
    if not candidates:
        return None
    _, value, answer = min(candidates)
    return Field(value, "lead"), Field(answer)
