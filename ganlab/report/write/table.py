"""A table as plain text, from which the HTML page, the Markdown and a CSV file are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


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
