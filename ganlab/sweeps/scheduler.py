"""The cells of a sweep at work: who takes which, alone or packed, what became of it, and once more.

A slot is a thread with one process at a time. It takes a cell and runs it in a process of its own, or, with
``per_gpu`` above 1, in a pack: one process with several cells at once (``pack.py``), which asks for the next
whenever it has a place. A cell that failed is tried again, alone. Who works on a cell holds its claim
(``ledger.py``), so several sweeps of one folder share the work.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ganlab.errors import EnvError, GanlabError
from ganlab.sweeps import process
from ganlab.sweeps.ledger import AFTER_IN_USE, TRIES, Ledger
from ganlab.sweeps.plan import DEFAULT, Agreement, Job, Places, Plan, Rules, end_status, gpu_id
from ganlab.sweeps.process import ProcessResult, print_status
from ganlab.system.files import write_json
from ganlab.system.lock import Lock

WAIT = 2.0  # seconds between looks at a cell that another process works on


class Scheduler:
    """The cells' states, shared by the threads that serve them. Raises EnvError if they can't be noted."""

    def __init__(
        self, planned: Plan, places: Places, config_dirs: Sequence[str], rules: Rules = DEFAULT
    ) -> None:
        self.plan, self.places, self.rules = planned, places, rules
        self.signals: list[int] = []
        self.lock = threading.Lock()
        self.books = Ledger(planned.out / ".sweep", rules.stall_s)
        self.books.begin(planned.jobs)
        self.states = {j.name: end_status(j.folder, j.steps) or "pending" for j in planned.jobs}
        self.tries = dict.fromkeys(self.states, 0)
        self.claims: dict[str, Lock] = {}
        self.in_use: dict[str, float] = {}  # when a cell's folder was last found in use
        if not rules.retry:
            for name in (n for n, state in self.states.items() if state == "pending"):
                if self.books.noted(name).get("state") == "failed":
                    self.states[name], self.tries[name] = "failed", TRIES
        self.began = time.monotonic()
        self.waiting = sum(state == "pending" for state in self.states.values())
        self.env = dict(os.environ)
        if config_dirs:
            dirs = [str(Path(d).resolve()) for d in config_dirs]
            self.env["GANLAB_CONFIGS"] = os.pathsep.join([*dirs, self.env.get("GANLAB_CONFIGS", "")])
        cores = str(max(1, (os.cpu_count() or 1) // places.slots))
        self.threads = self.env.get("OMP_NUM_THREADS") or (cores if places.slots > 1 else None)
        self.agreements = {job.name: self._agreement(job) for job in planned.jobs}

    # ---- who takes which

    def serve(self, slot: int) -> None:
        """Take cells and run them until none is left. If the disk can't be written, it says so."""
        try:
            while not self.signals:
                job, busy = self.take()
                if job is not None and self._packs(job):
                    self.run_pack(job, slot)
                elif job is not None:
                    self.run(job, slot)
                elif not busy:
                    return
                else:
                    time.sleep(WAIT)
        except GanlabError as error:
            print_status(f"ganlab: error: {error.mistakes[0]}")

    def take(self, like: Job | None = None) -> tuple[Job | None, bool]:
        """The next cell to run, claimed; and whether others work on what is left.

        ``like``: only one that may share a process with this cell, those with its data first.
        """
        with self.lock:
            busy = False
            for wanted in ("pending", "failed"):  # a second try comes last
                for job in self._order(like):
                    if self.states[job.name] not in (wanted, "elsewhere") or self.tries[job.name] >= TRIES:
                        continue
                    if self._claimed(job):
                        return job, busy
                    if self.states[job.name] == "elsewhere":
                        busy = busy or not self._given_up(job)
            return None, busy

    def _claimed(self, job: Job) -> bool:
        """Claim a cell that is to be run, and note what it is otherwise."""
        claim = self.books.claim(job.name)
        over = end_status(job.folder, job.steps)
        self.tries[job.name] = max(self.tries[job.name], 0 if over else self.books.tries(job.name))
        lately = time.monotonic() - self.in_use.get(job.name, -AFTER_IN_USE) < AFTER_IN_USE
        if over or self.tries[job.name] >= TRIES:
            self.states[job.name] = over or "failed"  # by another sweep
        elif claim is None or lately or self.books.holder(job):
            self.states[job.name] = "elsewhere"
        else:
            self.states[job.name], self.claims[job.name] = "running", claim
            return True
        if claim is not None:
            claim.release()
        return False

    def _given_up(self, job: Job) -> bool:
        """Whether a cell of others has shown no progress for so long that it is no longer waited for."""
        return bool(self.rules.stall_s) and self.books.still(job) > self.rules.stall_s

    def _order(self, like: Job | None) -> list[Job]:
        if like is None:
            return self.plan.jobs
        mine = self.agreements[like.name]
        fit = [j for j in self.plan.jobs if not self.tries[j.name] and self.agreements[j.name] == mine]
        return sorted(fit, key=lambda j: j.tree.get("dataset") != like.tree.get("dataset"))

    def _agreement(self, job: Job) -> Agreement:
        """What the process that runs a cell must be like; a begun run's threads are those that it has had."""
        tree, threads = job.tree, job.tree.get("threads")
        if threads is None:
            threads = (
                process.read_json_leniently(job.folder / "result.json").get("threads")
                or self.threads
                or "default"
            )
        return Agreement(
            str(tree.get("precision")), bool(tree.get("deterministic")), str(tree.get("device")), str(threads)
        )

    def _packs(self, job: Job) -> bool:
        """Whether a cell just taken starts a pack: it has not failed, and another one waits that fits."""
        if self.places.lanes == 1 or self.tries[job.name]:
            return False
        with self.lock:
            waiting = [
                j for j in self.plan.jobs if self.states[j.name] == "pending" and not self.tries[j.name]
            ]
            mine = self.agreements[job.name]
            if any(self.agreements[j.name] == mine for j in waiting):
                return True
        if waiting:
            why = f"no waiting cell has its {mine.told()}"
            print_status(f"[{self.number(job)}] {job.name}: in a process of its own: {why}")
        return False

    # ---- running

    def run(self, job: Job, slot: int) -> None:
        """One cell, once, in a process of its own, which holds the claim too: it may outlive the sweep."""
        print_status(f"[{self.number(job)}] {job.name}: {job.steps:,} updates")
        self.books.started(job.name)
        try:
            end = process.run(
                [*process.COMMAND, *job.overrides],
                self.log(job),
                cwd=Path.cwd(),
                env=self._env(job, slot),
                asked=lambda: self.signals,
                vitals=self.books.vitals(job.name),
                keep=[self.claims[job.name].fileno()],
            )
        except OSError as error:
            end = ProcessResult(EnvError.code, 0.0, f"can't be started ({error.strerror})")
        self.over(job, end)

    def run_pack(self, first: Job, slot: int) -> None:
        """One process for ``first`` and all cells after it that fit: it asks for them as it has places."""
        began: dict[str, float] = {}
        by_name = {job.name: job for job in self.plan.jobs}
        waiting: list[Job] = [first]
        logs: dict[str, int] = {}  # bytes of a cell's log before this try

        def answer(event: Mapping[str, Any]) -> str | None:
            kind, job = event.get("event"), by_name.get(str(event.get("cell")))
            if kind == "want":
                found = waiting.pop() if waiting else self._another(first, len(began))
                if found is None:
                    return "null"
                began[found.name] = time.monotonic()
                print_status(f"[{self.number(found)}] {found.name}: {found.steps:,} updates, in pack {slot}")
                self.books.started(found.name)
                logs[found.name] = _size(self.log(found))
                order = {"cell": found.name, "words": found.overrides, "log": str(self.log(found))}
                return json.dumps({**order, "device": found.tree.get("device")})
            if kind == "ended" and job is not None and job.name in began:
                code = int(event["code"])
                why = process.failure_reason(code, self.log(job), logs[job.name])
                self.over(job, ProcessResult(code, time.monotonic() - began.pop(job.name), why), packed=True)
            elif kind == "say":
                print_status(f"[pack {slot}] {event.get('text')}")
            elif kind == "packing":
                self._record(event)
            return None

        log = self.books.log(f"pack-{slot}")
        try:
            end = process.run_with_replies(
                [*process.PACK, str(self.places.lanes)],
                log,
                cwd=Path.cwd(),
                env=self._env(first, slot, pack=True),
                asked=lambda: self.signals,
                answer=answer,
                vitals=self.books.vitals(f"pack-{os.getpid()}-{slot}"),
            )
        except OSError as error:
            end = ProcessResult(EnvError.code, 0.0, f"can't be started ({error.strerror})")
        lost = [*began, *(job.name for job in waiting)]
        stopped = process.state(end.code) == "stopped" and bool(self.signals)
        if lost and not stopped:
            what = f"pack {slot} was lost (exit code {end.code})"
            print_status(f"{what}; its cells are tried again, each alone; see {log}")
        why = "" if stopped else f"its pack {end.error or 'ended without it'}"
        for name in lost:
            seconds = time.monotonic() - began.get(name, time.monotonic())
            self.over(by_name[name], ProcessResult(end.code or EnvError.code, seconds, why), packed=True)

    def _another(self, first: Job, held: int) -> Job | None:
        """The next cell for a pack that holds ``held``, which leaves the other slots their share."""
        left = sum(state in ("pending", "running") for state in self.states.values())
        return None if self.signals or held >= -(-left // self.places.slots) else self.take(first)[0]

    def _record(self, event: Mapping[str, Any]) -> None:
        """``packing.json``: what packs measured and chose, the newest last."""
        path = self.plan.out / "packing.json"
        with self.lock:
            before = process.read_json_leniently(path).get("packs")
            told = {k: v for k, v in event.items() if k != "event"}
            packs = [*(before if isinstance(before, list) else []), told]
            write_json(path, {"format": 1, "packs": packs})

    def over(self, job: Job, end: ProcessResult, packed: bool = False) -> None:
        """A cell's try has ended. One in a pack may have failed by its neighbours, and is tried again."""
        state = self.books.ended(job, end, bool(self.signals))
        with self.lock:
            self.states[job.name] = state
            if state == "failed":
                final = end.code in process.FINAL and not packed
                self.tries[job.name] = TRIES if final else self.tries[job.name] + 1
            if state == "elsewhere":
                self.in_use[job.name] = time.monotonic()
            self.claims.pop(job.name).release()
        again = state == "failed" and self.tries[job.name] < TRIES and not self.signals
        about = process.scores(job.folder) if state == "finished" else ""
        about = self.books.noted(job.name).get("error", "") if state in ("failed", "diverged") else about
        more = "; once more later" if again else self._left()
        print_status(f"[{self.number(job)}] {job.name}: {state} after {end.seconds:.0f} s {about}{more}")
        with contextlib.suppress(EnvError):  # a full disk: the notes say it all
            self.table()

    def _left(self) -> str:
        """How many cells are to go, and how long at the pace so far."""
        left = sum(state in ("pending", "running") for state in self.states.values())
        if not left or left >= self.waiting:
            return ""
        minutes = (time.monotonic() - self.began) / (self.waiting - left) * left / 60
        return f"; {left} to go, about {minutes:.0f} min" if minutes >= 1 else f"; {left} to go"

    def _env(self, job: Job, slot: int, pack: bool = False) -> Mapping[str, str]:
        """Threads and GPUs divided among the slots, unless the user has a say."""
        keys = {word.lstrip("+").partition("=")[0] for word in job.overrides}
        env = dict(self.env)
        threads = self.agreements[job.name].threads if pack else self.threads
        if threads not in (None, "default") and "threads" not in keys:
            env["OMP_NUM_THREADS"] = str(threads)
        if self.places.gpus and "device" not in keys:
            env["CUDA_VISIBLE_DEVICES"] = gpu_id()[self.places.gpus[slot % len(self.places.gpus)]]
        return env

    # ---- told

    def number(self, job: Job) -> str:
        return f"{self.plan.jobs.index(job) + 1}/{len(self.plan.jobs)}"

    def log(self, job: Job) -> Path:
        """What a cell's run said."""
        return self.books.log(job.name)

    def table(self) -> list[dict[str, Any]]:
        """A row for each cell, written to ``cells.csv``. Raises EnvError."""
        with self.lock:
            rows = [{"cell": j.name, **self.books.row(j, self.states[j.name])} for j in self.plan.jobs]
            process.write_csv(self.plan.out / "cells.csv", rows)
        return rows


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
