"""Base class of the analyses: options in the constructor, runs in, a figure and tables out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ganlab.analysis.subjects import Subject
from ganlab.config.files import display
from ganlab.system.files import disk_error, write_atomic
from ganlab.tables import to_csv
from ganlab.types import Kind

MAX_RUNS = 1000
Row = Mapping[str, object]


@dataclass
class Finding:
    """Result of an analysis: a figure (``png`` bytes), the ``rows`` of its CSV, and a console ``report``.

    tables: further tables by file-name suffix. All rows of a table have the same columns.
    files: further files by name.
    """

    png: bytes
    rows: Sequence[Row]
    report: Sequence[str] = ()
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path, name: str) -> Path:
        """Write ``NAME.png``, ``NAME.csv`` and ``NAME_SUFFIX.csv`` to ``folder``; return the PNG's path.

        Raises EnvError if the folder is not writable.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, folder) from error
        picture = folder / f"{name}.png"
        write_atomic(picture, self.png)
        for suffix, rows in {"": self.rows, **{f"_{k}": v for k, v in self.tables.items()}}.items():
            write_atomic(folder / f"{name}{suffix}.csv", to_csv(list(rows[0]) if rows else [], rows).encode())
        for file, content in self.files.items():
            write_atomic(folder / file, content)
        for line in self.report:
            print(line)
        print(f"{name} -> {display(picture.absolute())}, {name}.csv")
        return picture


class Analysis(ABC):
    """One figure computed from runs. The constructor arguments are its keys; all have defaults.

    runs: minimum and maximum number of runs. kinds: sample kinds it applies to. composes: whether it accepts
    config overrides instead of a run. overrides, config_dirs: the command line's config overrides, set before
    ``make``.
    """

    runs: ClassVar[tuple[int, int]] = (1, MAX_RUNS)
    kinds: ClassVar[tuple[Kind, ...]] = ("images", "points", "text")
    composes: ClassVar[bool] = False
    overrides: Sequence[str] = ()
    config_dirs: Sequence[str] = ()

    @abstractmethod
    def make(self, runs: Sequence[Subject]) -> Finding:
        """Compute the result without changing the runs. Raises DataError if they are unsuitable."""
