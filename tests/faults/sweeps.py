"""Sweeps: cells that crash, hang or lie stay alone; killed sweeps lose nothing; several share the work."""

from __future__ import annotations

import csv
import functools
import json
import os
import random
import re
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ganlab.sweeps import ledger

from . import cells
from .base import Case, Figure, Forked, nothing_lost, records, state_digest, tiny, until

STEPS = 8
SIGNALS = ("TERM", "INT", "USR1")
NAN = "[optimizer.lr=1e30, seed=50]"
REASONS = {  # way -> exit code, and what its row says
    "raise": (1, "RuntimeError: injected"),
    "exit": (3, "exit code 3"),
    "abort": (134, "killed by SIGABRT"),
    "segfault": (139, "killed by SIGSEGV"),
    "kill": (137, r"killed by SIGKILL \(out of memory\?\)"),
    "memory": (5, "memory"),
    "hang": (134, "no progress for 0.05 minutes"),
}


def grid(folder: Path, seeds: Sequence[int], ways: Sequence[str] = ()) -> None:
    """A grid file ``conf/grid/g.yaml``: a cell for each seed and each way of sabotage."""
    words = [w for w in tiny(f"steps={STEPS}")[1:] if not w.startswith("run_dir=")]
    axis = {f"s{seed}": f"seed={seed}" for seed in seeds}
    axis |= {way: f"seed={cells.FIRST + cells.WAYS.index(way)}" for way in ways if way != "nan"}
    axis |= {"nan": NAN} if "nan" in ways else {}
    labels = "\n".join(f"      {label}: {own}" for label, own in axis.items())
    (folder / "conf" / "grid").mkdir(parents=True, exist_ok=True)
    text = f"title: Cells\nblocks:\n- overrides: {json.dumps(words)}\n  axes:\n    cell:\n{labels}\n"
    (folder / "conf" / "grid" / "g.yaml").write_text(text)


def sweep(folder: Path, *words: str, sabotaged: bool = False) -> Forked:
    """``ganlab sweep`` of that grid into the folder ``out``, with forked cells."""
    line = ["sweep", "--config-dir", "conf", "grid=g", "out=out", "jobs=2", *words]
    return Forked(*line, cwd=folder, before=functools.partial(cells.fork_cells, sabotaged))


def multirun(folder: Path, seeds: Sequence[int], *words: str) -> Forked:
    """``ganlab train -m`` of those seeds into ``out``, with forked cells."""
    own = tiny(f"steps={STEPS}", "run_dir=out/s${seed}", f"seed={','.join(map(str, seeds))}", *words)
    return Forked(own[0], "-m", *own[1:], cwd=folder, before=cells.fork_cells)


def events(folder: Path, kind: str) -> list[dict[str, object]]:
    """The lines of a kind in the sweep's books."""
    places = [*folder.glob("out/.sweep"), *folder.glob("outputs/.sweeps/*")]
    return [row for place in places for row in ledger.read_records(place) if row.get("event") == kind]


def table(folder: Path) -> dict[str, dict[str, str]]:
    """The sweep's table by the folder's name of each run."""
    (path,) = [*folder.glob("out/cells.csv"), *folder.glob("outputs/.sweeps/*/cells.csv")]
    with open(path, newline="") as file:
        return {Path(row["run folder"]).name: row for row in csv.DictReader(file)}


@functools.cache
def expected(seed: int) -> str:
    """The digest of an uninterrupted run."""
    with tempfile.TemporaryDirectory() as folder:
        done = Forked(*tiny(f"steps={STEPS}", f"seed={seed}"), cwd=Path(folder)).wait()
        assert done.code == 0, done.err
        return state_digest(Path(folder) / "run")


def whole(folder: Path, seeds: Sequence[int]) -> None:
    """Each cell was trained once, to the same state as if nothing had happened."""
    for seed in seeds:
        run = folder / "out" / f"s{seed}"
        nothing_lost(run)
        steps = [r["step"] for r in records(run) if r["kind"] == "train"]
        assert steps == list(range(1, STEPS + 1)), f"{run.name} trained steps {steps}"
        assert state_digest(run) == expected(seed), f"{run.name} ended in another state"
    over = [row["cell"] for row in events(folder, "ended") if row["state"] == "finished"]
    assert len(over) == len(set(over)), f"finished twice: {over}"


# ---- sabotage


def sabotaged(folder: Path, seeds: Sequence[int], ways: Sequence[str]) -> None:
    """All but the sabotaged cells are done; each of those has its row; the same command then mends all."""
    grid(folder, seeds, ways)
    done = sweep(folder, "stall_minutes=0.05", sabotaged=True).wait(180)
    assert done.code == 8, done.err[-1500:]
    rows = table(folder)
    for seed in seeds:
        assert rows[f"s{seed}"]["state"] == "finished", rows[f"s{seed}"]
    for way in ways:
        row = rows[way]
        code, why = REASONS.get(way, (6, r"lr|loss|not finite|weight"))
        assert row["state"] == ("diverged" if way == "nan" else "failed"), row
        assert int(row["exit"]) in ((code, 137) if way == "hang" else (code,)), row
        assert re.search(why, row["error"]), row
        assert (folder / row["log"]).is_file(), row
        assert way == "nan" or re.search(rf"{way}: .*\(exit code {row['exit']}\)", done.err), done.err[-900:]
    whole(folder, seeds)
    began = len(events(folder, "started"))
    again = sweep(folder, "retry=never", "stall_minutes=0.05", sabotaged=True).wait()
    assert again.code == 8, again.err[-900:]
    assert len(events(folder, "started")) == began, "a rerun with retry=never ran a cell"
    mended = sweep(folder).wait()
    assert mended.code == 0, mended.err[-900:]
    ran = [row["cell"] for row in events(folder, "started")][began:]
    assert sorted(map(str, ran)) == sorted(w for w in ways if w != "nan"), ran
    for way in (w for w in ways if w != "nan"):
        nothing_lost(folder / "out" / way)
        assert state_digest(folder / "out" / way) == expected(cells.FIRST + cells.WAYS.index(way)), way


# ---- killed and stopped sweeps


def killed(folder: Path, seeds: Sequence[int], times: int, random_: random.Random, door: str) -> None:
    """SIGKILL of the sweep, alone or with its cells, then the same command: as if nothing had happened."""
    grid(folder, seeds)
    start: Callable[[], Forked] = (
        functools.partial(sweep, folder) if door == "sweep" else functools.partial(multirun, folder, seeds)
    )
    for _ in range(times):
        process, before = start(), lines(folder)
        aim = before + random_.randint(0, max(1, STEPS * len(seeds) - before - 2))
        until(lambda aim=aim: lines(folder) >= aim and any(folder.rglob("grid.json")), process)  # type: ignore[misc]
        process.kill(signal.SIGKILL)
        if random_.random() < 0.5:  # a node that dies takes all
            for lock in (folder / "out").glob("*/.lock"):
                if match := re.match(r"(\d+)@", lock.read_text()):
                    with_its_group(int(match[1]))
        process.wait()
    done = start().wait(120)
    assert done.code == 0, done.err[-900:]
    assert len(table(folder)) == len(seeds)
    whole(folder, seeds)


def with_its_group(pid: int) -> None:
    """SIGKILL of a cell, if it lives."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def lines(folder: Path) -> int:
    """Records of training in all cells so far."""
    return sum(path.read_bytes().count(b'"train"') for path in (folder / "out").glob("*/metrics.jsonl"))


def stopped(folder: Path, seeds: Sequence[int], name: str, door: str) -> None:
    """A signal to the sweep: running cells save, the rest stays pending; the same command ends it all."""
    grid(folder, seeds)
    process = sweep(folder) if door == "sweep" else multirun(folder, seeds)
    until(lambda: lines(folder) >= 3, process)
    signum = getattr(signal, f"SIG{name}")
    process.kill(signum)
    done = process.wait()
    assert done.code == 128 + signum, (done.code, done.err[-900:])
    states = [row["state"] for row in table(folder).values()]
    assert "stopped" in states, states
    assert states[-1] == "pending", states
    for run in (folder / "out").glob("s*"):
        nothing_lost(run)
    done = (sweep(folder) if door == "sweep" else multirun(folder, seeds)).wait()
    assert done.code == 0, done.err[-900:]
    whole(folder, seeds)


# ---- several sweeps


def shared(folder: Path, seeds: Sequence[int], many: int, door: str, kill: bool) -> None:
    """Several sweeps of one folder at once: each cell runs once, all of them end well and tell the same."""
    grid(folder, seeds)
    both = [sweep(folder) if door == "sweep" else multirun(folder, seeds) for _ in range(many)]
    if kill:
        until(lambda: lines(folder) >= STEPS, both[0])
        both[0].kill(signal.SIGKILL)
        both.pop(0).wait()
    for process in both:
        done = process.wait(120)
        assert done.code == 0, done.err[-900:]
    whole(folder, seeds)
    began = [str(row["cell"]) for row in events(folder, "started")]
    assert kill or len(began) == len(set(began)) == len(seeds), began
    assert kill or len({row["by"] for row in events(folder, "started")}) > 1 or door != "sweep"


def sabotage_cases() -> list[Case]:
    ways, seeds = [*cells.WAYS, "nan"], range(12)
    name = f"{len(seeds)} sound cells beside {', '.join(ways)}"
    return [Case(name, lambda folder: sabotaged(folder, seeds, ways), len(ways))]


def kill_cases() -> list[Case]:
    def case(number: int, door: str) -> Case:
        name = f"4 kills of ganlab {door}, seed {number}"
        return Case(name, lambda folder: killed(folder, range(6), 4, random.Random(number), door), 4)

    return [case(number, door) for number, door in enumerate(["sweep", "train -m"] * 2)]


def stop_cases() -> list[Case]:
    def case(name: str, door: str) -> Case:
        return Case(f"SIG{name} to ganlab {door}", lambda folder: stopped(folder, range(3), name, door))

    return [case(name, door) for name in SIGNALS for door in ("sweep", "train -m")]


def share_cases() -> list[Case]:
    def case(many: int, door: str, kill: bool) -> Case:
        name = f"{many} of ganlab {door}{', one killed' if kill else ''}"
        return Case(name, lambda folder: shared(folder, range(8), many, door, kill))

    return [case(4, "sweep", False), case(2, "train -m", False), case(3, "sweep", True)]


FIGURES = [
    Figure("sabotage", "Sweeps: a cell that crashes, hangs or lies stays alone", sabotage_cases),
    Figure("sweepkill", "Sweeps: kill -9: every cell once, identical", kill_cases),
    Figure("sweepstop", "Sweeps: signals: cells saved, the rest pending", stop_cases),
    Figure("sweepshare", "Sweeps: several on one folder: each cell once", share_cases),
]
