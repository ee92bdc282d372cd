"""``ganlab report``: many runs side by side, beside the published values. Reads run folders, never torch.

``collect`` and ``history`` read runs, ``cells`` sorts them into the grid, ``published`` knows the papers'
values and ``compare`` puts them beside ours; ``bars``, ``curves`` and ``mosaic`` draw (``figures`` is what
they share), ``tables`` counts, ``text`` makes words safe, ``page`` writes HTML, Markdown and CSV.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ganlab.errors import DataError

OUT = Path("outputs/report")


def report(paths: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Report on all runs at or under ``paths`` in the folder ``out`` (default ``outputs/report``).

    Writes ``report.html`` (self-contained), ``report.md``, ``results.csv`` and ``figures/``; the same runs
    give the same bytes. Returns the path of ``report.html``. Unreadable and unfinished runs are listed there.
    Raises DataError for a path without any run, EnvError if ``out`` can't be written.
    """
    from ganlab.report import cells, collect, page  # imported late: matplotlib and jinja2 take a second

    if not paths:
        raise DataError("RUN", "no run folder given", "name run folders, or a folder that holds some")
    runs = collect.collect([Path(p) for p in paths])
    return page.write(runs, cells.sections(runs), Path(OUT if out is None else out))
