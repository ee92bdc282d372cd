"""``ganlab report``: many runs side by side, beside the published values. Reads run folders, never torch.

``collect``, ``history`` and ``grids`` read, ``cells`` sorts runs into the grid, ``published`` knows the
papers' values; ``compare`` and ``sidebyside`` put them beside ours, ``ranking`` orders the methods, ``noise``
says what the seeds allow to say, ``rescored`` compares protocols; ``pairs`` counts and ``successes`` tells
what a grid compares two by two; ``bars``, ``curves`` and ``mosaic`` draw
(``figures`` is what they share), ``tables`` and ``table`` are the page's tables, ``text`` makes words safe,
``page`` writes HTML and Markdown, ``sheet`` the CSV of all scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ganlab.errors import DataError
from ganlab.system.paths import keep_caches

OUT = Path("outputs/report")
keep_caches()  # before matplotlib is imported


def report(
    paths: Sequence[str | Path], out: str | Path | None = None, thresholds: Sequence[float] = ()
) -> Path:
    """Report on all runs at or under ``paths`` in the folder ``out`` (default ``outputs/report``).

    Writes ``report.html`` (self-contained), ``report.md``, ``figures/`` and the numbers as ``results.csv``,
    ``published.csv``, ``ranking.csv`` and ``differences.csv``; the same runs give the same bytes. Returns the
    path of ``report.html``. Unreadable and unfinished runs are listed there.
    A grid that counts pairs adds ``successes.csv`` and ``pairs.csv``, and its tables are printed;
    ``thresholds``: of success, in the place of the paper's.
    Raises DataError for a path without any run, EnvError if ``out`` can't be written.
    """
    from ganlab.report.compare import pairs, successes
    from ganlab.report.read import cells, collect, grids
    from ganlab.report.write import (
        page,
        table,  # imported late: matplotlib and jinja2 take a second
    )

    if not paths:
        raise DataError("RUN", "no run folder given", "name run folders, or a folder that holds some")
    folders = [Path(p) for p in paths]
    runs = collect.collect(folders)
    grid = grids.find(runs, folders)
    studies = [found for one in grid if (found := pairs.study(one, runs)) is not None]
    told = [successes.success_tables(study, thresholds) for study in studies]
    more = (
        {"successes.csv": successes.csv_of(told), "pairs.csv": successes.pairs_csv(studies)} if told else {}
    )
    place = Path(OUT if out is None else out)
    written = page.write(runs, cells.sections(runs), place, grid, told, more)
    for made in (found for one in told for found in one.tables):
        print(f"{table.in_words(made)}\n")
    return written
