"""Run the cells of ``ganlab train -m`` through a Hydra launcher: this machine, joblib, SLURM, Ray.

A launcher calls ``run_cell`` for each cell, on any machine; ``run_cell`` runs ``python -m ganlab train`` as a
subprocess and records how it ended in the ledger (``ledger.py``). Signals are passed through a file, so they
reach cells behind any launcher. A signal to the launcher's worker itself (a preemption) is first forwarded to
the cell, and given to the launcher's handler once the cell has saved: submitit then requeues a job that timed
out. A job that SLURM preempts ends without a result, and is started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
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
from ganlab.sweeps.ledger import MAX_TRIES, Ledger
from ganlab.sweeps.plan import Job, Rules, final_status, visible_gpus
from ganlab.sweeps.process import ProcessResult, print_status
from ganlab.system.files import write_json
from ganlab.system.signals import SIGNALS


class LaunchSpec(NamedTuple):
    """What a launcher's worker, possibly on another machine, needs to run a cell; saved as ``told.json``."""

    books: str
    command: list[str]
    dirs: list[str]
    cwd: str
    process: str
    gpus: list[str]
    stall_s: float
    before: dict[str, Any]
    cells: list[dict[str, Any]]


def launch(line: CommandLine, cells: Sequence[Job], call_dir: Path, ledger: Ledger, rules: Rules) -> None:
    """Run ``cells`` with the launcher of the command line, and wait for it.

    ``call_dir``: a new folder for exchanging files with the workers of this call.
    """
    spec = LaunchSpec(
        str(ledger.folder.absolute()),
        process.COMMAND,
        [str(d) for d in line.dirs],
        str(Path.cwd()),
        _process_name(),
        visible_gpus(),
        rules.stall_s,
        ledger.previous_ids,
        [
            {"name": c.name, "folder": str(c.folder), "steps": c.steps, "words": c.overrides, "axes": c.axes}
            for c in cells
        ],
    )
    write_json(call_dir / "told.json", spec._asdict())
    own = [
        "hydra/job_logging=disabled",
        "hydra/hydra_logging=disabled",
        "hydra.output_subdir=null",
        "hydra.job.name=ganlab",
        f"hydra.sweep.dir={quoted(str(call_dir.absolute()))}",
        "hydra.sweep.subdir=.",
        "hydra.mode=MULTIRUN",
    ]
    common = [g.text for g in line.overrides if not g.sweep]
    with hydra_over(line.dirs) as hydra:
        try:
            raw = hydra.compose_config("train", [*common, *own], RunMode.MULTIRUN, from_shell=False)
        except HydraException as error:  # the cells compose, so it concerns the launcher's own keys
            what = str(error).splitlines()[0]
            fix = "'ganlab train --cfg hydra hydra/launcher=NAME' lists its keys; add a new one with +"
            raise ConfigError("hydra.launcher", what, fix) from error
        env_set = any(g.key.startswith("hydra.job.env_set") for g in line.overrides)
        if line.dirs and (mistakes := foreign_hydra(raw, env_set=env_set, own=tuple(own))):
            raise ConfigError(mistakes)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=run_cell, config=raw
        )
        launcher.launch([cell.overrides for cell in cells], initial_job_idx=0)


def run_cell(_: DictConfig) -> None:
    """Run one cell and record its state; Hydra's launchers call this."""
    config = HydraConfig.get()
    call_dir, number = Path(config.sweep.dir), int(config.job.num)
    spec = LaunchSpec(**json.loads((call_dir / "told.json").read_text("utf-8")))
    cell = spec.cells[number]
    job = Job(cell["name"], cell["axes"], cell["words"], Path(spec.cwd, cell["folder"]), cell["steps"], {})
    ledger = Ledger(Path(spec.books), spec.stall_s)
    ledger.previous_ids = spec.before
    is_worker = _process_name() != spec.process and threading.current_thread() is threading.main_thread()
    num_parallel = config.launcher.get("n_jobs") or 1
    with _catch_signals(is_worker) as signals:
        gpu = spec.gpus[number % len(spec.gpus)] if num_parallel != 1 and len(spec.gpus) > 1 else ""
        state = _run(job, spec, ledger, call_dir, num_parallel, gpu, signals)
    write_json(call_dir / f"{job.name}.json", {"state": state})


def _run(
    job: Job,
    spec: LaunchSpec,
    ledger: Ledger,
    call_dir: Path,
    num_parallel: int,
    gpu: str,
    signals: list[int],
) -> str:
    """Run a cell until it is over, has used its tries, or a signal arrives; returns its state.

    ``num_parallel``: cells that share this machine. ``gpu``: CUDA's name of the GPU for this cell, or "".
    """
    number = int(job.name)
    env = dict(os.environ, GANLAB_CONFIGS=os.pathsep.join(spec.dirs))
    if num_parallel != 1:
        cores = os.cpu_count() or 1
        env.setdefault("OMP_NUM_THREADS", str(max(1, cores // (cores if num_parallel < 0 else num_parallel))))
    if gpu and not any(word.lstrip("+").startswith("device=") for word in job.overrides):
        env["CUDA_VISIBLE_DEVICES"] = gpu
    state = "pending"
    while not read_signals(call_dir) and not signals:
        claim = ledger.claim(job.name)
        if claim is None:
            return "elsewhere"
        try:
            if status := final_status(job.folder, job.steps):
                return status
            if ledger.failed_tries(job.name) >= MAX_TRIES:
                return "failed"
            if ledger.holder(job):
                return "elsewhere"
            ledger.record_start(job.name)
            try:
                end = process.run(
                    [*spec.command, *job.overrides],
                    ledger.log(job.name),
                    cwd=spec.cwd,
                    env=env,
                    signals=lambda: [*read_signals(call_dir), *signals],
                    on_line=lambda line: print_status(f"[{number}] {line}"),
                    liveness=ledger.liveness(job.name),
                    pass_fds=[claim.fileno()],
                )
            except OSError as error:
                end = ProcessResult(EnvError.code, 0.0, f"can't be started ({error.strerror})")
            state = ledger.record_end(job, end, bool(signals or read_signals(call_dir)))
        finally:
            claim.release()
        print_status(f"[{number}] {state} after {end.seconds:.0f} s")
        if state != "failed":
            break
    return state


@contextlib.contextmanager
def _catch_signals(is_worker: bool) -> Iterator[list[int]]:
    """In a launcher's worker, collect signals for the cell; at the end call the worker's own handlers.

    A terminal's Ctrl-C is ignored here: the sweep gets it too, and forwards it through its file.
    """
    signals: list[int] = []
    handlers = {n: signal.getsignal(n) for n in SIGNALS if is_worker}
    for number in handlers:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)
        elif handlers[number] is not signal.SIG_IGN:
            signal.signal(number, lambda signum, _: signals.append(signum))
    try:
        yield signals
    finally:
        for number, original in handlers.items():
            if number != signal.SIGINT and original is not None:
                signal.signal(number, original)
        if signal.SIGTERM in signals and process.will_be_requeued():
            raise SystemExit(128 + signal.SIGTERM)  # without a result, so the launcher waits for the restart
        for signum in dict.fromkeys(signals):
            if callable(handler := handlers[signum]):
                handler(signum, None)


def write_signal(call_dir: Path, signum: int) -> None:
    """Send a signal to all cells of this call."""
    with open(call_dir / "stop", "a") as file:
        file.write(f"{signum}\n")


def read_signals(call_dir: Path) -> list[int]:
    """The signals that the sweep has received."""
    try:
        return [int(word) for word in (call_dir / "stop").read_text().split()]
    except (OSError, ValueError):
        return []


def read_outcome(call_dir: Path, name: str) -> str:
    """The state that a cell's worker recorded, or an empty string."""
    return str(process.read_json_leniently(call_dir / f"{name}.json").get("state") or "")


def new_call_folder(parent: Path) -> Path:
    """Create a folder for one call of a launcher. Raises EnvError."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    folder = parent / "launches" / f"{stamp}-{os.getpid()}-{os.urandom(3).hex()}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        fix = "fix its permissions, or use another working folder"
        raise EnvError(str(folder), f"can't be created ({error.strerror})", fix) from error
    return folder


def _process_name() -> str:
    return f"{os.getpid()}@{socket.gethostname()}"
