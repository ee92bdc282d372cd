"""A table as plain words: what the HTML page, the Markdown and a CSV file show of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ganlab import text


class Column(NamedTuple):
    """A column's heading; ``number``: right-aligned."""

    label: str
    number: bool = False


class Field(NamedTuple):
    """The words of one field; ``look``: "" or a class of the page's style (lead, mark, paper)."""

    words: str
    look: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of fields under columns. notes: what a reader must know; look: a class of the page's style."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Field]]
    notes: Sequence[str] = field(default_factory=tuple)
    look: str = ""

    @property
    def looks(self) -> list[list[tuple[Field, str]]]:
        """The rows, each field with the classes it has in HTML."""
        return [
            [
                (one, " ".join(part for part in ("n" if column.number else "", one.look) if part))
                for one, column in zip(row, self.columns, strict=True)
            ]
            for row in self.rows
        ]


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Plain rows under names; no text is a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([text.csv_cell(value) for value in row] for row in rows)
    return out.getvalue()


def in_words(found: Table) -> str:
    """A table for the console: its title, and columns padded with spaces."""
    lines = [[column.label for column in found.columns], *([f.words for f in row] for row in found.rows)]
    wide = [max(len(line[i]) for line in lines) for i in range(len(found.columns))]
    told = [
        "  ".join(
            word.rjust(w) if column.number else word.ljust(w)
            for word, w, column in zip(line, wide, found.columns, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([found.title, *told])
