"""A table as plain text, from which the HTML page, the Markdown and a CSV file are made."""

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
    """The text of one field; ``css``: "" or a class of the page's style sheet (lead, mark, paper)."""

    text: str
    css: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of fields under columns. notes: sentences below the table; css: a class of the style sheet."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Field]]
    notes: Sequence[str] = field(default_factory=tuple)
    css: str = ""

    @property
    def styled_rows(self) -> list[list[tuple[Field, str]]]:
        """The rows, each field with its classes in HTML."""
        return [
            [
                (item, " ".join(name for name in ("n" if column.number else "", item.css) if name))
                for item, column in zip(row, self.columns, strict=True)
            ]
            for row in self.rows
        ]


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV with a header line; text that a spreadsheet would take for a formula is escaped."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([text.csv_cell(value) for value in row] for row in rows)
    return out.getvalue()


def to_text(table: Table) -> str:
    """A table for the console: its title, then columns padded with spaces."""
    cells = [[column.label for column in table.columns], *([f.text for f in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if column.number else cell.ljust(width)
            for cell, width, column in zip(row, widths, table.columns, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([table.title, *lines])
