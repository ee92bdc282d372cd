"""``ganlab train -m``: every combination checked before the first starts, then each in a process of its own.

Hydra's launchers (one after the other, joblib, a cluster's) run the cells (``launch.py``). Finished ones are
skipped, unfinished ones continued, failed ones tried once more; what another sweep of the same command works
on is left to it. The books of a command (``ledger.py``) lie in a folder of its own, by a hash of its cells.
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
from ganlab.sweeps.ledger import TRIES, Ledger
from ganlab.sweeps.plan import DEFAULT, Job, Rules, check_folder, config_hash, end_status
from ganlab.sweeps.process import print_status

PLACE = Path("outputs/.sweeps")
WAIT = 2.0  # seconds between looks at cells that another process works on
OVER = ("finished", "diverged")


def sweep(overrides: Sequence[str], config_dirs: Sequence[str] = (), rules: Rules = DEFAULT) -> int:
    """Run all combinations and print a table of them. Returns 0, or 128 + N after signal N.

    A diverged run is a result and counts as done. Raises ConfigError before anything starts, if any
    combination has a mistake; SweepFailed at the end, if any run failed.
    """
    line = command_line(overrides, config_dirs, multirun=True)
    if line.mistakes:
        raise ConfigError(line.mistakes)
    cells = _checked(line, config_dirs, rules.most)
    named = hashlib.sha256("".join(cell.identity for cell in cells).encode()).hexdigest()[:10]
    books = Ledger(PLACE / named, rules.stall_s)
    place = launchers.new_call_folder(books.place)
    books.begin(cells)
    kept = {
        c.name for c in cells if not rules.retry and books.noted(c.name).get("state") == "failed"
    }  # failed in an earlier sweep, and left at that
    left = [c for c in cells if not end_status(c.folder, c.steps) and c.name not in kept]
    print_status(
        f"{len(cells)} runs, {len(cells) - len(left)} of them over; what each says is in {books.place}"
    )
    failure: Exception | None = None
    others = list[Job]()  # whatever happens to one of them, the rest is waited for
    with process.forward_signals_to(lambda signum: launchers.write_signal(place, signum)):
        while left:
            try:
                launchers.launch(line, left, place, books, rules)
            except ConfigError:
                raise
            except Exception as error:  # a launcher that broke: the cells' own failures are in the books
                failure = error
            others = [
                c
                for c in {c.name: c for c in (*others, *left)}.values()
                if _state(c, place, books) == "elsewhere"
            ]
            left = _left_by_others(others, place, books)
            place = place if not left else launchers.new_call_folder(books.place)
    stopped = launchers.read_signals(place)
    rows = [_row(cell, _state(cell, place, books), books) for cell in cells]
    process.write_csv(books.place / "summary.csv", rows)
    shown = [{k: v for k, v in row.items() if k != "log"} for row in rows]
    process.print_table(f"sweep {books.place}", ["#", *list(shown[0])[1:]], shown)
    process.print_failures(rows, "number")
    if stopped:
        print_status(f"stopped by {Signals(stopped[0]).name}; the same command continues")
        return 128 + stopped[0]
    if failed := [r for r in rows if r["state"] not in OVER]:
        if failure is not None and all(r["state"] == "pending" for r in failed):
            what = f"no run has begun ({type(failure).__name__}: {str(failure)[:120]})"
            fix = "choose one that works here; several 'ganlab sweep' on one folder share its cells too"
            raise EnvError("hydra/launcher", process.table_text(what), fix)
        what = f"{len(failed)} of {len(rows)} runs failed: {', '.join(str(r['number']) for r in failed)}"
        if failure is not None and any(r["state"] in ("pending", "lost") for r in failed):
            what = f"{what} ({type(failure).__name__}: {failure})"
        again = "the same command" if rules.retry else "sweep.retry=failed"
        raise SweepFailed("sweep", process.table_text(what), f"{again} runs those again")
    if diverged := sum(r["state"] == "diverged" for r in rows):
        print_status(f"{diverged} of {len(rows)} runs diverged: a result, not a failure")
    return 0


# ---- before


def _checked(line: CommandLine, config_dirs: Sequence[str], most: int) -> list[Job]:
    """All combinations, each with a config that is right and a folder of its own. Raises ConfigError."""
    from ganlab.runs.naming import FREE, run_path

    cells: list[Job] = []
    wrong: dict[Mistake, list[str]] = {}
    combinations = _expanded(line, most)
    swept = {g.key for g in line.overrides if g.sweep}
    for number, texts in enumerate(combinations):
        label = " ".join(t.lstrip("+") for t in texts if t.lstrip("+").partition("=")[0] in swept) or "alone"
        try:
            composed = compose.compose(texts, config_dirs)
            with contextlib.suppress(DataError, EnvError):  # that run's own affair
                compose.build(composed)
            tree = composed.tree
            path = run_path(composed.choices, composed.overrides, tree["setting"], tree["seed"])
            folder = Path(tree["run_dir"] or path)
            check_folder(folder, composed.saved, FREE)
        except ConfigError as error:
            for mistake in error.mistakes:
                wrong.setdefault(mistake, []).append(label)
            continue
        what = config_hash(composed.saved, FREE)
        cells.append(Job(f"{number:03d}", {}, texts, folder, int(tree["steps"]), {}, what, label))
    if wrong:
        raise ConfigError(
            m if len(where) == len(combinations) else m._replace(what=f"{m.what} (with {where[0]})")
            for m, where in wrong.items()
        )
    first: dict[Path, str] = {}
    for cell in cells:
        if (twin := first.setdefault(cell.folder, cell.name)) != cell.name:
            what = f"runs {int(twin)} and {int(cell.name)} would share {cell.folder}"
            raise ConfigError(
                "run_dir", what, "leave it out, or write 'run_dir=outputs/x/${setting}-s${seed}'"
            )
    return cells


def _expanded(line: CommandLine, most: int) -> list[list[str]]:
    """Hydra's own expansion of a sweep: the overrides of each combination, counted before they are made."""
    words = [g.text for g in line.overrides if not g.key.startswith("hydra")]
    try:
        parsed = OverridesParser.create().parse_overrides(words)
        count = math.prod(map(_count, parsed))
        if not 0 < count <= most:
            fix = f"at most {most}, at least one; sweep over less, or raise sweep.max_jobs="
            raise ConfigError("sweep", f"has {count} combinations", fix)
        (combinations,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        what = str(error).splitlines()[0]
        raise ConfigError("sweep", what, "sweep with a,b,c or range(start,stop,step) or glob(*)") from error
    return [list(c) for c in combinations]


def _count(override: Override) -> int:
    """How many values an override has."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None and value.step:
        return max(0, math.ceil((value.stop - value.start) / value.step))
    return 1


# ---- afterwards


def _state(cell: Job, place: Path, books: Ledger) -> str:
    """``finished``, ``diverged``, ``failed``, ``stopped``, ``pending``, ``elsewhere``, or ``lost``."""
    if over := end_status(cell.folder, cell.steps):
        return over
    note, said = books.noted(cell.name), launchers.read_outcome(place, cell.name)
    if said:
        return said
    if books.holder(cell):
        return "elsewhere"
    if note.get("id") != books.before.get(cell.name):
        return str(note.get("state"))
    if launchers.read_signals(place):
        return "pending"
    return (
        "failed" if note.get("state") == "failed" else "lost" if books.log(cell.name).exists() else "pending"
    )


def _left_by_others(cells: Sequence[Job], place: Path, books: Ledger) -> list[Job]:
    """Wait for cells that others work on: those that nobody has finished, and that are free now."""
    waiting = list(cells)
    if waiting:
        print_status(f"{len(waiting)} runs are worked on by others; waiting for them")
    free = list[Job]()
    while waiting and not launchers.read_signals(place) and not free:
        time.sleep(WAIT)
        waiting = [c for c in waiting if not end_status(c.folder, c.steps) and books.tries(c.name) < TRIES]
        for cell in list(waiting):
            claim = books.claim(cell.name)
            if claim is not None:
                claim.release()
                if not books.holder(cell):
                    free.append(cell)
            if books.stall_s and books.still(cell) > books.stall_s:
                waiting.remove(cell)
    return free if not launchers.read_signals(place) else []


def _row(cell: Job, state: str, books: Ledger) -> dict[str, Any]:
    """What a table says of a cell."""
    row = {"number": int(cell.name), "overrides": cell.label, **books.row(cell, state)}
    if state == "lost":
        row |= {"state": "failed", "error": "its process was lost, with what launched it"}
    del row["packed"], row["it/s"]
    return row


def hydra_itself(rest: Sequence[str], overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> int:
    """``--info``, ``--hydra-help``, ``--cfg hydra|all``: Hydra's own answers about this config.

    ``rest``: the options. Raises ConfigError for mistakes of the overrides.
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
