"""A published table shown whole, for the place that a run of ours has in it: WGAN-GP's Table 3, both halves.

Which tables are, and beside which method and net of ours, stands in ``published.yaml`` (``whole``). Rows that
the table's authors copied from other papers say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ganlab import text
from ganlab.papers import labels, published
from ganlab.papers.published import Published
from ganlab.report.compare import sidebyside
from ganlab.report.read.cells import Group, Section
from ganlab.report.write.table import Column, Field, Table


def tables(section: Section) -> list[Table]:
    """The whole tables that have a row on a method and net of the section."""
    dataset = published.known_dataset(section.dataset, section.dataset_path)[0]
    found = []
    for wanted in published.table()["whole"]:
        mine = [g for g in section.groups if _method(section, g) == wanted["method"]]
        if (dataset, section.net) == (wanted["dataset"], wanted["architecture"]) and mine:
            found.append(_table(section, wanted, mine))
    return found


def _method(section: Section, group: Group) -> str:
    run = section.of(group)[0]
    return published.known_method(group.method, run.text("loss"), run.config)


def _table(section: Section, wanted: Mapping[str, Any], mine: list[Group]) -> Table:
    rows = [
        p
        for p in published.values()
        if (p.paper, p.table, p.dataset) == (wanted["paper"], wanted["table"], wanted["dataset"])
    ]
    lines: list[list[Field]] = []
    for half, conditional in (("unsupervised", False), ("supervised", True)):
        part = sorted((p for p in rows if p.conditional is conditional), key=lambda p: p.value)
        told = [line for p in part for line in _lines(section, p, wanted, mine)]
        lines += [[Field(half if i == 0 else ""), *line] for i, line in enumerate(told)]
    paper = str(published.table()["papers"][wanted["paper"]]["name"])
    label = labels.score_label(rows[0].score) if rows else ""
    columns = [
        Column(""),
        Column("method"),
        Column(f"{label}, published", True),
        Column(f"{label}, ours", True),
    ]
    columns += [Column("whose value"), Column("ours beside it: like for like?")]
    notes = [
        f"Quoted: {paper} copied the value from the method's paper. ± is over splits or seeds, as its source "
        "has it. Ours: the best setting, last checkpoint."
    ]
    return Table(f"{paper} {wanted['table']}, whole", columns, lines, notes, look="wide")


def _lines(
    section: Section, row: Published, wanted: Mapping[str, Any], mine: list[Group]
) -> Iterator[list[Field]]:
    """A published row, ours in it if it is our method's and net's; a line for each of our variants."""
    names: dict[str, str] = published.table()["names"]
    name = names.get(row.method) or labels.method_label(row.method)
    net = labels.ARCHITECTURES.get(row.architecture, "") if row.architecture == wanted["architecture"] else ""
    head = [Field(f"{name} {net}".strip()), Field(labels.spread(row.value, row.std), "paper")]
    whose = Field("quoted" if row.quoted else "its authors' own")
    here = (row.method, row.architecture) == (wanted["method"], wanted["architecture"])
    ours = [g for g in mine if section.of(g)[0].head == row.head] if here else []
    several = len(ours) > 1
    told = [found for group in ours if (found := _ours(section, group, row, several)) is not None]
    yield [*head, told[0][0] if told else Field("–"), whose, told[0][1] if told else Field("")]
    for value, verdict in told[1:]:
        yield [Field(""), Field(""), value, Field(""), verdict]


def _ours(section: Section, group: Group, row: Published, several: bool) -> tuple[Field, Field] | None:
    """Our value for a row and what is said of it, of ``several`` variants which; None without one."""
    keys = [k for k in section.measured("last") if labels.split_score(k.score)[0] == row.score]
    told = []
    for key in keys:
        if found := sidebyside.best_setting(section, group, key):
            setting, cell = found
            s = cell.summary(key)
            name = f"{key.score} " if labels.split_score(key.score)[1] else ""
            seeds = f"{s.n} seeds" if s.n > 1 else "one seed"
            mark = f", {s.mark}" if s.mark else ""
            value = f"{name}{labels.spread(s.mean, s.std)} ({text.clean(setting, 16)}, {seeds}{mark})"
            v = sidebyside.verdict(section, group, row, key)
            said = (
                f"no: {'; '.join(v.reasons)}" if v.reasons else "yes" + (f" ({v.adding})" if v.adding else "")
            )
            told.append((len(v.reasons), value, f"{group.variant}: {said}" if several else said))
    if not told:
        return None
    _, value, said = min(told)
    return Field(value, "lead"), Field(said)
