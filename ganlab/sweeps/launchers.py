"""Run the cells of a sweep through a launcher: any of Hydra's (submitit on SLURM, joblib), or Ray.

A launcher calls ``run_cell`` for each cell, on any machine; it is a scheduler of that cell alone, with the
sweep's ledger. Signals are passed through a file, so they reach cells behind any launcher. A signal to the
launcher's worker itself (a preemption) is first forwarded to the cell, and given to the launcher's handler
once the cell has saved: submitit then requeues a job that timed out. A job that SLURM preempts ends without a
result, and is started again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from ganlab.config.hydra_compose import Callbacks, foreign_hydra, get_args_parser, hydra_over, unread
from ganlab.config.overrides import ParsedOverride, command_line, quoted
from ganlab.errors import ConfigError, EnvError
from ganlab.sweeps import process
from ganlab.sweeps.ledger import Ledger
from ganlab.sweeps.placement import Placement, Rules, visible_gpus
from ganlab.sweeps.plan import Job, Plan
from ganlab.sweeps.process import print_status
from ganlab.sweeps.scheduler import Outcomes, Scheduler
from ganlab.system.files import write_json
from ganlab.system.packages import is_installed
from ganlab.system.paths import python_path
from ganlab.system.signals import SIGNALS, restored

_SPEC = "launch.json"
_CELL = ("name", "axes", "overrides", "steps", "label")  # what a worker needs of a Job, beside its folder


class LaunchSpec(NamedTuple):
    """What a launcher's worker, possibly on another machine, needs to run a cell; saved as JSON."""

    ledger: str
    dirs: list[str]
    cwd: str
    command: list[str]
    process: str
    gpus: list[str]
    stall_s: float
    previous_ids: dict[str, Any]
    cells: list[dict[str, Any]]


class Launcher:
    """A launcher with its settings. ``run`` runs cells and returns what became of each.

    overrides: the ``hydra.*`` settings of the command line; common: the overrides of a cell, whose files may
    choose a launcher too. Raises ConfigError for a mistake in the settings.
    """

    def __init__(
        self,
        overrides: Sequence[ParsedOverride],
        common: Sequence[str],
        config_dirs: Sequence[str],
    ) -> None:
        self.line = command_line(common, config_dirs)
        self.overrides, self.call_dir, self.signals = list(overrides), Path(), list[int]()
        with hydra_over(self.line.dirs) as hydra:
            self.settings: DictConfig = self._compose(hydra).hydra
        self.is_local = not overrides and self.settings.runtime.choices["hydra/launcher"] == "basic"
        if "ray" in self.settings.launcher and not is_installed("ray"):
            raise EnvError("hydra/launcher", "Ray is not installed", "pip install 'ganlab[ray]'")

    def _compose(self, hydra: Any) -> DictConfig:
        own = [
            "hydra/job_logging=disabled",
            "hydra/hydra_logging=disabled",
            "hydra.output_subdir=null",
            "hydra.job.name=ganlab",
            f"hydra.sweep.dir={quoted(str(self.call_dir.absolute()))}",
            "hydra.sweep.subdir=.",
            "hydra.mode=MULTIRUN",
        ]
        words = [*self.line.texts(), *(o.text for o in self.overrides), *own]
        try:
            raw: DictConfig = hydra.compose_config("train", words, RunMode.MULTIRUN, from_shell=False)
        except HydraException as error:  # the cells compose, so it concerns the launcher's own keys
            what = str(error).splitlines()[0]
            fix = "'ganlab train --cfg hydra hydra/launcher=NAME' lists its keys; add a new one with +"
            raise ConfigError("hydra.launcher", what, fix) from error
        env_set = any(o.key.startswith("hydra.job.env_set") for o in self.overrides)
        if self.line.dirs and (mistakes := foreign_hydra(raw, env_set=env_set, own=tuple(own))):
            raise ConfigError(mistakes)
        return raw

    def stop(self, signum: int) -> None:
        """Send a signal to all cells, now and those launched later."""
        self.signals.append(signum)
        self._write_signals()

    def _write_signals(self) -> None:
        if self.call_dir != Path() and self.signals:
            (self.call_dir / "stop").write_text(" ".join(map(str, self.signals)))

    def run(self, jobs: list[Job], ledger: Ledger) -> Outcomes:
        """Run ``jobs`` and wait for them. Raises what the launcher raises."""
        call_dir = _new_folder(ledger.folder.absolute())  # a worker may have another working folder
        has_slots = (self.settings.launcher.get("n_jobs") or 1) != 1
        spec = LaunchSpec(
            str(ledger.folder.absolute()),
            [str(d) for d in self.line.dirs],
            str(Path.cwd()),
            process.COMMAND,
            _process_name(),
            visible_gpus() if has_slots else [],
            ledger.stall_s,
            ledger.previous_ids,
            [{key: getattr(job, key) for key in _CELL} | {"folder": str(job.folder)} for job in jobs],
        )
        write_json(call_dir / _SPEC, spec._asdict())
        self.call_dir = call_dir
        self._write_signals()  # those that arrived before there was a folder
        try:
            if "ray" in self.settings.launcher:
                self._launch_on_ray(jobs, ledger)
            else:
                self._launch_with_hydra(jobs)
        finally:
            outcomes = {j.name: process.read_json_leniently(call_dir / f"{j.name}.json") for j in jobs}
        return {name: str(outcome.get("state") or "") for name, outcome in outcomes.items()}

    def _launch_with_hydra(self, jobs: Sequence[Job]) -> None:
        with hydra_over(self.line.dirs) as hydra:
            raw = self._compose(hydra)
            context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=run_cell, config=raw
            )
            launcher.launch([[] for _ in jobs], initial_job_idx=0)

    def _launch_on_ray(self, jobs: Sequence[Job], ledger: Ledger) -> None:
        """Run each cell as a task of a Ray cluster; Ray retries one whose worker or node died."""
        import ray

        settings: Any = OmegaConf.to_container(self.settings.launcher.ray, resolve=True)
        init = {k: v for k, v in settings["init"].items() if v is not None}
        options = {k: v for k, v in settings["remote"].items() if v is not None}
        init.setdefault("address", os.environ.get("RAY_ADDRESS") or "local")
        env = {"env_vars": {"PYTHONPATH": python_path(os.environ)}}
        with restored():  # Ray's own handler of SIGTERM would end the sweep
            ray.init(**{"log_to_driver": False, "runtime_env": env, **init})
        try:
            cluster = ray.cluster_resources()
            options.setdefault("num_gpus", 1 if cluster.get("GPU") else 0)
            for key, name in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
                if options.get(key, 0) > cluster.get(name, 0):
                    have = f"the cluster has {cluster.get(name, 0):g}, and a cell wants {options[key]:g}"
                    print_status(f"hydra.launcher.ray.remote.{key}: {have}; waiting for more")
            task = ray.remote(**options)(run_cell_at)
            waiting = {task.remote(str(self.call_dir), n): job for n, job in enumerate(jobs)}
            failure: Exception | None = None
            while waiting:
                done, _ = ray.wait([*waiting], timeout=0.5)
                for ref in done:
                    job = waiting.pop(ref)
                    try:
                        ray.get(ref)
                    except ray.exceptions.RayError as error:
                        failure = error
                    state = process.read_json_leniently(self.call_dir / f"{job.name}.json").get("state")
                    ended = "not started" if self.signals else "its worker died"
                    print_status(f"{job.name}: {state or ended}; {len(waiting)} on Ray")
                for ref, job in [*waiting.items()] if self.signals else []:
                    if (claim := ledger.claim(job.name)) is not None:  # it has not started
                        claim.release()
                        ray.cancel(ref)
            if failure is not None:
                raise failure
        finally:
            ray.shutdown()


# ---- the worker's side


def run_cell(_: DictConfig) -> None:
    """Run one cell; Hydra's launchers call this."""
    config = HydraConfig.get()
    run_cell_at(config.sweep.dir, int(config.job.num), int(config.launcher.get("n_jobs") or 1))


def run_cell_at(call_dir: str, number: int, num_parallel: int = 1) -> None:
    """Run cell ``number`` of a launch and record its state. ``num_parallel``: cells that share a machine."""
    folder = Path(call_dir)
    spec = LaunchSpec(**json.loads((folder / _SPEC).read_text("utf-8")))
    process.COMMAND = spec.command
    cell = spec.cells[number]
    job = Job(**{**cell, "folder": Path(spec.cwd, cell["folder"])})
    is_worker = _process_name() != spec.process and threading.current_thread() is threading.main_thread()
    slots = num_parallel if num_parallel > 0 else os.cpu_count() or 1
    with _catch_signals(is_worker) as signals:
        scheduler = Scheduler(
            [job],
            Ledger(Path(spec.ledger), spec.stall_s, spec.previous_ids),
            Rules(stall_s=spec.stall_s),
            Placement(slots, spec.gpus if len(spec.gpus) > 1 else ()),
            spec.dirs,
            signals=lambda: [*_read_signals(folder), *signals],
            cwd=Path(spec.cwd),
            waits=False,
        )
        scheduler.work(number)
    write_json(folder / f"{job.name}.json", {"state": scheduler.states[job.name]})


@contextlib.contextmanager
def _catch_signals(is_worker: bool) -> Iterator[list[int]]:
    """In a launcher's worker, collect signals for the cell; at the end call the worker's own handlers.

    A terminal's Ctrl-C is ignored here: the sweep gets it too, and forwards it through its file.
    """
    signals: list[int] = []
    handlers = {n: signal.getsignal(n) for n in SIGNALS if is_worker}
    for number in handlers:
        if number == signal.SIGINT:
            signal.signal(number, lambda *_: None)  # not SIG_IGN, which the cell would inherit
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


def _read_signals(call_dir: Path) -> list[int]:
    """The signals that the sweep has received."""
    try:
        return [int(word) for word in (call_dir / "stop").read_text().split()]
    except (OSError, ValueError):
        return []


def _new_folder(parent: Path) -> Path:
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


def choose(overrides: Sequence[ParsedOverride], plan: Plan, config_dirs: Sequence[str]) -> Launcher | None:
    """The launcher that the command line or a user's config file chose; None for local processes."""
    if not overrides and not command_line([], config_dirs).dirs:
        return None
    common = [word for word in plan.jobs[0].overrides if not word.lstrip("+").startswith("run_dir=")]
    launcher = Launcher(overrides, common, config_dirs)
    return None if launcher.is_local else launcher


# ---- Hydra's own options


def run_hydra_option(rest: Sequence[str], overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> int:
    """Let Hydra handle ``--info``, ``--hydra-help`` or ``--cfg hydra|all``.

    ``rest``: the options. Raises ConfigError for mistakes in the overrides.
    """
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
