"""Base class of the analyses: keys as annotated attributes, runs in, a figure and tables out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, dataclass_transform

from ganlab.analysis.subjects import Subject
from ganlab.config.files import display
from ganlab.schema import checked
from ganlab.system.files import disk_error, write_atomic
from ganlab.tables import to_csv
from ganlab.types import Kind

MAX_RUNS = 1000
Row = dict[str, Any]


@dataclass
class Finding:
    """Result of an analysis: a figure (``png`` bytes), the ``rows`` of its CSV, and a console ``report``.

    tables: further tables by file-name suffix. All rows of a table have the same columns.
    files: further files by name.
    """

    png: bytes = b""
    rows: list[Row] = field(default_factory=list)
    report: list[str] = field(default_factory=list)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

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


@dataclass_transform()
class Analysis(ABC):
    """One figure computed from runs. A subclass's annotated attributes are its keys; all have defaults.

    A subclass is a dataclass, and its values are checked against their types (``schema.py``).

    runs: minimum and maximum number of runs. kinds: sample kinds it applies to. composes: whether it accepts
    config overrides instead of a run. overrides, config_dirs: the command line's config overrides, set before
    ``make``.
    """

    runs: ClassVar[tuple[int, int]] = (1, MAX_RUNS)
    kinds: ClassVar[tuple[Kind, ...]] = ("images", "points", "text")
    composes: ClassVar[bool] = False
    overrides: Sequence[str] = ()
    config_dirs: Sequence[str] = ()

    def __init_subclass__(cls) -> None:
        if "__init__" not in cls.__dict__:
            dataclass(eq=False, repr=False)(cls)
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]

    @abstractmethod
    def make(self, runs: Sequence[Subject]) -> Finding:
        """Compute the result without changing the runs. Raises DataError if they are unsuitable."""
