"""Tables: printed to the console by rich, written as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from ganlab.text import clean, csv_cell

PIPE_WIDTH = 160  # characters of a table that goes to a file or a pipe


def print_table(title: str, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print rows under columns; a narrow terminal wraps cells. None is empty."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if value is None else clean(value, 500)) for value in row))
    console = Console()
    console = console if console.is_terminal else Console(width=PIPE_WIDTH)
    console.print(table)


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[object] | Mapping[str, object]]) -> str:
    """CSV with a header line. Rows: sequences, or mappings in which a missing column is empty.

    Floats in full precision, non-finite ones empty; text that a spreadsheet takes for a formula is quoted.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = [row.get(column) for column in columns] if isinstance(row, Mapping) else row
        writer.writerow([csv_cell(value) for value in values])
    return out.getvalue()
