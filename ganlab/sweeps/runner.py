"""Run a plan: ``ganlab sweep grid=NAME`` and ``ganlab train -m``.

Finished cells are skipped, unfinished ones continued, failed ones retried once. A cell that another process
runs is left to it, so several sweeps of one folder share the work (``scheduler.py``). ``grid.json`` describes
the sweep, ``cells.csv`` its progress; ``CELL.log`` in the ledger is the output of each run (``ledger.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from signal import Signals
from typing import Any

from ganlab.config.overrides import ParsedOverride
from ganlab.errors import EnvError, SweepFailed
from ganlab.sweeps import launchers, process
from ganlab.sweeps.ledger import Ledger
from ganlab.sweeps.placement import DEFAULT_RULES, ONE_PROCESS, Placement, Rules
from ganlab.sweeps.plan import Plan
from ganlab.sweeps.process import print_status
from ganlab.sweeps.scheduler import Scheduler
from ganlab.system.files import write_json
from ganlab.system.signals import handled
from ganlab.tables import print_table
from ganlab.text import clean

OVER = ("finished", "diverged")


def sweep(
    plan: Plan,
    placement: Placement = ONE_PROCESS,
    config_dirs: Sequence[str] = (),
    rules: Rules = DEFAULT_RULES,
    launcher_overrides: Sequence[ParsedOverride] = (),
) -> int:
    """Run all cells that are not over, and print a table.

    Returns 0, or 128 + signal. A diverged cell is a result. Raises SweepFailed if cells failed twice,
    ConfigError for the launcher's settings, EnvError if it does not work or the folder can't be written.
    """
    launcher = launchers.choose(launcher_overrides, plan, config_dirs)
    ledger = Ledger(plan.ledger, rules.stall_s)
    ledger.begin(plan.jobs)
    signals: list[int] = []
    scheduler = Scheduler(
        plan.jobs,
        ledger,
        rules,
        placement,
        config_dirs,
        signals=signals.copy,
        table=plan.out / "cells.csv",
    )
    _write_grid_json(plan)
    scheduler.write_table()
    num_done = sum(state in OVER for state in scheduler.states.values())
    done = f", {num_done} already done" if num_done else ""
    print_status(
        f"{plan.title}: {len(plan.jobs)} cells{done}; {plan.out}; 'ganlab status' shows the progress"
    )

    def stop(signum: int) -> None:
        signals.append(signum)
        if launcher is not None:
            launcher.stop(signum)

    failure: Exception | None = None
    with handled(lambda signum, _: stop(signum)):
        if launcher is None:
            scheduler.run_locally()
        else:
            failure = scheduler.launch(lambda jobs: launcher.run(jobs, ledger))
    return _report(plan, scheduler.write_table(), rules, signals, failure)


def _report(
    plan: Plan, rows: list[dict[str, Any]], rules: Rules, signals: list[int], failure: Exception | None
) -> int:
    """Print the table; returns the exit code. Raises SweepFailed or EnvError if cells are left."""
    scale = "" if plan.scale.whole else f" ({plan.scale})"
    hidden = ("run folder", "log") if plan.grid else ("it/s", "log")
    columns = [{k: v for k, v in row.items() if k not in hidden} for row in rows]
    print_table(f"{plan.title}{scale}: {plan.out}", list(columns[0]), (row.values() for row in columns))
    for row in (r for r in rows if r["state"] == "failed"):
        print_status(clean(f"{row['cell']}: {row['error']} (exit code {row['exit']}); {row['log']}", 1000))
    if signals:
        print_status(f"stopped by {Signals(signals[0]).name}; the same command continues the sweep")
        return 128 + signals[0]
    why = f" ({type(failure).__name__}: {str(failure)[:120]})" if failure is not None else ""
    if failed := [r for r in rows if r["state"] not in OVER]:
        if failure is not None and all(r["state"] == "pending" for r in failed):
            fix = "choose a launcher that works here, or omit it"
            raise EnvError("hydra/launcher", clean(f"no run was started{why}", 500), fix)
        what = f"{len(failed)} of {len(rows)} cells failed: {', '.join(r['cell'] for r in failed)}"
        if any(r["state"] != "failed" for r in failed):
            what += why
        command = "the same command" if rules.retry else "retry=failed"
        raise SweepFailed(str(plan.out), clean(what, 500), f"{command} runs them again")
    if diverged := sum(r["state"] == "diverged" for r in rows):
        print_status(f"{diverged} of {len(rows)} cells diverged (a result, not a failure)")
    return 0


def _write_grid_json(plan: Plan) -> None:
    """Write ``grid.json``, keeping the cells of earlier sweeps of the folder (other seeds)."""
    record, path = plan.record(), plan.out / "grid.json"
    previous = process.read_json_leniently(path)
    if isinstance(previous.get("cells"), list):
        names = {cell["name"] for cell in record["cells"]}
        others = [c for c in previous["cells"] if isinstance(c, dict) and c.get("name") not in names]
        record["cells"] = [*others, *record["cells"]]
    write_json(path, record)
