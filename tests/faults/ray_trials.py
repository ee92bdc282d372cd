"""Sweeps on a real Ray cluster of this machine: a killed worker, fractions of a GPU, a stopped sweep.

The GPU is one that the cluster is told of, which is enough for Ray's accounts.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ganlab.system.packages import is_installed

from .base import ROOT, Case, Figure, Numbers, environment
from .engines import Engine, Trial, run_trials

TRANSCRIPT = ROOT / "benchmarks" / "reliability" / "ray.txt"
STEPS = 400


def needs() -> str:
    """Why there can be no cluster here; nothing if there can."""
    return "" if is_installed("ray") else "Ray is not installed: pip install 'ganlab[ray]'"


class Cluster(Engine):
    """A cluster of one node with 2 CPUs and what it is told is a GPU."""

    def __init__(self, place: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        env = environment({"RAY_USAGE_STATS_ENABLED": "0", "GANLAB_CACHE": str(place / "cache")})
        env |= {"RAY_raylet_start_wait_time_s": "300", "RAY_agent_register_timeout_ms": "300000"}
        env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], os.environ.get("PYTHONPATH", "")])
        super().__init__(place, env, {f":{self.port}": ":PORT"})

    @contextmanager
    def up(self) -> Iterator[None]:
        """``ray start --block`` ends its children."""
        words = ["--head", "--block", "--num-cpus=2", "--num-gpus=1", "--disable-usage-stats"]
        words += ["--include-dashboard=false", f"--port={self.port}", "--node-ip-address=127.0.0.1"]
        words += ["--object-store-memory=100000000"]
        self.say(f"$ ray start {' '.join(words[:4])}")
        with self.daemon([sys.executable, "-m", "ray.scripts.scripts", "start", *words]) as log:
            self.until(lambda: "Ray runtime started" in log.read_text(), "cluster")
            yield


def on_ray(trial: Trial, *words: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """The sweep on the cluster, with options of ``ray.remote``."""
    assert isinstance(trial.engine, Cluster)
    address = f"hydra.launcher.ray.init.address=127.0.0.1:{trial.engine.port}"
    own = [f"hydra.launcher.ray.remote.{word}" for word in words]
    return trial.sweep("hydra/launcher=ray", address, *own)


def fractions(trial: Trial) -> None:
    """Four cells with half a GPU each: two at a time, each run once, each told its GPU"""
    most = 0
    with on_ray(trial, "num_gpus=0.5", "num_cpus=0.5") as process:
        while process.poll() is None and sum(r["status"] == "finished" for r in trial.results()) < 4:
            pids = trial.at_work()
            most = max(most, len(pids))
            for pid in pids.values():
                try:
                    environ = Path(f"/proc/{pid}/environ").read_bytes()
                except OSError:  # it has just ended
                    continue
                assert not environ or b"CUDA_VISIBLE_DEVICES=0" in environ.split(b"\0")
            time.sleep(0.2)
    assert process.returncode == 0
    assert most <= 2, f"{most} at a time"
    assert sorted(trial.starts()) == ["s0", "s1", "s2", "s3"]
    assert trial.status() == {"finished"}
    trial.engine.say(f"at most {most} cells at a time; CUDA_VISIBLE_DEVICES=0 in each")


def killed(with_cell: bool, trial: Trial) -> None:
    """kill -9 of a worker: its cell is run again, from its last checkpoint, and finishes"""
    with on_ray(trial, "num_gpus=0") as process:
        name, pid = trial.until_at_work(8)
        metrics = trial.place / "out" / name / "metrics.jsonl"
        before = metrics.read_bytes().splitlines()[:5]  # with their clocks; saved at step 5
        status = Path(f"/proc/{pid}/status").read_text()
        os.kill(int(status.partition("PPid:")[2].split()[0]), signal.SIGKILL)
        if with_cell:
            os.killpg(pid, signal.SIGKILL)
        trial.engine.say(f"# kill -9: the worker of {name}{' and the cell' * with_cell}")
    assert process.returncode == 0
    assert trial.status() == {"finished"}
    assert metrics.read_bytes().splitlines()[:5] == before, "it began anew"
    starts = trial.starts()
    assert not with_cell or starts.count(name) == 2, starts
    trial.engine.say(f"starts: {', '.join(f'{n} {starts.count(n)}' for n in sorted({*starts}))}")


def stopped(trial: Trial) -> None:
    """SIGTERM of the sweep: running cells save, waiting ones do not start; the same command ends it"""
    with on_ray(trial, "num_gpus=0", "num_cpus=2") as process:
        trial.until_at_work(8)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert trial.status() == {"stopped"}
    assert len(trial.starts()) == 1
    with on_ray(trial, "num_gpus=0", "num_cpus=1") as process:
        pass
    assert process.returncode == 0
    assert trial.status() == {"finished"}


TRIALS: dict[str, Callable[[Trial], None]] = {
    "fractions of a GPU": fractions,
    "a worker killed": functools.partial(killed, False),
    "a worker and its cell killed": functools.partial(killed, True),
    "the sweep stopped": stopped,
}


def trials(place: Path) -> Numbers:
    """All of them on one cluster; the transcript tells each."""
    import ray

    cluster = Cluster(place)
    cluster.say(f"Ray {ray.__version__}, one node; what scripts/reliability.py ray did and saw\n")

    def make(name: str, folder: Path) -> Trial:
        return Trial(cluster, folder, STEPS, "0, 1, 2, 3" if "fractions" in name else "0, 1")

    return run_trials(cluster, TRIALS, make, TRANSCRIPT)


def cases() -> list[Case]:
    return [Case("a cluster of its own", trials, len(TRIALS))]


FIGURES = [Figure("ray", "On a real Ray cluster: workers killed, fractions of a GPU", cases, needs=needs)]

if __name__ == "__main__":  # from tests/: python -m faults.ray_trials
    if why := needs():
        sys.exit(f"faults.ray_trials: {why}")
    with tempfile.TemporaryDirectory(prefix="ganlab-ray-") as folder:
        trials(Path(folder))
