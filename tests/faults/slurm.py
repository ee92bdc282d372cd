"""Sweeps on a real SLURM of one node on this machine: cancelled, preempted, out of time.

Debian's slurm-wlm and munge, run by root with a config in a folder of their own, without systemd and a
database; only what was started here is ended.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .base import ROOT, Case, Figure, Numbers, environment
from .engines import WAIT, Engine, Trial, run_trials

TRANSCRIPT = ROOT / "benchmarks" / "reliability" / "slurm.txt"
BRIEF_S = 30.0  # seconds of a cell's training: long enough to be met at work
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue", "srun")
PATH = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
CONF = """\
ClusterName=trial
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=low Nodes=ALL Default=YES PriorityTier=1
PartitionName=grace Nodes=ALL PriorityTier=1 GraceTime=10
PartitionName=cancels Nodes=ALL PriorityTier=1 PreemptMode=CANCEL
PartitionName=high Nodes=ALL PriorityTier=10
"""


def needs() -> str:
    """Why there can be no such node here; nothing if there can."""
    if os.geteuid():
        return "starts SLURM's daemons: run it as root"
    missing = [name for name in COMMANDS if not shutil.which(name, path=PATH)]
    return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge" if missing else ""


class Node(Engine):
    """The node, with commands of SLURM."""

    def __init__(self, place: Path) -> None:
        self.own = place / "slurm"
        for name in ("state", "spool"):
            (self.own / name).mkdir(parents=True)
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        self.host = socket.gethostname().partition(".")[0]
        conf = self.own / "slurm.conf"
        conf.write_text(CONF.format(host=self.host, place=self.own, ports=ports))
        env = {"SLURM_CONF": str(conf), "PATH": PATH, "GANLAB": f"{sys.executable} -m ganlab"}
        env["GANLAB_CACHE"] = str(place / "cache")
        super().__init__(place, environment(env), {rf"\b{re.escape(self.host)}\b": "node"})

    @contextmanager
    def up(self) -> Iterator[None]:
        """The daemons, in the foreground of processes of ours."""
        (self.own / "key").write_bytes(os.urandom(128))
        (self.own / "key").chmod(0o600)
        files = {"socket": "munge.socket", "key-file": "key", "log-file": "munged.log"}
        files |= {"pid-file": "munged.pid", "seed-file": "munged.seed"}
        munged = ["munged", "--foreground", "--force", *(f"--{k}={self.own / v}" for k, v in files.items())]
        with ExitStack() as stack:
            for name, *words in (munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c"]):
                stack.enter_context(self.daemon([shutil.which(name, path=PATH) or name, *words]))
                self.until((self.own / "munge.socket").exists, "munged")
            self.until(lambda: "idle" in self.output("sinfo", "-h", "-o", "%T"), "idle node")
            yield

    def clear(self) -> None:
        self.output("scancel", "--user=root")
        self.until(lambda: not self.output("squeue", "-h"), "empty queue")

    def batch(self, *words: str, cwd: Path) -> str:
        """Submit; the job's number."""
        output = self.run("sbatch", *words, cwd=cwd)
        match = re.search(r"Submitted batch job (\d+)", output)
        assert match, output
        return match[1]

    def job(self) -> str:
        """The number of the only job in the queue."""
        numbers = list[str]()

        def queued() -> list[str]:
            numbers[:] = re.findall(r"^\d+", self.output("squeue", "-h", "-r", "-o", "%A"), re.MULTILINE)
            return numbers

        self.until(queued, "job")
        return numbers[0]

    def end(self, job: str) -> str:
        """Wait until a job is over: its state, restarts and exit code."""

        def fact(name: str) -> str:
            match = re.search(rf"\b{name}=(\S*)", self.output("scontrol", "show", "job", "-o", job))
            return match[1] if match else ""

        ends = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED")
        self.until(lambda: fact("JobState") in ends, f"end of job {job}")
        facts = " ".join(f"{k}={fact(k)}" for k in ("JobState", "Restarts", "ExitCode"))
        self.say(f"job {job}: {facts}")
        return facts

    def preempt(self, cwd: Path) -> None:
        """A job that needs the whole node, and goes first."""
        self.batch("-p", "high", "-n", "2", "-o", "high.out", "--wrap", "sleep 1", cwd=cwd)


def node_of(trial: Trial) -> Node:
    assert isinstance(trial.engine, Node)
    return trial.engine


def array(trial: Trial, *words: str, tasks: str = "0") -> str:
    """Submit ``scripts/slurm_array.sh`` for the grid; the number of its first task."""
    script = [str(ROOT / "scripts" / "slurm_array.sh"), "--config-dir", "conf", "grid=trial", "out=out"]
    job = node_of(trial).batch(f"--array={tasks}", *words, *script, cwd=trial.place)
    return f"{job}_{tasks[0]}"


def shared(trial: Trial) -> None:
    """Two tasks share a grid: no more CPUs are asked for than SLURM gives, each cell is run once"""
    first = array(trial, tasks="0-1")
    for task in (first, f"{first[:-1]}1"):
        assert "COMPLETED" in node_of(trial).end(task)
    assert trial.status() == {"finished"}
    assert len(trial.starts()) == 3


def cancelled(trial: Trial) -> None:
    """scancel: the cell saves, the task does not come back"""
    job = array(trial)
    trial.until_at_work()
    trial.engine.run("scancel", job)
    assert node_of(trial).end(job).startswith("JobState=CANCELLED Restarts=0")
    assert trial.status() == {"stopped"}
    time.sleep(5)
    assert not trial.engine.run("squeue", "-h")


def preempted(partition: str, trial: Trial) -> None:
    """Preempted: the cell saves, the task comes back and finishes it"""
    job = array(trial, "-p", partition)
    trial.until_at_work()
    node_of(trial).preempt(trial.place)
    came_back(trial, job)


def out_of_time(trial: Trial) -> None:
    """The end of its time is near: the cell saves, the task comes back and finishes it"""
    came_back(trial, array(trial, "--time=6", "--signal=B:USR1@180"))


SUBMITIT = "hydra/launcher=submitit_slurm"


def cell_preempted(partition: str, trial: Trial) -> None:
    """Preempted, on submitit: the cell saves, is waited for, comes back and finishes"""
    words = (f"hydra.launcher.partition={partition}", "hydra.launcher.timeout_min=30")
    with trial.sweep(SUBMITIT, *words, multirun=True) as process:
        job = node_of(trial).job()
        trial.until_at_work()
        node_of(trial).preempt(trial.place)
        came_back(trial, job)
    assert process.returncode == 0


def cell_cancelled(trial: Trial) -> None:
    """scancel, on submitit: the cell saves, is reported as stopped, does not come back"""
    words = ("hydra.launcher.partition=low", "hydra.launcher.timeout_min=30")
    with trial.sweep(SUBMITIT, *words, multirun=True) as process:
        job = node_of(trial).job()
        trial.until_at_work()
        trial.engine.run("scancel", job)
        assert node_of(trial).end(job).startswith("JobState=CANCELLED Restarts=0")
    assert process.returncode == 8
    assert trial.status() == {"stopped"}


def cell_out_of_time(trial: Trial) -> None:
    """The end of its time is near, on submitit: the cell saves, is waited for, comes back and finishes"""
    words = ("partition=low", "timeout_min=6", "signal_delay_s=180", "max_num_timeout=20")
    with trial.sweep(SUBMITIT, *(f"hydra.launcher.{w}" for w in words)) as process:
        came_back(trial, node_of(trial).job())
    assert process.returncode == 0


def drained(trial: Trial) -> None:
    """A drained node: the cells of a grid wait in the queue, and run once it is back"""
    node, name = node_of(trial), f"nodename={node_of(trial).host}"
    node.run("scontrol", "update", name, "state=drain", "reason=trial")
    with trial.sweep(SUBMITIT, "hydra.launcher.timeout_min=30") as process:
        job = node.job()
        time.sleep(10)
        node.run("squeue", "-h", "-r", "-o", "%T %r")
        assert not list(trial.place.glob("out/*/run.json")), "a cell ran on a drained node"
        node.run("scontrol", "update", name, "state=resume")
        assert "COMPLETED" in node.end(job)
        assert process.wait(WAIT) == 0
    assert trial.status() == {"finished"}
    assert len(trial.starts()) == 2


def came_back(trial: Trial, job: str) -> None:
    """It was started again, and went on from what it had saved: no step is there twice."""
    facts = node_of(trial).end(job)
    assert re.match(r"JobState=COMPLETED Restarts=[1-9]", facts), facts
    assert trial.status() == {"finished"}
    logs = [*trial.place.glob("out*/**/*.log")]
    assert re.search(r"saved at step [1-9]", "".join(p.read_text() for p in logs)), "nothing was saved"


GRACE = "preempted, PreemptMode=REQUEUE, GraceTime=10"
TRIALS: dict[str, Callable[[Trial], None]] = {
    "array: shared": shared,
    "array: cancelled": cancelled,
    "array: preempted, PreemptMode=REQUEUE": functools.partial(preempted, "low"),
    f"array: {GRACE}": functools.partial(preempted, "grace"),
    "array: preempted, PreemptMode=CANCEL": functools.partial(preempted, "cancels"),
    "array: out of time": out_of_time,
    "submitit: cancelled": cell_cancelled,
    "submitit: preempted, PreemptMode=REQUEUE": functools.partial(cell_preempted, "low"),
    f"submitit: {GRACE}": functools.partial(cell_preempted, "grace"),
    "submitit: preempted, PreemptMode=CANCEL": functools.partial(cell_preempted, "cancels"),
    "submitit: out of time": cell_out_of_time,
    "submitit: a grid, the node drained": drained,
}
SEEDS = {"array: shared": "0, 1, 2", "submitit: a grid, the node drained": "0, 1"}  # short runs


def trials(place: Path, *names: str) -> Numbers:
    """All of them (or ``names``) on one node; the transcript tells each."""
    node, speed = Node(place), 1.0
    version = node.output("slurmctld", "-V")
    node.say(f"{version}, one node of 2 CPUs; what scripts/reliability.py slurm did and saw\n")
    earlier = list[Trial]()

    def make(name: str, folder: Path) -> Trial:
        nonlocal speed
        rates = [r.get("it_per_s") for trial in earlier for r in trial.results()]
        speed = max([speed, *(r for r in rates if isinstance(r, float))])
        length = 7 if "out of time" in name else 1
        steps = 100 if name in SEEDS or not earlier else round(speed * BRIEF_S * length)
        earlier.append(Trial(node, folder, max(steps, 100), SEEDS.get(name, "0")))
        return earlier[-1]

    chosen = {name: TRIALS[name] for name in names or TRIALS}
    return run_trials(node, chosen, make, None if names else TRANSCRIPT)


def cases() -> list[Case]:
    return [Case("a node of its own", trials, len(TRIALS))]


FIGURES = [Figure("slurm", "On a real SLURM: preempted, cancelled, out of time", cases, needs=needs)]

if __name__ == "__main__":  # from tests/: python -m faults.slurm [NAME OF A TRIAL]...
    if why := needs():
        sys.exit(f"faults.slurm: {why}")
    with tempfile.TemporaryDirectory(prefix="ganlab-slurm-") as folder:
        trials(Path(folder), *sys.argv[1:])
