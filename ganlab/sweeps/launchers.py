"""The cells of ``ganlab train -m`` behind one of Hydra's launchers: this machine, joblib, SLURM, Ray.

A launcher calls ``cell`` for each, wherever it pleases; ``cell`` runs ``python -m ganlab train`` as a
process of its own and notes how it ended in the books (``ledger.py``). Signals come through a file, so that
they reach cells behind any launcher; one that the launcher's own worker gets (a preemption) is passed on
first, and handed to the launcher's handler once the cell has saved: submitit then queues the job again when
its time is over. One that SLURM preempts ends without a result, and is started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from ganlab.config.hydra_compose import foreign_hydra, hydra_over
from ganlab.config.overrides import CommandLine, quoted
from ganlab.errors import ConfigError, EnvError
from ganlab.sweeps import process
from ganlab.sweeps.ledger import TRIES, Ledger
from ganlab.sweeps.plan import Job, Rules, end_status, gpu_id
from ganlab.sweeps.process import ProcessResult, print_status
from ganlab.system.files import write_json
from ganlab.system.signals import SIGNALS


class LaunchFailure(NamedTuple):
    """What a launcher's worker must know of the sweep; it may stand elsewhere."""

    books: str
    command: list[str]
    dirs: list[str]
    cwd: str
    process: str
    gpus: list[str]
    stall_s: float
    before: dict[str, Any]
    cells: list[dict[str, Any]]


def launch(line: CommandLine, cells: Sequence[Job], place: Path, books: Ledger, rules: Rules) -> None:
    """Hand ``cells`` to the launcher that the command line names, and wait for it.

    ``place``: a new folder, for what this call tells its workers and hears from them.
    """
    told = LaunchFailure(
        str(books.place.absolute()),
        process.COMMAND,
        [str(d) for d in line.dirs],
        str(Path.cwd()),
        _me(),
        gpu_id(),
        rules.stall_s,
        books.before,
        [
            {"name": c.name, "folder": str(c.folder), "steps": c.steps, "words": c.overrides, "axes": c.axes}
            for c in cells
        ],
    )
    write_json(place / "told.json", told._asdict())
    own = [
        "hydra/job_logging=disabled",
        "hydra/hydra_logging=disabled",
        "hydra.output_subdir=null",
        "hydra.job.name=ganlab",
        f"hydra.sweep.dir={quoted(str(place.absolute()))}",
        "hydra.sweep.subdir=.",
        "hydra.mode=MULTIRUN",
    ]
    common = [g.text for g in line.overrides if not g.sweep]
    with hydra_over(line.dirs) as hydra:
        try:
            raw = hydra.compose_config("train", [*common, *own], RunMode.MULTIRUN, from_shell=False)
        except HydraException as error:  # the cells composed: it is about the launcher's own keys
            what = str(error).splitlines()[0]
            fix = "'ganlab train --cfg hydra hydra/launcher=NAME' shows its keys; a new one wants a plus"
            raise ConfigError("hydra.launcher", what, fix) from error
        env_set = any(g.key.startswith("hydra.job.env_set") for g in line.overrides)
        if line.dirs and (wrong := foreign_hydra(raw, env_set=env_set, own=tuple(own))):
            raise ConfigError(wrong)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=run_cell, config=raw
        )
        launcher.launch([run_cell.overrides for run_cell in cells], initial_job_idx=0)


def run_cell(_: DictConfig) -> int | None:
    """Run one cell and note how it ended. Called by Hydra's launchers. None: another sweep works on it."""
    config = HydraConfig.get()
    place, number = Path(config.sweep.dir), int(config.job.num)
    told = LaunchFailure(**json.loads((place / "told.json").read_text("utf-8")))
    mine = told.cells[number]  # of those still to be run
    job = Job(mine["name"], mine["axes"], mine["words"], Path(told.cwd, mine["folder"]), mine["steps"], {})
    books = Ledger(Path(told.books), told.stall_s)
    books.before = told.before
    worker = _me() != told.process and threading.current_thread() is threading.main_thread()
    at_once = config.launcher.get("n_jobs") or 1
    with _heard(worker) as heard:
        gpu = told.gpus[number % len(told.gpus)] if at_once != 1 and len(told.gpus) > 1 else ""
        state = _run(job, int(job.name), told, books, place, at_once, gpu, heard)
    write_json(place / f"{job.name}.json", {"state": state})
    return None


def _run(
    job: Job,
    number: int,
    told: LaunchFailure,
    books: Ledger,
    place: Path,
    at_once: int,
    gpu: str,
    heard: list[int],
) -> str:
    """Try a cell until it is over, or it has had its tries, or a signal came. The state it is in.

    ``at_once``: cells that share this machine; ``gpu``: the one of its GPUs for this cell, by CUDA's name.
    """
    env = dict(os.environ, GANLAB_CONFIGS=os.pathsep.join(told.dirs))
    if at_once != 1:
        cores = os.cpu_count() or 1
        env.setdefault("OMP_NUM_THREADS", str(max(1, cores // (cores if at_once < 0 else at_once))))
    if gpu and not any(word.lstrip("+").startswith("device=") for word in job.overrides):
        env["CUDA_VISIBLE_DEVICES"] = gpu
    state = "pending"
    while not read_signals(place) and not heard:
        claim = books.claim(job.name)
        if claim is None:
            return "elsewhere"
        try:
            if over := end_status(job.folder, job.steps):
                return over
            if books.tries(job.name) >= TRIES:
                return "failed"
            if books.holder(job):
                return "elsewhere"
            books.started(job.name)
            try:
                end = process.run(
                    [*told.command, *job.overrides],
                    books.log(job.name),
                    cwd=told.cwd,
                    env=env,
                    asked=lambda: [*read_signals(place), *heard],
                    heard=lambda line: print_status(f"[{number}] {line}"),
                    vitals=books.vitals(job.name),
                    keep=[claim.fileno()],
                )
            except OSError as error:
                end = ProcessResult(EnvError.code, 0.0, f"can't be started ({error.strerror})")
            state = books.ended(job, end, bool(heard or read_signals(place)))
        finally:
            claim.release()
        print_status(f"[{number}] {state} after {end.seconds:.0f} s")
        if state != "failed":
            break
    return state


@contextlib.contextmanager
def _heard(worker: bool) -> Iterator[list[int]]:
    """In a launcher's worker: the signals that come, for the cell; at the end its own handlers' turn.

    A terminal's Ctrl-C comes to the worker too: it is left to the sweep, which tells through its file.
    """
    heard: list[int] = []
    old = {n: signal.getsignal(n) for n in SIGNALS if worker}
    for number in old:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)
        elif old[number] is not signal.SIG_IGN:
            signal.signal(number, lambda signum, _: heard.append(signum))
    try:
        yield heard
    finally:
        for number, before in old.items():
            if number != signal.SIGINT and before is not None:
                signal.signal(number, before)
        if signal.SIGTERM in heard and _queued_again():
            raise SystemExit(128 + signal.SIGTERM)  # without a result: the launcher waits for the next start
        for signum in dict.fromkeys(heard):
            if callable(handler := old[signum]):
                handler(signum, None)


def _queued_again() -> bool:
    """Whether SLURM, which sent this job SIGTERM, will start it again: it was preempted, not cancelled.

    A job that ends within its time of grace has ended well, for SLURM: we have it queued again ourselves.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    try:
        show = ["scontrol", "show", "job", "-o", job]
        said = subprocess.run(show, capture_output=True, text=True, timeout=60, check=False).stdout
        facts = dict(word.partition("=")[::2] for word in said.split())
        if int(facts.get("Restarts") or 0) > int(os.environ.get("SLURM_RESTART_COUNT") or 0):
            return True
        if facts.get("PreemptTime", "None") == "None":
            return False
        return not subprocess.run(["scontrol", "requeue", job], timeout=60, check=False).returncode
    except (OSError, subprocess.SubprocessError, ValueError):
        return False


def write_signal(place: Path, signum: int) -> None:
    """Tell all cells of this call of a signal."""
    with open(place / "stop", "a") as file:
        file.write(f"{signum}\n")


def read_signals(place: Path) -> list[int]:
    """The signals that the sweep has had."""
    try:
        return [int(word) for word in (place / "stop").read_text().split()]
    except (OSError, ValueError):
        return []


def read_outcome(place: Path, name: str) -> str:
    """What a cell's worker said of its state, or nothing."""
    return str(process.read_json_leniently(place / f"{name}.json").get("state") or "")


def new_call_folder(parent: Path) -> Path:
    """A folder of this call's own. Raises EnvError."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    place = parent / "launches" / f"{stamp}-{os.getpid()}-{os.urandom(3).hex()}"
    try:
        place.mkdir(parents=True)
    except OSError as error:
        fix = "mend its permissions, or work elsewhere"
        raise EnvError(str(place), f"can't be made ({error.strerror})", fix) from error
    return place


def _me() -> str:
    return f"{os.getpid()}@{socket.gethostname()}"
