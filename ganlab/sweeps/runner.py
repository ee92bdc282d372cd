"""``ganlab sweep grid=NAME``: compose and check all cells of a grid, then run them.

Finished cells are skipped, unfinished ones continued, failed ones retried once. A cell that another process
runs is left to it, so several sweeps of one folder share the work (``scheduler.py``). ``grid.json`` describes
the folder, ``cells.csv`` its progress; ``.sweep/CELL.log`` is the output of each run (``ledger.py``).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import Signals
from typing import Any

from ganlab import errors
from ganlab.config import check, compose
from ganlab.config.overrides import quoted
from ganlab.errors import ConfigError, DataError, EnvError, Mistake, SweepFailed
from ganlab.sweeps import grid as grids
from ganlab.sweeps import process
from ganlab.sweeps.plan import (
    DEFAULT_RULES,
    ONE_PROCESS,
    Job,
    Placement,
    Plan,
    Rules,
    check_folder,
    visible_gpus,
)
from ganlab.sweeps.process import print_status
from ganlab.sweeps.scheduler import Scheduler
from ganlab.system.files import write_json

NOTICE_CELLS = 100  # from so many cells on, composing takes long enough to print a notice


def make_plan(
    name: str,
    arguments: Sequence[str],
    scale: grids.Scale,
    out: str | None,
    config_dirs: Sequence[str] = (),
    max_cells: int = grids.MAX_CELLS,
) -> Plan:
    """Compose and check every cell before anything runs. Raises ConfigError with all mistakes.

    ``arguments``: restrictions of the grid's axes, and overrides for all cells.
    """
    from ganlab.config.files import user_dirs

    grid, overrides = grids.restrict(grids.load(name, user_dirs(config_dirs)), arguments)
    out_dir = Path(out or Path("outputs") / grids.folder_name(name, scale, overrides, grid.folder_suffixes()))
    jobs, mistakes = list[Job](), dict[Mistake, list[str]]()
    cells = grids.cells(grid, overrides, max_cells)
    if len(cells) > NOTICE_CELLS:
        print_status(f"{len(cells)} cells: all are composed and checked before the first starts")
    for cell in cells:
        try:
            jobs.append(_make_job(cell, out_dir, scale, overrides, config_dirs))
        except ConfigError as error:
            for mistake in error.mistakes:
                mistakes.setdefault(mistake, []).append(cell.name)
    if mistakes:
        raise ConfigError(_summarize(mistakes, len(cells), grid.axis_keys()))
    return Plan(name, grid.title, scale, out_dir, jobs, grid.metadata())


def _summarize(mistakes: Mapping[Mistake, list[str]], num_cells: int, axes: Sequence[str]) -> list[Mistake]:
    """Each mistake once, naming a cell unless all cells have it; an unknown key may be a misspelled axis."""
    summary: dict[Any, Mistake] = {}
    for mistake, names in mistakes.items():
        if mistake.what == check.NO_KEY:
            near = errors.nearest(mistake.where, axes)
            fix = f"did you mean {near!r}?" if near else mistake.fix
            summary.setdefault(mistake.where, mistake._replace(fix=fix))
        elif len(names) == num_cells:
            summary[mistake] = mistake
        else:
            summary[mistake] = mistake._replace(what=f"{mistake.what} (in cell {names[0]})")
    return list(summary.values())


def _make_job(
    cell: grids.Cell, out_dir: Path, scale: grids.Scale, overrides: Sequence[str], config_dirs: Sequence[str]
) -> Job:
    from ganlab.runs.naming import FREE, config_hash

    folder = out_dir / cell.name
    composed = compose.compose(cell.overrides, config_dirs)
    reduced = grids.scaled(composed.tree, scale, overrides)
    for key, value in reduced.items():  # the effect of the overrides below, without composing again
        parent, _, last = key.rpartition(".")
        for tree in (composed.tree, composed.saved):
            (tree[parent] if parent else tree)[last] = value
    with contextlib.suppress(DataError, EnvError):  # reported when the cell runs
        compose.build(composed)
    check_folder(folder, composed.saved, FREE, "out=")
    return Job(
        cell.name,
        cell.axes,
        [*cell.overrides, *(f"{k}={v}" for k, v in reduced.items()), f"run_dir={quoted(str(folder))}"],
        folder,
        int(composed.tree["steps"]),
        composed.tree,
        config_hash(composed.saved),
        chosen=cell.chosen,
    )


def sweep(
    plan: Plan,
    placement: Placement = ONE_PROCESS,
    config_dirs: Sequence[str] = (),
    rules: Rules = DEFAULT_RULES,
) -> int:
    """Run all cells that are not over, and print a table.

    Returns 0, or 128 + signal. A diverged cell is a result. Raises SweepFailed if cells failed twice, and
    EnvError if the folder can't be written or a GPU does not exist.
    """
    placement = resolve_gpus(placement)
    scheduler = Scheduler(plan, placement, config_dirs, rules)
    _write_grid_json(plan)
    scheduler.write_table()
    num_done = sum(scheduler.states[j.name] in ("finished", "diverged") for j in plan.jobs)
    done = f", {num_done} already done" if num_done else ""
    print_status(
        f"{plan.title}: {len(plan.jobs)} cells{done}; {plan.out}; 'ganlab status' shows the progress"
    )
    with process.forward_signals_to(scheduler.signals.append):
        threads = [threading.Thread(target=scheduler.work, args=(slot,)) for slot in range(placement.slots)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)  # short, so that the main thread can handle signals
    rows = scheduler.write_table()
    scale = "" if plan.scale.whole else f" ({plan.scale})"
    columns = [{k: v for k, v in row.items() if k not in ("run folder", "log")} for row in rows]
    process.print_table(f"{plan.title}{scale}: {plan.out}", list(columns[0]), columns)
    process.print_failures(rows, "cell")
    if scheduler.signals:
        print_status(f"stopped by {Signals(scheduler.signals[0]).name}; the same command continues the sweep")
        return 128 + scheduler.signals[0]
    if failed := [r["cell"] for r in rows if r["state"] not in ("finished", "diverged")]:
        what = f"{len(failed)} of {len(rows)} cells failed: {', '.join(failed)}"
        command = "the same command" if rules.retry else "retry=failed"
        raise SweepFailed(str(plan.out), what, f"{command} runs them again")
    if diverged := sum(r["state"] == "diverged" for r in rows):
        print_status(f"{diverged} of {len(rows)} cells diverged (a result, not a failure)")
    return 0


def resolve_gpus(placement: Placement) -> Placement:
    """Fill in the GPUs to spread cells over. Raises EnvError if a requested one does not exist."""
    count = len(visible_gpus())
    if missing := [gpu for gpu in placement.gpus if gpu >= count]:
        gpus = f"this machine has {', '.join(map(str, range(count)))}" if count else "no CUDA device found"
        raise EnvError("gpus", f"no GPU {missing[0]}: {gpus}", "leave gpus= out, or list existing GPUs")
    if not placement.gpus and placement.slots > 1 and count > 1:
        return placement._replace(gpus=range(count))
    return placement


def _write_grid_json(plan: Plan) -> None:
    """Write ``grid.json``, keeping the cells of earlier sweeps of the folder (other seeds)."""
    record, path = plan.record(), plan.out / "grid.json"
    previous = process.read_json_leniently(path)
    if isinstance(previous.get("cells"), list):
        names = {cell["name"] for cell in record["cells"]}
        others = [c for c in previous["cells"] if isinstance(c, dict) and c.get("name") not in names]
        record["cells"] = [*others, *record["cells"]]
    write_json(path, record)
