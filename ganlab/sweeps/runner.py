"""``ganlab sweep grid=NAME``: the cells of a grid, composed and checked, then run until all are done.

Finished cells are skipped, unfinished ones continued, failed ones tried once more; a cell that another
process works on is left to it, so several sweeps of one folder share the work (``work.py``). ``grid.json``
says what the folder is, ``cells.csv`` how far it is, ``.sweep/CELL.log`` what each run said (``ledger.py``).
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
    ALONE,
    DEFAULT,
    MOST,
    Job,
    Places,
    Plan,
    Rules,
    check_folder,
    config_hash,
    gpu_id,
)
from ganlab.sweeps.process import print_status
from ganlab.sweeps.scheduler import Scheduler
from ganlab.system.files import write_json

MANY = 100  # cells whose composing takes so long that it is told


def plan(
    name: str,
    words: Sequence[str],
    scale: grids.Scale,
    out: str | None,
    config_dirs: Sequence[str] = (),
    most: int = MOST,
) -> Plan:
    """Every cell composed and checked, before anything runs. Raises ConfigError with all mistakes."""
    from ganlab.config.files import user_dirs

    chosen, rest = grids.restrict(grids.load(name, user_dirs(config_dirs)), words)
    place = Path(out) if out else Path("outputs") / grids.folder_name(name, scale, rest, chosen.marks())
    found, wrong = list[Job](), dict[Mistake, list[str]]()
    cells = grids.cells(chosen, rest, most)
    if len(cells) > MANY:
        print_status(f"{len(cells)} cells: each is composed and checked before the first starts")
    for cell in cells:
        try:
            found.append(_job(cell, place, scale, rest, config_dirs))
        except ConfigError as error:
            for mistake in error.mistakes:
                wrong.setdefault(mistake, []).append(cell.name)
    if wrong:
        raise ConfigError(_told(wrong, len(cells), chosen.words()))
    return Plan(name, chosen.title, scale, place, found, chosen.facts())


def _told(wrong: Mapping[Mistake, list[str]], cells: int, axes: Sequence[str]) -> list[Mistake]:
    """Each mistake with a cell that has it, unless all have; an unknown key once: it may mean an axis."""
    told: dict[Any, Mistake] = {}
    for mistake, where in wrong.items():
        if mistake.what == check.NO_KEY:
            near = errors.nearest(mistake.where, axes)
            fix = f"did you mean {near!r}?" if near else mistake.fix
            told.setdefault(mistake.where, mistake._replace(fix=fix))
        elif len(where) == cells:
            told[mistake] = mistake
        else:
            told[mistake] = mistake._replace(what=f"{mistake.what} (in cell {where[0]})")
    return list(told.values())


def _job(
    cell: grids.Cell, place: Path, scale: grids.Scale, words: Sequence[str], config_dirs: Sequence[str]
) -> Job:
    from ganlab.runs.naming import FREE

    folder = place / cell.name
    composed = compose.compose(cell.overrides, config_dirs)
    smaller = grids.scaled(composed.tree, scale, words)
    for key, value in smaller.items():  # as the override will, without composing anew
        at, _, last = key.rpartition(".")
        for made in (composed.tree, composed.saved):
            (made[at] if at else made)[last] = value
    with contextlib.suppress(DataError, EnvError):  # that run's own affair
        compose.build(composed)
    check_folder(folder, composed.saved, FREE, "out=")
    less = [f"{key}={value}" for key, value in smaller.items()]
    overrides = [*cell.overrides, *less, f"run_dir={quoted(str(folder))}"]
    what = config_hash(composed.saved, FREE)
    steps = int(composed.tree["steps"])
    told = (cell.name, cell.axes, overrides, folder, steps, composed.tree, what)
    return Job(*told, chosen=cell.chosen)


def sweep(
    planned: Plan, places: Places = ALONE, config_dirs: Sequence[str] = (), rules: Rules = DEFAULT
) -> int:
    """Run what is not done, as many cells at a time as ``places`` says, and print a table.

    Returns 0, or 128 + signal. A diverged cell is a result. Raises SweepFailed if cells failed twice, and
    EnvError if the folder can't be written or a GPU is not there.
    """
    places = checked(places)
    work = Scheduler(planned, places, config_dirs, rules)
    _write_record(planned)
    work.table()
    done = sum(work.states[j.name] in ("finished", "diverged") for j in planned.jobs)
    left = f", {done} are done" if done else ""
    print_status(
        f"{planned.title}: {len(planned.jobs)} cells{left}; {planned.out}; 'ganlab status' tells how far"
    )
    with process.forward_signals_to(work.signals.append):
        threads = [threading.Thread(target=work.serve, args=(slot,)) for slot in range(places.slots)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)  # in pieces: signals come to the main thread
    rows = work.table()
    scale = "" if planned.scale.whole else f" ({planned.scale})"
    shown = [{k: v for k, v in row.items() if k not in ("run folder", "log")} for row in rows]
    process.print_table(f"{planned.title}{scale}: {planned.out}", list(shown[0]), shown)
    process.print_failures(rows, "cell")
    if work.signals:
        print_status(f"stopped by {Signals(work.signals[0]).name}; the same command continues")
        return 128 + work.signals[0]
    if failed := [r["cell"] for r in rows if r["state"] not in ("finished", "diverged")]:
        what = f"{len(failed)} of {len(rows)} cells failed: {', '.join(failed)}"
        again = "the same command" if rules.retry else "retry=failed"
        raise SweepFailed(str(planned.out), what, f"{again} runs those again")
    if diverged := sum(r["state"] == "diverged" for r in rows):
        print_status(f"{diverged} of {len(rows)} cells diverged: a result, not a failure")
    return 0


def checked(places: Places) -> Places:
    """With the GPUs to spread over filled in. Raises EnvError naming one that is not there."""
    count = len(gpu_id())
    if absent := [gpu for gpu in places.gpus if gpu >= count]:
        there = (
            f"this machine has {', '.join(map(str, range(count)))}" if count else "no CUDA device was found"
        )
        raise EnvError("gpus", f"{absent[0]} is not there: {there}", "leave gpus= out, or name those there")
    if not places.gpus and places.slots > 1 and count > 1:
        return places._replace(gpus=range(count))
    return places


def _write_record(planned: Plan) -> None:
    """``grid.json``; the cells of earlier sweeps of the folder (other seeds) stay in it."""
    record, path = planned.record(), planned.out / "grid.json"
    before = process.read_json_leniently(path)
    if isinstance(before.get("cells"), list):
        mine = {cell["name"] for cell in record["cells"]}
        others = [c for c in before["cells"] if isinstance(c, dict) and c.get("name") not in mine]
        record["cells"] = [*others, *record["cells"]]
    write_json(path, record)
