"""What an analysis is: options in its constructor, runs in, a picture and tables out."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ganlab.analysis.subjects import Subject
from ganlab.config.files import display
from ganlab.system.files import disk_error, write_atomic
from ganlab.text import csv_cell
from ganlab.types import Kind

MANY = 1000
Row = Mapping[str, object]


@dataclass
class Finding:
    """What an analysis made: ``png`` bytes, ``rows`` of its CSV, and ``says``, lines for the console.

    more: further tables, by what their file's name ends in. All rows of a table have the same columns.
    files: whatever else, by name.
    """

    png: bytes
    rows: Sequence[Row]
    says: Sequence[str] = ()
    more: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def write(self, place: Path, name: str) -> Path:
        """``NAME.png``, ``NAME.csv`` and ``NAME_MORE.csv`` in the folder ``place``; returns the first.

        Raises EnvError if the folder can't be written.
        """
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, place) from error
        picture = place / f"{name}.png"
        write_atomic(picture, self.png)
        for ending, rows in {"": self.rows, **{f"_{k}": v for k, v in self.more.items()}}.items():
            write_atomic(place / f"{name}{ending}.csv", table(rows))
        for file, content in self.files.items():
            write_atomic(place / file, content)
        for line in self.says:
            print(line)
        print(f"{name} -> {display(picture.absolute())}, {name}.csv")
        return picture


def table(rows: Sequence[Row]) -> bytes:
    """Rows as CSV; floats in full precision, what is not finite left empty."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: csv_cell(v) for k, v in row.items()} for row in rows)
    return out.getvalue().encode()


class Analysis(ABC):
    """One figure of runs. The constructor takes the keys of the command line; every one has a default.

    runs: how many runs it wants, least and most. kinds: of samples that their runs may be of. composes:
    whether, without a run, it takes config overrides. words, config_dirs: the overrides of the command line
    that are not its own keys; set before ``make``.
    """

    runs: ClassVar[tuple[int, int]] = (1, MANY)
    kinds: ClassVar[tuple[Kind, ...]] = ("images", "points", "text")
    composes: ClassVar[bool] = False
    words: Sequence[str] = ()
    config_dirs: Sequence[str] = ()

    @abstractmethod
    def make(self, runs: Sequence[Subject]) -> Finding:
        """Look at the runs; change nothing. Raises DataError, one line, where they do not fit."""
