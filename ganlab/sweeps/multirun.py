"""``ganlab train -m``: check every combination of overrides, then run each in its own process.

Hydra's launchers (sequential, joblib, or a cluster's) run the cells (``launchers.py``). Finished cells are
skipped, unfinished ones continued, failed ones retried once; a cell that another sweep of the same command
runs is left to it. Each command has its own ledger (``ledger.py``), in a folder named by a hash of its cells.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException

from ganlab.config import compose
from ganlab.config.hydra_compose import hydra_over, unread
from ganlab.config.overrides import CommandLine, command_line
from ganlab.errors import ConfigError, DataError, EnvError, Mistake, SweepFailed
from ganlab.sweeps import launchers, process
from ganlab.sweeps.ledger import MAX_TRIES, Ledger
from ganlab.sweeps.plan import DEFAULT_RULES, Job, Rules, check_folder, final_status
from ganlab.sweeps.process import print_status

SWEEPS_DIR = Path("outputs/.sweeps")
WAIT = 2.0  # seconds between checks of cells that another process runs
OVER = ("finished", "diverged")


def sweep(overrides: Sequence[str], config_dirs: Sequence[str] = (), rules: Rules = DEFAULT_RULES) -> int:
    """Run all combinations and print a table. Returns 0, or 128 + N after signal N.

    A diverged run is a result and counts as done. Raises ConfigError before anything starts if any
    combination has a mistake, and SweepFailed at the end if any run failed.
    """
    line = command_line(overrides, config_dirs, multirun=True)
    if line.mistakes:
        raise ConfigError(line.mistakes)
    cells = _make_cells(line, config_dirs, rules.max_cells)
    sweep_hash = hashlib.sha256("".join(cell.identity for cell in cells).encode()).hexdigest()[:10]
    ledger = Ledger(SWEEPS_DIR / sweep_hash, rules.stall_s)
    call_dir = launchers.new_call_folder(ledger.folder)
    ledger.record_sweep(cells)
    not_retried = {
        c.name for c in cells if not rules.retry and ledger.last_try(c.name).get("state") == "failed"
    }
    left = [c for c in cells if not final_status(c.folder, c.steps) and c.name not in not_retried]
    print_status(f"{len(cells)} runs, {len(cells) - len(left)} already over; logs are in {ledger.folder}")
    failure: Exception | None = None
    elsewhere = list[Job]()  # waited for as long as any of them runs
    with process.forward_signals_to(lambda signum: launchers.write_signal(call_dir, signum)):
        while left:
            try:
                launchers.launch(line, left, call_dir, ledger, rules)
            except ConfigError:
                raise
            except Exception as error:  # the launcher broke; failures of cells are in the ledger
                failure = error
            elsewhere = [
                c
                for c in {c.name: c for c in (*elsewhere, *left)}.values()
                if _state(c, call_dir, ledger) == "elsewhere"
            ]
            left = _wait_for_others(elsewhere, call_dir, ledger)
            call_dir = call_dir if not left else launchers.new_call_folder(ledger.folder)
    signals = launchers.read_signals(call_dir)
    rows = [_row(cell, _state(cell, call_dir, ledger), ledger) for cell in cells]
    process.write_csv(ledger.folder / "summary.csv", rows)
    columns = [{k: v for k, v in row.items() if k != "log"} for row in rows]
    process.print_table(f"sweep {ledger.folder}", ["#", *list(columns[0])[1:]], columns)
    process.print_failures(rows, "number")
    if signals:
        print_status(f"stopped by {Signals(signals[0]).name}; the same command continues the sweep")
        return 128 + signals[0]
    if failed := [r for r in rows if r["state"] not in OVER]:
        if failure is not None and all(r["state"] == "pending" for r in failed):
            what = f"no run was started ({type(failure).__name__}: {str(failure)[:120]})"
            fix = "choose a launcher that works here, or share the cells of one folder: 'ganlab sweep'"
            raise EnvError("hydra/launcher", process.table_text(what), fix)
        what = f"{len(failed)} of {len(rows)} runs failed: {', '.join(str(r['number']) for r in failed)}"
        if failure is not None and any(r["state"] in ("pending", "lost") for r in failed):
            what = f"{what} ({type(failure).__name__}: {failure})"
        command = "the same command" if rules.retry else "sweep.retry=failed"
        raise SweepFailed("sweep", process.table_text(what), f"{command} runs them again")
    if diverged := sum(r["state"] == "diverged" for r in rows):
        print_status(f"{diverged} of {len(rows)} runs diverged (a result, not a failure)")
    return 0


# ---- composing the cells


def _make_cells(line: CommandLine, config_dirs: Sequence[str], max_cells: int) -> list[Job]:
    """Compose and check all combinations, each with its own folder. Raises ConfigError."""
    from ganlab.runs.naming import FREE, config_hash, run_path

    cells: list[Job] = []
    mistakes: dict[Mistake, list[str]] = {}
    combinations = _expand(line, max_cells)
    swept = {g.key for g in line.overrides if g.sweep}
    for number, texts in enumerate(combinations):
        label = " ".join(t.lstrip("+") for t in texts if t.lstrip("+").partition("=")[0] in swept) or "alone"
        try:
            composed = compose.compose(texts, config_dirs)
            with contextlib.suppress(DataError, EnvError):  # reported when the cell runs
                compose.build(composed)
            tree = composed.tree
            path = run_path(composed.choices, composed.overrides, tree["setting"], tree["seed"])
            folder = Path(tree["run_dir"] or path)
            check_folder(folder, composed.saved, FREE)
        except ConfigError as error:
            for mistake in error.mistakes:
                mistakes.setdefault(mistake, []).append(label)
            continue
        config = config_hash(composed.saved)
        cells.append(Job(f"{number:03d}", {}, texts, folder, int(tree["steps"]), {}, config, label))
    if mistakes:
        raise ConfigError(
            m if len(labels) == len(combinations) else m._replace(what=f"{m.what} (with {labels[0]})")
            for m, labels in mistakes.items()
        )
    first: dict[Path, str] = {}
    for cell in cells:
        if (twin := first.setdefault(cell.folder, cell.name)) != cell.name:
            what = f"runs {int(twin)} and {int(cell.name)} would share {cell.folder}"
            raise ConfigError(
                "run_dir", what, "leave it out, or write 'run_dir=outputs/x/${setting}-s${seed}'"
            )
    return cells


def _expand(line: CommandLine, max_cells: int) -> list[list[str]]:
    """Expand a sweep as Hydra does, into the overrides of each combination. Counts them first."""
    words = [g.text for g in line.overrides if not g.key.startswith("hydra")]
    try:
        parsed = OverridesParser.create().parse_overrides(words)
        count = math.prod(map(_count, parsed))
        if not 0 < count <= max_cells:
            fix = "sweep over fewer values, or raise sweep.max_jobs="
            raise ConfigError("sweep", f"{count} combinations; must be 1 to {max_cells}", fix)
        (combinations,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        what = str(error).splitlines()[0]
        raise ConfigError("sweep", what, "sweep with a,b,c or range(start,stop,step) or glob(*)") from error
    return [list(c) for c in combinations]


def _count(override: Override) -> int:
    """The number of values of an override."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None and value.step:
        return max(0, math.ceil((value.stop - value.start) / value.step))
    return 1


# ---- the cells' states


def _state(cell: Job, call_dir: Path, ledger: Ledger) -> str:
    """``finished``, ``diverged``, ``failed``, ``stopped``, ``pending``, ``elsewhere``, or ``lost``."""
    if status := final_status(cell.folder, cell.steps) or launchers.read_outcome(call_dir, cell.name):
        return status
    if ledger.holder(cell):
        return "elsewhere"
    last = ledger.last_try(cell.name)
    if last.get("id") != ledger.previous_ids.get(cell.name):
        return str(last.get("state"))
    if launchers.read_signals(call_dir):
        return "pending"
    if last.get("state") == "failed":
        return "failed"
    return "lost" if ledger.log(cell.name).exists() else "pending"


def _wait_for_others(cells: Sequence[Job], call_dir: Path, ledger: Ledger) -> list[Job]:
    """Wait for cells that other sweeps run; returns those that became free without being over."""
    waiting = list(cells)
    if waiting:
        print_status(f"waiting for {len(waiting)} runs of other sweeps")
    free = list[Job]()
    while waiting and not launchers.read_signals(call_dir) and not free:
        time.sleep(WAIT)
        waiting = [
            c
            for c in waiting
            if not final_status(c.folder, c.steps) and ledger.failed_tries(c.name) < MAX_TRIES
        ]
        for cell in list(waiting):
            claim = ledger.claim(cell.name)
            if claim is not None:
                claim.release()
                if not ledger.holder(cell):
                    free.append(cell)
            if ledger.stall_s and ledger.idle_seconds(cell) > ledger.stall_s:
                waiting.remove(cell)
    return free if not launchers.read_signals(call_dir) else []


def _row(cell: Job, state: str, ledger: Ledger) -> dict[str, Any]:
    """A cell's row in the table."""
    row = {"number": int(cell.name), "overrides": cell.label, **ledger.row(cell, state)}
    if state == "lost":
        row |= {"state": "failed", "error": "its process died together with its launcher"}
    del row["packed"], row["it/s"]
    return row


def run_hydra_option(rest: Sequence[str], overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> int:
    """Let Hydra handle ``--info``, ``--hydra-help`` or ``--cfg hydra|all``.

    ``rest``: the options. Raises ConfigError for mistakes in the overrides.
    """
    from hydra._internal.utils import get_args_parser

    line = command_line(overrides, config_dirs, multirun=True)
    if line.mistakes:
        raise ConfigError(line.mistakes)
    logging.raiseExceptions = False  # else `--info | head` prints one traceback a line
    parser = get_args_parser()
    args = parser.parse_args(list(rest))
    with hydra_over(line.dirs) as hydra:
        args.overrides = [t for t in line.texts() if t.startswith("hydra") or not args.hydra_help]
        if args.hydra_help:
            hydra.hydra_help(config_name="train", args_parser=parser, args=args)
        elif args.cfg:
            with unread():
                hydra.show_cfg("train", args.overrides, args.cfg, args.package, args.resolve)
        else:
            hydra.show_info(args.info or "all", config_name="train", overrides=args.overrides)
    return 0
