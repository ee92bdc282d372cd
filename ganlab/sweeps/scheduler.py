"""Sweep scheduler: workers claim cells, run each in a subprocess, and retry a failed one once.

A slot is a thread that runs one process at a time: one cell, or, with ``per_gpu`` above 1, a pack of several
cells (``packed.py``) that requests the next whenever a lane is free. A failed cell is retried alone. A cell
is claimed in the ledger (``ledger.py``) while it runs, so several sweeps of one folder share the work.
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
from ganlab.sweeps.ledger import IN_USE_RETRY_S, MAX_TRIES, Ledger
from ganlab.sweeps.plan import (
    DEFAULT_RULES,
    Job,
    Placement,
    Plan,
    ProcessSettings,
    Rules,
    final_status,
    visible_gpus,
)
from ganlab.sweeps.process import ProcessResult, print_status
from ganlab.system.files import write_json
from ganlab.system.lock import Lock

WAIT = 2.0  # seconds between checks of a cell that another process runs


class Scheduler:
    """The cells' states, shared by the worker threads. Raises EnvError if the ledger can't be written."""

    def __init__(
        self, plan: Plan, placement: Placement, config_dirs: Sequence[str], rules: Rules = DEFAULT_RULES
    ) -> None:
        self.plan, self.placement, self.rules = plan, placement, rules
        self.signals: list[int] = []
        self.lock = threading.Lock()
        self.ledger = Ledger(plan.out / ".sweep", rules.stall_s)
        self.ledger.record_sweep(plan.jobs)
        self.states = {j.name: final_status(j.folder, j.steps) or "pending" for j in plan.jobs}
        self.tries = dict.fromkeys(self.states, 0)
        self.claims: dict[str, Lock] = {}
        self.in_use: dict[str, float] = {}  # when a cell's folder was last seen in use
        if not rules.retry:
            for name in (n for n, state in self.states.items() if state == "pending"):
                if self.ledger.last_try(name).get("state") == "failed":
                    self.states[name], self.tries[name] = "failed", MAX_TRIES
        self.began = time.monotonic()
        self.num_pending = sum(state == "pending" for state in self.states.values())
        self.env = dict(os.environ)
        if config_dirs:
            dirs = [str(Path(d).resolve()) for d in config_dirs]
            self.env["GANLAB_CONFIGS"] = os.pathsep.join([*dirs, self.env.get("GANLAB_CONFIGS", "")])
        cores = str(max(1, (os.cpu_count() or 1) // placement.slots))
        self.threads = self.env.get("OMP_NUM_THREADS") or (cores if placement.slots > 1 else None)
        self.settings = {job.name: self._settings(job) for job in plan.jobs}

    # ---- claiming cells

    def work(self, slot: int) -> None:
        """Claim and run cells until none is left. Prints an error if the disk can't be written."""
        try:
            while not self.signals:
                job, busy = self.take()
                if job is not None and self._starts_pack(job):
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
        """Claim the next cell to run; also returns whether other sweeps are still running cells.

        ``like``: only a cell that can share a process with this one, those with the same dataset first.
        """
        with self.lock:
            busy = False
            for state in ("pending", "failed"):  # retries come last
                for job in self._candidates(like):
                    if self.states[job.name] not in (state, "elsewhere") or self.tries[job.name] >= MAX_TRIES:
                        continue
                    if self._try_claim(job):
                        return job, busy
                    if self.states[job.name] == "elsewhere":
                        busy = busy or not self._is_stalled(job)
            return None, busy

    def _try_claim(self, job: Job) -> bool:
        """Claim a cell if it is to be run; otherwise update its state."""
        claim = self.ledger.claim(job.name)
        status = final_status(job.folder, job.steps)
        self.tries[job.name] = max(self.tries[job.name], 0 if status else self.ledger.failed_tries(job.name))
        recently = time.monotonic() - self.in_use.get(job.name, -IN_USE_RETRY_S) < IN_USE_RETRY_S
        if status or self.tries[job.name] >= MAX_TRIES:
            self.states[job.name] = status or "failed"  # by another sweep
        elif claim is None or recently or self.ledger.holder(job):
            self.states[job.name] = "elsewhere"
        else:
            self.states[job.name], self.claims[job.name] = "running", claim
            return True
        if claim is not None:
            claim.release()
        return False

    def _is_stalled(self, job: Job) -> bool:
        """Whether another sweep's cell has made no progress for so long that it is not waited for."""
        return bool(self.rules.stall_s) and self.ledger.idle_seconds(job) > self.rules.stall_s

    def _candidates(self, like: Job | None) -> list[Job]:
        if like is None:
            return self.plan.jobs
        settings = self.settings[like.name]
        fitting = [j for j in self.plan.jobs if not self.tries[j.name] and self.settings[j.name] == settings]
        return sorted(fitting, key=lambda j: j.tree.get("dataset") != like.tree.get("dataset"))

    def _settings(self, job: Job) -> ProcessSettings:
        """Settings of the process that runs a cell; a run that is continued keeps its number of threads."""
        tree, threads = job.tree, job.tree.get("threads")
        if threads is None:
            threads = (
                process.read_json_leniently(job.folder / "result.json").get("threads")
                or self.threads
                or "default"
            )
        return ProcessSettings(
            str(tree.get("precision")), bool(tree.get("deterministic")), str(tree.get("device")), str(threads)
        )

    def _starts_pack(self, job: Job) -> bool:
        """Whether a claimed cell starts a pack: it has not failed, and a pending cell has its settings."""
        if self.placement.lanes == 1 or self.tries[job.name]:
            return False
        with self.lock:
            pending = [
                j for j in self.plan.jobs if self.states[j.name] == "pending" and not self.tries[j.name]
            ]
            settings = self.settings[job.name]
            if any(self.settings[j.name] == settings for j in pending):
                return True
        if pending:
            print_status(f"[{self.number(job)}] {job.name}: runs alone: no pending cell has {settings}")
        return False

    # ---- running

    def run(self, job: Job, slot: int) -> None:
        """Run one cell once in its own process, which inherits the claim because it may outlive the sweep."""
        print_status(f"[{self.number(job)}] {job.name}: {job.steps:,} updates")
        self.ledger.record_start(job.name)
        try:
            end = process.run(
                [*process.COMMAND, *job.overrides],
                self.ledger.log(job.name),
                cwd=Path.cwd(),
                env=self._env(job, slot),
                signals=lambda: self.signals,
                liveness=self.ledger.liveness(job.name),
                pass_fds=[self.claims[job.name].fileno()],
            )
        except OSError as error:
            end = ProcessResult(EnvError.code, 0.0, f"can't be started ({error.strerror})")
        self.finish(job, end)

    def run_pack(self, first: Job, slot: int) -> None:
        """Run ``first`` and other cells with its settings in one process, which requests them one by one."""
        began: dict[str, float] = {}
        by_name = {job.name: job for job in self.plan.jobs}
        waiting: list[Job] = [first]
        log_sizes: dict[str, int] = {}  # bytes of a cell's log before this try

        def reply(event: Mapping[str, Any]) -> str | None:
            kind, job = event.get("event"), by_name.get(str(event.get("cell")))
            if kind == "want":
                job = waiting.pop() if waiting else self._next_for_pack(first, len(began))
                if job is None:
                    return "null"
                began[job.name] = time.monotonic()
                print_status(f"[{self.number(job)}] {job.name}: {job.steps:,} updates, in pack {slot}")
                self.ledger.record_start(job.name)
                path = self.ledger.log(job.name)
                log_sizes[job.name] = path.stat().st_size if path.exists() else 0
                request = {"cell": job.name, "words": job.overrides, "log": str(path)}
                return json.dumps({**request, "device": job.tree.get("device")})
            if kind == "ended" and job is not None and job.name in began:
                code, seconds = int(event["code"]), time.monotonic() - began.pop(job.name)
                reason = process.failure_reason(code, self.ledger.log(job.name), log_sizes[job.name])
                self.finish(job, ProcessResult(code, seconds, reason), packed=True)
            elif kind == "say":
                print_status(f"[pack {slot}] {event.get('text')}")
            elif kind == "packing":
                self._record_packing(event)
            return None

        log = self.ledger.log(f"pack-{slot}")
        try:
            end = process.run_with_replies(
                [*process.PACK, str(self.placement.lanes)],
                log,
                cwd=Path.cwd(),
                env=self._env(first, slot, pack=True),
                signals=lambda: self.signals,
                reply=reply,
                liveness=self.ledger.liveness(f"pack-{os.getpid()}-{slot}"),
            )
        except OSError as error:
            end = ProcessResult(EnvError.code, 0.0, f"can't be started ({error.strerror})")
        lost = [*began, *(job.name for job in waiting)]
        stopped = process.state_of_code(end.code) == "stopped" and bool(self.signals)
        if lost and not stopped:
            print_status(f"pack {slot} died (exit code {end.code}); retrying its cells one by one; see {log}")
        reason = "" if stopped else f"its pack died: {end.error or 'no error message'}"
        for name in lost:
            seconds = time.monotonic() - began.get(name, time.monotonic())
            self.finish(by_name[name], ProcessResult(end.code or EnvError.code, seconds, reason), packed=True)

    def _next_for_pack(self, first: Job, num_running: int) -> Job | None:
        """The next cell for a pack that runs ``num_running``, leaving the other slots their share."""
        share = -(-self._num_left() // self.placement.slots)
        return None if self.signals or num_running >= share else self.take(first)[0]

    def _record_packing(self, event: Mapping[str, Any]) -> None:
        """Append to ``packing.json`` what a pack measured and chose."""
        path = self.plan.out / "packing.json"
        with self.lock:
            packs = process.read_json_leniently(path).get("packs")
            new = {k: v for k, v in event.items() if k != "event"}
            write_json(path, {"format": 1, "packs": [*(packs if isinstance(packs, list) else []), new]})

    def finish(self, job: Job, end: ProcessResult, packed: bool = False) -> None:
        """Record the end of a try. Neighbors may have caused a failure in a pack, so it is always retried."""
        state = self.ledger.record_end(job, end, bool(self.signals))
        with self.lock:
            self.states[job.name] = state
            if state == "failed":
                final = end.code in process.FINAL and not packed
                self.tries[job.name] = MAX_TRIES if final else self.tries[job.name] + 1
            if state == "elsewhere":
                self.in_use[job.name] = time.monotonic()
            self.claims.pop(job.name).release()
        retry = state == "failed" and self.tries[job.name] < MAX_TRIES and not self.signals
        detail = ""
        if state == "finished":
            detail = process.format_scores(job.folder)
        elif state in ("failed", "diverged"):
            detail = self.ledger.last_try(job.name).get("error", "")
        more = "; will be retried" if retry else self._remaining()
        print_status(f"[{self.number(job)}] {job.name}: {state} after {end.seconds:.0f} s {detail}{more}")
        with contextlib.suppress(EnvError):  # on a full disk, the ledger has it all
            self.write_table()

    def _num_left(self) -> int:
        return sum(state in ("pending", "running") for state in self.states.values())

    def _remaining(self) -> str:
        """The number of cells left, and the time they need at the pace so far."""
        left = self._num_left()
        if not left or left >= self.num_pending:
            return ""
        minutes = (time.monotonic() - self.began) / (self.num_pending - left) * left / 60
        return f"; {left} left, about {minutes:.0f} min" if minutes >= 1 else f"; {left} left"

    def _env(self, job: Job, slot: int, pack: bool = False) -> Mapping[str, str]:
        """Environment of a cell: threads and GPUs divided among the slots, unless its overrides set them."""
        keys = {word.lstrip("+").partition("=")[0] for word in job.overrides}
        env = dict(self.env)
        threads = self.settings[job.name].threads if pack else self.threads
        if threads not in (None, "default") and "threads" not in keys:
            env["OMP_NUM_THREADS"] = str(threads)
        gpus = self.placement.gpus
        if gpus and "device" not in keys:
            env["CUDA_VISIBLE_DEVICES"] = visible_gpus()[gpus[slot % len(gpus)]]
        return env

    # ---- tables

    def number(self, job: Job) -> str:
        """``3/48``: the cell's position in the plan."""
        return f"{self.plan.jobs.index(job) + 1}/{len(self.plan.jobs)}"

    def write_table(self) -> list[dict[str, Any]]:
        """Write ``cells.csv`` and return its rows, one for each cell. Raises EnvError."""
        with self.lock:
            rows = [{"cell": j.name, **self.ledger.row(j, self.states[j.name])} for j in self.plan.jobs]
            process.write_csv(self.plan.out / "cells.csv", rows)
        return rows
