"""Sweeps on a real Ray cluster of this machine: a killed worker, fractions of a GPU, a stopped sweep.

What was seen goes to ``benchmarks/reliability/ray.txt``. The GPU is one that the cluster is told of, which is
enough for Ray's accounts.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ganlab.sweeps import ledger
from ganlab.system.packages import is_installed

from .base import ROOT, Case, Failed, Figure, Numbers, environment, nothing_lost, tiny, until

TRANSCRIPT = ROOT / "benchmarks" / "reliability" / "ray.txt"
STEPS = 400
GRID = "title: trial\nblocks:\n- overrides: [{words}]\n  axes: {{seed: [{seeds}]}}\n"
WAIT = 900.0  # seconds for anything to happen, on a busy machine


def needs() -> str:
    """Why there can be no cluster here; nothing if there can."""
    return "" if is_installed("ray") else "Ray is not installed: pip install 'ganlab[ray]'"


class Cluster:
    """A cluster of one node with 2 CPUs and what it is told is a GPU. ``say`` adds to the transcript."""

    def __init__(self, place: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.address = f"127.0.0.1:{server.getsockname()[1]}"
        self.place, self.lines = place, list[str]()
        self.env = environment({"RAY_USAGE_STATS_ENABLED": "0", "GANLAB_CACHE": str(place / "cache")})
        self.env["RAY_raylet_start_wait_time_s"] = "300"  # a busy machine
        self.env["RAY_agent_register_timeout_ms"] = "300000"
        self.env["PYTHONPATH"] = os.pathsep.join([self.env["PYTHONPATH"], os.environ.get("PYTHONPATH", "")])

    @contextmanager
    def up(self) -> Iterator[None]:
        """Inside, the cluster runs, in processes of ours: ``ray start --block`` ends its children."""
        port = self.address.rpartition(":")[2]
        words = ["--head", "--block", "--num-cpus=2", "--num-gpus=1", "--disable-usage-stats"]
        words += ["--include-dashboard=false", f"--port={port}", "--node-ip-address=127.0.0.1"]
        words += ["--object-store-memory=100000000"]
        self.say(f"$ ray start {' '.join(words[:4])}")
        with open(self.place / "ray.log", "wb") as log:
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words]
            process = subprocess.Popen(
                command, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        try:
            until(lambda: "Ray runtime started" in (self.place / "ray.log").read_text(), timeout=WAIT)
            yield
        finally:
            process.terminate()
            process.wait(60)

    def say(self, text: str) -> None:
        text = text.replace(str(self.place), ".").replace(self.address, "127.0.0.1:PORT")
        text = re.sub(r"after \d+ s.*", "after N s", text)
        self.lines += [line.rstrip() for line in text.splitlines()]
        print(text, flush=True)


class Trial:
    """A grid of ``seeds`` for the cluster, in a folder of its own."""

    def __init__(self, cluster: Cluster, place: Path, seeds: str) -> None:
        self.cluster, self.place = cluster, place
        words = [w for w in tiny(f"steps={STEPS}", "save_every=5")[1:] if not w.startswith("run_dir=")]
        (place / "conf" / "grid").mkdir(parents=True)
        grid = GRID.format(words=", ".join(f'"{w}"' for w in words), seeds=seeds)
        (place / "conf" / "grid" / "trial.yaml").write_text(grid)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """``ganlab sweep`` on the cluster."""
        line = ["grid=trial", "hydra/launcher=ray", f"hydra.launcher.ray.init.address={self.cluster.address}"]
        line += [f"hydra.launcher.ray.remote.{word}" for word in words]
        self.cluster.say("$ ganlab sweep " + " ".join(line))
        command = [sys.executable, "-m", "ganlab", "sweep", "--config-dir", "conf", "out=out", *line]
        return subprocess.Popen(
            command,
            cwd=self.place,
            env=self.cluster.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, process: subprocess.Popen[str]) -> int:
        """Wait for a sweep, and say what it said."""
        output = process.communicate(timeout=WAIT)[0]
        kept = [s for s in output.splitlines() if re.match(r"trial:|\[\d|s\d|cell |stopped|ganlab:", s)]
        self.cluster.say("\n".join([*kept, f"exit code {process.returncode}"]))
        for path in sorted(self.place.glob("out/*/result.json")):
            nothing_lost(path.parent)
        return process.returncode

    def owners(self) -> dict[str, int]:
        """Cell -> its process, of the cells that have trained a few steps."""
        found = {}
        for path in self.place.glob("out/*/.lock"):
            metrics = path.with_name("metrics.jsonl")
            pid = path.read_text().partition("@")[0]
            if pid.isdigit() and metrics.exists() and '"step": 8' in metrics.read_text():
                found[path.parent.name] = int(pid)
        return found

    def events(self, kind: str) -> list[dict[str, object]]:
        return [r for r in ledger.read_records(self.place / "out" / ".sweep") if r["event"] == kind]

    def states(self) -> set[str]:
        return {json.loads(p.read_text())["status"] for p in self.place.glob("out/*/result.json")}


def parent(pid: int) -> int:
    """The worker of a cell."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("PPid:")[2].split()[0])


def fractions(trial: Trial) -> None:
    """Four cells with half a GPU each: two at a time, each run once, each told its GPU"""
    process, most = trial.start("num_gpus=0.5", "num_cpus=0.5"), 0
    while process.poll() is None and len(trial.events("ended")) < 4:
        owners = trial.owners()
        most = max(most, len(owners))
        for pid in owners.values():
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:  # it has just ended
                continue
            assert not environ or b"CUDA_VISIBLE_DEVICES=0" in environ.split(b"\0")
        time.sleep(0.2)
    assert trial.end(process) == 0
    assert most <= 2, f"{most} at a time"
    assert len(trial.events("started")) == 4
    assert trial.states() == {"finished"}
    trial.cluster.say(f"at most {most} cells at a time; CUDA_VISIBLE_DEVICES=0 in each")


def killed(with_its_cell: bool, trial: Trial) -> None:
    """kill -9 of a worker: its cell is run again, from its last checkpoint, and finishes"""
    process = trial.start("num_gpus=0")
    until(trial.owners, timeout=WAIT)
    name, pid = next(iter(trial.owners().items()))
    worker = parent(pid)
    os.kill(worker, signal.SIGKILL)
    if with_its_cell:
        os.killpg(pid, signal.SIGKILL)
    trial.cluster.say(f"# kill -9: the worker of {name}{' and the cell' * with_its_cell}")
    assert trial.end(process) == 0
    assert trial.states() == {"finished"}
    starts = [str(r["cell"]) for r in trial.events("started")]
    assert starts.count(name) == (2 if with_its_cell else starts.count(name)), starts
    if with_its_cell:
        log = (trial.place / "out" / ".sweep" / f"{name}.log").read_text()
        assert re.search(r"resum|continu", log), log[-500:]
    trial.cluster.say(f"starts: {', '.join(f'{n} {starts.count(n)}' for n in sorted({*starts}))}")


def stopped(trial: Trial) -> None:
    """SIGTERM of the sweep: running cells save, waiting ones do not start; the same command ends it"""
    process = trial.start("num_gpus=0", "num_cpus=2")
    until(trial.owners, timeout=WAIT)
    process.send_signal(signal.SIGTERM)
    assert trial.end(process) == 128 + signal.SIGTERM
    assert trial.states() == {"stopped"}
    assert len(trial.events("started")) == 1
    assert trial.end(trial.start("num_gpus=0", "num_cpus=1")) == 0
    assert trial.states() == {"finished"}


TRIALS: dict[str, tuple[Callable[[Trial], None], str]] = {
    "fractions of a GPU": (fractions, "0, 1, 2, 3"),
    "a worker killed": (functools.partial(killed, False), "0, 1"),
    "a worker and its cell killed": (functools.partial(killed, True), "0, 1"),
    "the sweep stopped": (stopped, "0, 1"),
}


def trials(place: Path) -> Numbers:
    """All of them on one cluster, one after the other; the transcript tells each."""
    import ray

    cluster, failed = Cluster(place), list[str]()
    cluster.say(f"Ray {ray.__version__}, one node; what scripts/reliability.py ray did and saw\n")
    with cluster.up():
        for number, (name, (check, seeds)) in enumerate(TRIALS.items()):
            cluster.say(f"\n{name}\n# {inspect.getdoc(getattr(check, 'func', check))}")
            try:
                check(Trial(cluster, place / f"trial-{number}", seeds))
            except (AssertionError, OSError, subprocess.SubprocessError, ValueError) as error:
                failed.append(f"{name}: {error!s:.300}")
                cluster.say(f"FAILED: {error!s:.300}")
    if failed:
        raise Failed(len(failed), "; ".join(failed))
    TRANSCRIPT.write_text("\n".join(cluster.lines) + "\n")
    return {}


def cases() -> list[Case]:
    return [Case("a cluster of its own", trials, len(TRIALS))]


FIGURES = [
    Figure("ray", "A real Ray cluster: workers killed, fractions of a GPU", (1, 9), 4, cases, needs=needs)
]

if __name__ == "__main__":  # from tests/: python -m faults.ray_trials
    if why := needs():
        sys.exit(f"faults.ray_trials: {why}")
    with tempfile.TemporaryDirectory(prefix="ganlab-ray-") as folder:
        trials(Path(folder))
