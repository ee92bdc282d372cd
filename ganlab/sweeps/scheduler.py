"""Scheduler of a sweep: who runs which cell, in which order, and how often.

``run_locally`` works with threads, each running one process at a time; ``launch`` hands the cells to a
launcher (``launchers.py``), each of whose workers is a scheduler of one cell. A cell is claimed in the ledger
(``ledger.py``) while it runs, so several sweeps of one folder share the work. A failed cell is retried once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ganlab.errors import ConfigError, EnvError, GanlabError
from ganlab.sweeps import process
from ganlab.sweeps.ledger import IN_USE_RETRY_S, MAX_TRIES, Ledger
from ganlab.sweeps.placement import DEFAULT_RULES, ONE_PROCESS, Placement, Rules
from ganlab.sweeps.plan import Job, final_status
from ganlab.sweeps.process import ProcessResult, print_status
from ganlab.system.files import write_atomic
from ganlab.system.lock import Lock
from ganlab.tables import to_csv

WAIT = 2.0  # seconds between checks of a cell that another process runs
LOST = "its process died together with its launcher"
Outcomes = Mapping[str, str]  # cell -> state, as its worker reported it


class Scheduler:
    """The cells' states, shared by the worker threads.

    signals: all stop signals so far. table: the file to keep up to date, if any. waits: whether to wait for
    cells that other sweeps run.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        ledger: Ledger,
        rules: Rules = DEFAULT_RULES,
        placement: Placement = ONE_PROCESS,
        config_dirs: Sequence[str] = (),
        *,
        signals: Callable[[], Sequence[int]] = tuple,
        table: Path | None = None,
        cwd: Path | None = None,
        waits: bool = True,
    ) -> None:
        self.jobs, self.ledger, self.rules, self.placement = list(jobs), ledger, rules, placement
        self.signals, self.table, self.cwd, self.waits = signals, table, cwd or Path.cwd(), waits
        self.lock = threading.Lock()
        self.states = {j.name: final_status(j.folder, j.steps) or "pending" for j in jobs}
        self.tries, self.launches = dict.fromkeys(self.states, 0), Counter[str]()
        self.claims: dict[str, Lock] = {}
        self.in_use: dict[str, float] = {}  # when a cell's folder was last seen in use
        if not rules.retry:
            for name in (n for n, state in self.states.items() if state == "pending"):
                if ledger.last_try(name).get("state") == "failed":
                    self.states[name], self.tries[name] = "failed", MAX_TRIES
        self.began = time.monotonic()
        self.num_pending = self._num_left()
        self.env = dict(os.environ)
        if config_dirs:
            dirs = [*(str(Path(d).resolve()) for d in config_dirs), self.env.get("GANLAB_CONFIGS", "")]
            self.env["GANLAB_CONFIGS"] = os.pathsep.join(filter(None, dirs))

    # ---- local processes

    def run_locally(self) -> None:
        """Run all cells on this machine, ``placement.slots`` at a time."""
        slots = range(min(self.placement.slots, max(1, self.num_pending)))
        threads = [threading.Thread(target=self.work, args=(slot,)) for slot in slots]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)  # short, so that the main thread can handle signals

    def work(self, slot: int) -> None:
        """Claim and run cells until none is left. Prints an error if the disk can't be written."""
        try:
            while not self.signals():
                job, busy = self._take()
                if job is not None:
                    self._run(job, slot)
                elif not busy or not self.waits:
                    return
                else:
                    time.sleep(WAIT)
        except GanlabError as error:
            print_status(f"ganlab: error: {error.mistakes[0]}")

    def _take(self) -> tuple[Job | None, bool]:
        """Claim the next cell to run; also returns whether other sweeps are still running cells."""
        with self.lock:
            busy = False
            for state in ("pending", "failed"):  # retries come last
                for job in self.jobs:
                    if self.states[job.name] in (state, "elsewhere") and self._claim(job):
                        return job, busy
                    busy = busy or self._is_busy(job)
            return None, busy

    def _claim(self, job: Job) -> bool:
        """Claim a cell if it is to be run; otherwise update its state."""
        name = job.name
        if self.tries[name] >= MAX_TRIES or self.launches[name] >= MAX_TRIES:
            return False
        claim, holder = self.ledger.claim(name), self.ledger.holder(job)
        status = final_status(job.folder, job.steps)  # read last: its previous owner may just have ended
        self.tries[name] = max(self.tries[name], 0 if status else self.ledger.failed_tries(name))
        recently = time.monotonic() - self.in_use.get(name, -IN_USE_RETRY_S) < IN_USE_RETRY_S
        if status or self.tries[name] >= MAX_TRIES:
            self.states[name] = status or "failed"  # by another sweep
        elif claim is None or holder or recently:
            self.states[name] = "elsewhere"
        else:
            self.states[name], self.claims[name] = "running", claim
            return True
        if claim is not None:
            claim.release()
        return False

    def _is_busy(self, job: Job) -> bool:
        """Whether another sweep runs the cell, and it made progress within the stall limit."""
        if self.states[job.name] != "elsewhere":
            return False
        return not self.rules.stall_s or self.ledger.idle_seconds(job) <= self.rules.stall_s

    def _run(self, job: Job, slot: int) -> None:
        """Run a claimed cell once in a process, which inherits the claim as it may outlive the sweep."""
        print_status(f"{self._title(job)}: {job.steps:,} updates")
        try:
            self.ledger.record_start(job.name)
            try:
                end = process.run(
                    [*process.COMMAND, *job.overrides],
                    self.ledger.log(job.name),
                    cwd=self.cwd,
                    env=self._env(job, slot),
                    signals=self.signals,
                    heartbeat=self.ledger.heartbeat(job.name),
                    stall_s=self.ledger.stall_s,
                    pass_fds=[self.claims[job.name].fileno()],
                )
            except OSError as error:
                end = ProcessResult(EnvError.code, 0.0, f"can't be started ({error.strerror})")
            state = self.ledger.record_end(job, end, bool(self.signals()))
            with self.lock:
                self.states[job.name] = state
                if state == "failed":
                    self.tries[job.name] = (
                        MAX_TRIES if end.code in process.FINAL else self.tries[job.name] + 1
                    )
                if state == "elsewhere":
                    self.in_use[job.name] = time.monotonic()
        finally:
            self.claims.pop(job.name).release()
        retry = state == "failed" and self.tries[job.name] < MAX_TRIES and not self.signals()
        detail = ""
        if state == "finished":
            detail = process.format_scores(job.folder)
        elif state in ("failed", "diverged"):
            detail = self.ledger.last_try(job.name).get("error", "")
        more = "; will be retried" if retry else self._remaining()
        print_status(f"{self._title(job)}: {state} after {end.seconds:.0f} s {detail}{more}")
        self._update_table()

    def _env(self, job: Job, slot: int) -> Mapping[str, str]:
        """Environment of a cell: threads and GPUs divided among the slots, unless its overrides set them."""
        keys = {word.lstrip("+").partition("=")[0] for word in job.overrides}
        env, gpus = dict(self.env), self.placement.gpus
        if self.placement.slots > 1 and "threads" not in keys:
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.placement.slots)))
        if gpus and "device" not in keys:
            env["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        return env

    # ---- a launcher

    def launch(self, launcher: Callable[[list[Job]], Outcomes]) -> Exception | None:
        """Hand the cells to a launcher until none is left to run; returns its last error.

        A cell whose worker died is launched once more.
        """
        failure: Exception | None = None
        while not self.signals():
            jobs = [j for j in self.jobs if self.states[j.name] in ("pending", "failed", "elsewhere")]
            jobs = [job for job in jobs if self._claim(job)]
            for job in jobs:
                self.claims.pop(job.name).release()  # the worker takes it
            if jobs:
                starts, outcomes, failure = self.ledger.num_starts(), dict[str, str](), None
                try:
                    outcomes.update(launcher(jobs))
                except ConfigError:
                    raise
                except Exception as error:  # the launcher broke; failures of cells are in the ledger
                    failure = error
                began = self.ledger.num_starts() - starts
                for job in jobs:
                    self._update(job, outcomes.get(job.name, ""), job.name in began, failure is not None)
                self._update_table()
            elif any(map(self._is_busy, self.jobs)):
                time.sleep(WAIT)
            else:
                break
        return failure

    def _update(self, job: Job, outcome: str, has_started: bool, is_broken: bool) -> None:
        """Set the state of a cell after a launch. ``is_broken``: whether the launcher raised an error."""
        name, last = job.name, self.ledger.last_try(job.name)
        claim, holder = self.ledger.claim(name), self.ledger.holder(job)
        if claim is not None:
            claim.release()
        if status := final_status(job.folder, job.steps):
            self.states[name] = status
        elif claim is None or holder or outcome == "elsewhere":
            self.states[name] = "elsewhere"
        else:
            self.launches[name] += 1 if has_started or not is_broken else MAX_TRIES
            self.states[name] = "pending"
            if last.get("id") != self.ledger.previous_ids.get(name):
                self.states[name] = str(last.get("state"))
                self.tries[name] = max(self.tries[name], self.ledger.failed_tries(name))
            elif has_started:
                self.states[name] = "lost"
        if self.states[name] == "lost" and not self.signals() and self.launches[name] < MAX_TRIES:
            print_status(f"{self._title(job)}: {LOST}; will be retried")
            self.states[name] = "pending"

    # ---- tables

    def _title(self, job: Job) -> str:
        """``[3/48] NAME``, with the swept values of an unnamed grid's cell."""
        position = f"[{self.jobs.index(job) + 1}/{len(self.jobs)}] " if len(self.jobs) > 1 else ""
        return f"{position}{job.name}{f' ({job.label})' if job.label else ''}"

    def _num_left(self) -> int:
        return sum(state in ("pending", "running") for state in self.states.values())

    def _remaining(self) -> str:
        """The number of cells left, and the time they need at the pace so far."""
        left = self._num_left()
        if not left or left >= self.num_pending:
            return ""
        minutes = (time.monotonic() - self.began) / (self.num_pending - left) * left / 60
        return f"; {left} left, about {minutes:.0f} min" if minutes >= 1 else f"; {left} left"

    def _update_table(self) -> None:
        if self.table is not None:
            with contextlib.suppress(EnvError):  # on a full disk, the ledger has it all
                self.write_table()

    def write_table(self) -> list[dict[str, Any]]:
        """Write the table and return its rows, one for each cell. Raises EnvError."""
        with self.lock:
            rows = [self.ledger.row(job, self.states[job.name]) for job in self.jobs]
            for row in rows:
                if row["state"] == "lost":
                    row |= {"state": "failed", "error": LOST}
            if self.table is not None:
                write_atomic(self.table, to_csv(list(rows[0]), rows).encode())
        return rows
