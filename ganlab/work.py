"""The cells of a sweep at work: who takes which, alone or packed, what became of it, and once more.

A slot is a thread with one process at a time. It takes a cell and runs it in a process of its own, or, with
``per_gpu`` above 1, in a pack: one process with several cells at once (``pack.py``), which asks for the next
whenever it has a place. A cell that failed is tried again, alone.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ganlab import jobs
from ganlab.disk import write_json
from ganlab.errors import EnvError
from ganlab.jobs import say
from ganlab.lock import owner_of
from ganlab.planned import Agreement, Job, Places, Plan, ended, visible

WAIT = 2.0  # seconds between looks at a cell that another process works on


class Work:
    """The cells' states, shared by the threads that serve them. ``visible``: names of the GPUs in use."""

    def __init__(self, planned: Plan, places: Places, config_dirs: Sequence[str]) -> None:
        self.plan, self.places = planned, places
        self.signals: list[int] = []
        self.lock = threading.Lock()
        self.states = {j.name: ended(j.folder, j.steps) or "pending" for j in planned.jobs}
        self.tries = dict.fromkeys(self.states, 0)
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
        """Take cells and run them until none is left."""
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

    def take(self, like: Job | None = None) -> tuple[Job | None, bool]:
        """The next cell to run, marked as running; and whether others work on what is left.

        ``like``: only one that may share a process with this cell, those with its data first.
        """
        with self.lock:
            busy = False
            for wanted in ("pending", "failed"):  # a second try comes last
                for job in self._order(like):
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
            threads = jobs.peek(job.folder / "result.json").get("threads") or self.threads or "default"
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
            say(f"[{self.number(job)}] {job.name}: in a process of its own: {why}")
        return False

    # ---- running

    def run(self, job: Job, slot: int) -> None:
        """One cell, once, in a process of its own."""
        began = time.monotonic()
        say(f"[{self.number(job)}] {job.name}: {job.steps:,} updates")
        command = [*jobs.COMMAND, *job.overrides]
        try:
            code = jobs.run(
                command, self.log(job), cwd=Path.cwd(), env=self._env(job, slot), asked=lambda: self.signals
            )
        except OSError as error:
            say(f"[{self.number(job)}] {job.name}: can't be started ({error.strerror})")
            code = EnvError.code
        self.over(job, code, time.monotonic() - began)

    def run_pack(self, first: Job, slot: int) -> None:
        """One process for ``first`` and all cells after it that fit: it asks for them as it has places."""
        began: dict[str, float] = {}
        by_name = {job.name: job for job in self.plan.jobs}
        waiting: list[Job] = [first]

        def answer(event: Mapping[str, Any]) -> str | None:
            kind, job = event.get("event"), by_name.get(str(event.get("cell")))
            if kind == "want":
                found = waiting.pop() if waiting else self._another(first, len(began))
                if found is None:
                    return "null"
                began[found.name] = time.monotonic()
                say(f"[{self.number(found)}] {found.name}: {found.steps:,} updates, in pack {slot}")
                order = {"cell": found.name, "words": found.overrides, "log": str(self.log(found))}
                return json.dumps({**order, "device": found.tree.get("device")})
            if kind == "ended" and job is not None and job.name in began:
                self.over(job, int(event["code"]), time.monotonic() - began.pop(job.name))
            elif kind == "say":
                say(f"[pack {slot}] {event.get('text')}")
            elif kind == "packing":
                self._record(event)
            return None

        log = self.plan.out / ".sweep" / f"pack-{slot}.log"
        command = [*jobs.PACK, str(self.places.lanes)]
        try:
            code = jobs.converse(
                command,
                log,
                cwd=Path.cwd(),
                env=self._env(first, slot, pack=True),
                asked=lambda: self.signals,
                answer=answer,
            )
        except OSError as error:
            say(f"pack {slot}: can't be started ({error.strerror})")
            code = EnvError.code
        lost = [*began, *(job.name for job in waiting)]
        if lost and jobs.state(code) != "stopped":
            say(f"pack {slot} was lost (exit code {code}); its cells are tried again, each alone; see {log}")
            code = code or EnvError.code
        for name in lost:
            self.over(by_name[name], code, time.monotonic() - began.get(name, time.monotonic()))

    def _another(self, first: Job, held: int) -> Job | None:
        """The next cell for a pack that holds ``held``, which leaves the other slots their share."""
        left = sum(state in ("pending", "running") for state in self.states.values())
        return None if self.signals or held >= -(-left // self.places.slots) else self.take(first)[0]

    def _record(self, event: Mapping[str, Any]) -> None:
        """``packing.json``: what packs measured and chose, the newest last."""
        path = self.plan.out / "packing.json"
        with self.lock:
            before = jobs.peek(path).get("packs")
            told = {k: v for k, v in event.items() if k != "event"}
            packs = [*(before if isinstance(before, list) else []), told]
            write_json(path, {"format": 1, "packs": packs})

    def over(self, job: Job, code: int, seconds: float) -> None:
        """A cell's try has ended: its state is what the exit code says."""
        with self.lock:
            self.states[job.name] = state = jobs.state(code)
            self.tries[job.name] += state == "failed"
        again = state == "failed" and self.tries[job.name] < 2 and not self.signals
        about = jobs.scores(job.folder) if state == "finished" else ""
        about = jobs.last_error(self.log(job)) if state in ("failed", "diverged") else about
        more = "; once more later" if again else self._left()
        say(f"[{self.number(job)}] {job.name}: {state} after {seconds:.0f} s {about}{more}")
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
            env["CUDA_VISIBLE_DEVICES"] = visible(self.places.gpus[slot % len(self.places.gpus)])
        return env

    # ---- told

    def number(self, job: Job) -> str:
        return f"{self.plan.jobs.index(job) + 1}/{len(self.plan.jobs)}"

    def log(self, job: Job) -> Path:
        """What a cell's run said."""
        return self.plan.out / ".sweep" / f"{job.name}.log"

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
            error = jobs.last_error(self.log(job)) or str(result.get("error") or "")
        return {
            "cell": job.name,
            "state": state,
            "step": result.get("step", 0),
            "of": job.steps,
            "it/s": result.get("it_per_s", ""),
            "packed": jobs.packed(result),
            "last scores": jobs.scores(job.folder),
            "run folder": str(job.folder),
            "error": error,
        }
