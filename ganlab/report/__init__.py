"""``ganlab report``: compare runs with each other and with published values. Reads run folders; no torch.

``read``: run folders, grids and curves; runs sorted into cells. ``compare``: published values, ranking, seed
noise, protocols, pairs. ``draw``: figures. ``write``: the page as HTML and Markdown, and CSV files.
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
    """Report on all runs at or under ``paths``, in the folder ``out`` (default ``outputs/report``).

    Writes ``report.html`` (self-contained), ``report.md``, ``figures/``, and the numbers as ``results.csv``,
    ``published.csv``, ``ranking.csv`` and ``differences.csv``. The same runs give the same bytes. Unreadable
    and unfinished runs are listed. Returns the path of ``report.html``.
    A grid that compares pairs of runs adds ``successes.csv`` and ``pairs.csv``, and its tables are printed;
    ``thresholds``: scores above which a run succeeds, instead of the paper's.
    Raises DataError for a path without a run, EnvError if ``out`` can't be written.
    """
    # Imported late: matplotlib and jinja2 take a second.
    from ganlab.report.compare import pairs, successes
    from ganlab.report.read import cells, collect, grids
    from ganlab.report.write import page
    from ganlab.tables import print_table

    if not paths:
        raise DataError("RUN", "no run folder given", "name run folders, or a folder that contains some")
    folders = [Path(p) for p in paths]
    runs = collect.collect(folders)
    all_grids = grids.find(runs, folders)
    studies = [study for grid in all_grids if (study := pairs.study(grid, runs)) is not None]
    results = [successes.success_tables(study, thresholds) for study in studies]
    csv_files = {}
    if results:
        csv_files = {"successes.csv": successes.csv_of(results), "pairs.csv": successes.pairs_csv(studies)}
    folder = Path(OUT if out is None else out)
    html = page.write(runs, cells.sections(runs), folder, all_grids, results, csv_files)
    for item in (item for result in results for item in result.tables):
        print_table(item.title, [c.label for c in item.columns], [[f.text for f in r] for r in item.rows])
    return html
