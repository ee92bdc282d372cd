"""``ganlab sweep grid=NAME``: the cells of a grid, each in a process of its own, until all are done.

Finished cells are skipped, unfinished ones continued, failed ones tried once more; a cell that another
process works on is left to it, so several sweeps of one folder share the work. ``grid.json`` says what the
folder is, ``cells.csv`` how far it is, ``.sweep/CELL.log`` what each run said.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any

from ganlab import config, jobs, tree
from ganlab import grid as grids
from ganlab.disk import owner_of, write_json
from ganlab.errors import ConfigError, DataError, EnvError, Mistake, SweepFailed
from ganlab.jobs import say
from ganlab.overrides import quoted
from ganlab.run_folder import RunFolder

WAIT = 2.0  # seconds between looks at a cell that another process works on


@dataclass(frozen=True)
class Job:
    """A cell that was composed and found right. ``overrides``: all of ``ganlab train``'s words."""

    name: str
    axes: dict[str, str]
    overrides: list[str]
    folder: Path
    steps: int
    tree: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A grid at a scale, in a folder."""

    grid: str
    title: str
    scale: grids.Scale
    out: Path
    jobs: list[Job]

    def record(self) -> dict[str, Any]:
        """``grid.json``: what reports and ``ganlab status`` read."""
        told = [
            {"name": j.name, "axes": j.axes, "overrides": j.overrides, "run": j.folder.name, "steps": j.steps}
            for j in self.jobs
        ]
        scale = {"updates": self.scale.updates, "width": self.scale.width}
        return {"format": 1, "grid": self.grid, "title": self.title, "scale": scale, "cells": told}


def plan(
    name: str, words: Sequence[str], scale: grids.Scale, out: str | None, config_dirs: Sequence[str] = ()
) -> Plan:
    """Every cell composed and checked, before anything runs. Raises ConfigError with all mistakes."""
    from ganlab.config_files import user_dirs

    chosen, rest = grids.restrict(grids.load(name, user_dirs(config_dirs)), words)
    place = Path(out) if out else Path("outputs") / grids.folder_name(name, scale, rest)
    found, wrong = list[Job](), dict[Mistake, list[str]]()
    cells = grids.cells(chosen, rest)
    for cell in cells:
        try:
            found.append(_job(cell, place, scale, rest, config_dirs))
        except ConfigError as error:
            for mistake in error.mistakes:
                wrong.setdefault(mistake, []).append(cell.name)
    if wrong:
        raise ConfigError(_told(wrong, len(cells), list(chosen.axes())))
    return Plan(name, chosen.title, scale, place, found)


def _told(wrong: Mapping[Mistake, list[str]], cells: int, axes: Sequence[str]) -> list[Mistake]:
    """Each mistake with a cell that has it, unless all have; an unknown key once: it may mean an axis."""
    told: dict[Any, Mistake] = {}
    for mistake, where in wrong.items():
        if mistake.what == tree.NO_KEY:
            near = tree.nearest(mistake.where, axes)
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
    folder = place / cell.name
    composed = config.compose(cell.overrides, config_dirs)
    smaller = grids.scaled(composed.tree, scale, words)
    for key, value in smaller.items():  # as the override will, without composing anew
        at, _, last = key.rpartition(".")
        for made in (composed.tree, composed.saved):
            (made[at] if at else made)[last] = value
    with contextlib.suppress(DataError, EnvError):  # that run's own affair
        config.build(composed)
    _check_folder(folder, composed.saved)
    less = [f"{key}={value}" for key, value in smaller.items()]
    overrides = [*cell.overrides, *less, f"run_dir={quoted(str(folder))}"]
    return Job(cell.name, cell.axes, overrides, folder, int(composed.tree["steps"]), composed.tree)


def _check_folder(folder: Path, saved: Mapping[str, Any]) -> None:
    """Raise ConfigError if a run of another config is in a cell's folder: its result is not this cell's."""
    from ganlab.facts import FREE

    run = RunFolder(folder)
    try:
        if run.config.exists():
            run.check_config(saved, FREE)
    except ConfigError as error:
        raise ConfigError(m._replace(fix=m.fix.replace("run_dir=", "out=")) for m in error.mistakes) from None
    except EnvError:
        pass  # that run's own affair


def sweep(planned: Plan, at_once: int = 1, config_dirs: Sequence[str] = ()) -> int:
    """Run what is not done, ``at_once`` cells at a time, and print a table. Returns 0, or 128 + signal.

    A diverged cell is a result. Raises SweepFailed if cells failed twice, EnvError if the folder can't be
    written.
    """
    logs = planned.out / ".sweep"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "mend its permissions, or choose another out="
        raise EnvError(str(planned.out), f"can't be made ({error.strerror})", fix) from error
    _write_record(planned)
    work = _Work(planned, at_once, config_dirs)
    work.table()
    done = sum(work.states[j.name] in ("finished", "diverged") for j in planned.jobs)
    left = f", {done} are done" if done else ""
    say(f"{planned.title}: {len(planned.jobs)} cells{left}; {planned.out}; 'ganlab status' tells how far")
    with jobs.signals_to(work.signals.append):
        threads = [threading.Thread(target=work.serve, args=(slot,)) for slot in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)  # in pieces: signals come to the main thread
    rows = work.table()
    scale = "" if planned.scale.whole else f" ({planned.scale})"
    jobs.print_table(f"{planned.title}{scale}: {planned.out}", list(rows[0]), rows)
    if work.signals:
        say(f"stopped by {Signals(work.signals[0]).name}; the same command continues")
        return 128 + work.signals[0]
    if failed := [r["cell"] for r in rows if r["state"] not in ("finished", "diverged")]:
        what = f"{len(failed)} of {len(rows)} cells failed: {', '.join(failed)}"
        raise SweepFailed(str(planned.out), what, "the same command runs those again")
    if diverged := sum(r["state"] == "diverged" for r in rows):
        say(f"{diverged} of {len(rows)} cells diverged: a result, not a failure")
    return 0


def _write_record(planned: Plan) -> None:
    """``grid.json``; the cells of earlier sweeps of the folder (other seeds) stay in it."""
    record, path = planned.record(), planned.out / "grid.json"
    before = jobs.peek(path)
    if isinstance(before.get("cells"), list):
        mine = {cell["name"] for cell in record["cells"]}
        others = [c for c in before["cells"] if isinstance(c, dict) and c.get("name") not in mine]
        record["cells"] = [*others, *record["cells"]]
    write_json(path, record)


def ended(folder: Path, steps: int) -> str | None:
    """``finished`` or ``diverged`` if the run in ``folder`` is over, by its ``result.json``."""
    result = jobs.peek(folder / "result.json")
    if result.get("status") == "diverged":
        return "diverged"
    reached = result.get("step")
    done = result.get("status") == "finished" and isinstance(reached, int) and reached >= steps
    return "finished" if done else None


class _Work:
    """The cells' states, shared by the threads that serve them."""

    def __init__(self, planned: Plan, at_once: int, config_dirs: Sequence[str]) -> None:
        self.plan, self.at_once = planned, at_once
        self.signals: list[int] = []
        self.lock = threading.Lock()
        self.states = {j.name: ended(j.folder, j.steps) or "pending" for j in planned.jobs}
        self.tries = dict.fromkeys(self.states, 0)
        self.codes: dict[str, int | None] = dict.fromkeys(self.states)
        self.seconds: list[float] = []
        self.env = dict(os.environ)
        if config_dirs:
            dirs = [str(Path(d).resolve()) for d in config_dirs]
            self.env["GANLAB_CONFIGS"] = os.pathsep.join([*dirs, self.env.get("GANLAB_CONFIGS", "")])
        self.gpus = _gpus() if at_once > 1 else 0

    def serve(self, slot: int) -> None:
        """Take cells and run them until none is left."""
        while not self.signals:
            job, busy = self.take()
            if job is not None:
                self.run(job, slot)
            elif not busy:
                return
            else:
                time.sleep(WAIT)

    def take(self) -> tuple[Job | None, bool]:
        """The next cell to run, marked as running; and whether others work on what is left."""
        with self.lock:
            busy = False
            for wanted in ("pending", "failed"):  # a second try comes last
                for job in self.plan.jobs:
                    if self.states[job.name] == "elsewhere" and (over := ended(job.folder, job.steps)):
                        self.states[job.name] = over
                    if self.states[job.name] not in (wanted, "elsewhere") or self.tries[job.name] > 1:
                        continue
                    if owner_of(job.folder / ".lock"):
                        self.states[job.name], busy = "elsewhere", True
                    else:
                        self.states[job.name] = "running"
                        return job, busy
            return None, busy

    def run(self, job: Job, slot: int) -> None:
        """One cell, once; its state afterwards is what its exit code says."""
        began, log = time.monotonic(), self.plan.out / ".sweep" / f"{job.name}.log"
        say(f"[{self.number(job)}] {job.name}: {job.steps:,} updates")
        command = [*jobs.COMMAND, *job.overrides]
        try:
            code = jobs.run(
                command, log, cwd=Path.cwd(), env=self._env(job, slot), asked=lambda: self.signals
            )
        except OSError as error:
            say(f"[{self.number(job)}] {job.name}: can't be started ({error.strerror})")
            code = EnvError.code
        with self.lock:
            self.codes[job.name] = code
            self.states[job.name] = state = jobs.state(code)
            self.tries[job.name] += state == "failed"
            self.seconds.append(time.monotonic() - began)
        self._tell(job, state, log)
        self.table()

    def _tell(self, job: Job, state: str, log: Path) -> None:
        again = state == "failed" and self.tries[job.name] < 2 and not self.signals
        about = jobs.scores(job.folder) if state == "finished" else ""
        about = jobs.last_error(log) if state in ("failed", "diverged") else about
        more = "; once more later" if again else self._left()
        say(f"[{self.number(job)}] {job.name}: {state} after {self.seconds[-1]:.0f} s {about}{more}")

    def _left(self) -> str:
        waiting = sum(state in ("pending", "running") for state in self.states.values())
        if not waiting:
            return ""
        minutes = sum(self.seconds) / len(self.seconds) * waiting / self.at_once / 60
        return f"; {waiting} to go, about {minutes:.0f} min" if minutes >= 1 else f"; {waiting} to go"

    def number(self, job: Job) -> str:
        return f"{self.plan.jobs.index(job) + 1}/{len(self.plan.jobs)}"

    def _env(self, job: Job, slot: int) -> Mapping[str, str]:
        """Threads and GPUs divided among the slots, unless the user has a say."""
        keys = {word.lstrip("+").partition("=")[0] for word in job.overrides}
        env = dict(self.env)
        if self.at_once > 1 and "threads" not in keys:
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.at_once)))
        if self.gpus > 1 and "device" not in keys:
            env.setdefault("CUDA_VISIBLE_DEVICES", str(slot % self.gpus))
        return env

    def table(self) -> list[dict[str, Any]]:
        """A row for each cell, written to ``cells.csv``."""
        with self.lock:
            rows = [self._row(job) for job in self.plan.jobs]
            jobs.write_csv(self.plan.out / "cells.csv", rows)
        return rows

    def _row(self, job: Job) -> dict[str, Any]:
        result = jobs.peek(job.folder / "result.json")
        state, error = self.states[job.name], ""
        if state in ("failed", "diverged"):
            told = jobs.last_error(self.plan.out / ".sweep" / f"{job.name}.log")
            error = told or str(result.get("error") or "")
        return {
            "cell": job.name,
            "state": state,
            "step": result.get("step", 0),
            "of": job.steps,
            "it/s": result.get("it_per_s", ""),
            "last scores": jobs.scores(job.folder),
            "run folder": str(job.folder),
            "error": error,
        }


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
