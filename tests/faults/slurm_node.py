"""A real SLURM of one node on this machine, for ``slurm.py``.

Debian's slurm-wlm and munge, run by root with a config in a folder of their own, without systemd and a
database; only what was started here is ended.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .base import ROOT, environment

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue", "srun")
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
WAIT = 1200.0  # seconds for anything to happen, on a busy machine


def needs() -> str:
    """Why there can be no such node here; nothing if there can."""
    if os.geteuid():
        return "starts SLURM's daemons: run it as root"
    missing = [name for name in COMMANDS if not shutil.which(name, path=_path())]
    return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge" if missing else ""


def _path() -> str:
    return f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin"


class Node:
    """The node. ``run`` says a command and what came of it in the transcript."""

    def __init__(self, place: Path) -> None:
        self.place, self.lines = place / "slurm", list[str]()
        for name in ("state", "spool"):
            (self.place / name).mkdir(parents=True)
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        self.host = socket.gethostname().partition(".")[0]
        conf = self.place / "slurm.conf"
        conf.write_text(CONF.format(host=self.host, place=self.place, ports=ports))
        more = {"SLURM_CONF": str(conf), "PATH": _path(), "GANLAB": f"{sys.executable} -m ganlab"}
        self.env = environment(more | {"GANLAB_CACHE": str(place / "cache")})

    @contextmanager
    def up(self) -> Iterator[None]:
        """Inside, the daemons run, in the foreground of processes of ours."""
        (self.place / "key").write_bytes(os.urandom(128))
        (self.place / "key").chmod(0o600)
        files = {"socket": "munge.socket", "key-file": "key", "log-file": "munged.log"}
        files |= {"pid-file": "munged.pid", "seed-file": "munged.seed"}
        munged = ["munged", "--foreground", "--force", *(f"--{k}={self.place / v}" for k, v in files.items())]
        with ExitStack() as stack:
            for command in (munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c"]):
                stack.enter_context(self._daemon(command))
                self.until(lambda: (self.place / "munge.socket").exists(), "munged")
            self.until(lambda: "idle" in self.told("sinfo", "-h", "-o", "%T"), "an idle node")
            yield

    def clear(self) -> None:
        """End all jobs."""
        self.told("scancel", "--user=root")
        self.until(lambda: not self.told("squeue", "-h"), "empty queue")

    @contextmanager
    def _daemon(self, command: Sequence[str]) -> Iterator[None]:
        with open(self.place / f"{command[0]}.err", "wb") as file:
            process = subprocess.Popen(
                [shutil.which(command[0], path=_path()) or command[0], *command[1:]],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def say(self, text: str) -> None:
        """Into the transcript, without names of this machine."""
        for mine, shown in ((str(self.place.parent), "."), (str(ROOT), "ganlab"), (sys.executable, "python")):
            text = text.replace(mine, shown)
        lines = [re.sub(rf"\b{re.escape(self.host)}\b", "node", line.rstrip()) for line in text.splitlines()]
        self.lines += lines
        print("\n".join(lines), flush=True)

    def told(self, *words: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            words, cwd=cwd, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )
        return (done.stdout + done.stderr).strip()

    def run(self, *words: str, cwd: Path | None = None) -> str:
        found = self.told(*words, cwd=cwd)
        self.say(f"$ {' '.join(words)}\n{found}")
        return found

    def batch(self, *words: str, cwd: Path) -> str:
        """Submit; the job's number."""
        said = self.run("sbatch", *words, cwd=cwd)
        match = re.search(r"Submitted batch job (\d+)", said)
        assert match, said
        return match[1]

    def until(self, there: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + WAIT
        while not there():
            assert time.monotonic() < deadline, f"no {what} after {WAIT:.0f} s"
            time.sleep(0.5)

    def fact(self, job: str, name: str) -> str:
        """Of ``scontrol show job``."""
        match = re.search(rf"\b{name}=(\S*)", self.told("scontrol", "show", "job", "-o", job))
        return match[1] if match else ""

    def over(self, job: str) -> str:
        """Wait until a job is over, and tell how."""
        ends = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED")
        self.until(lambda: self.fact(job, "JobState") in ends, f"end of job {job}")
        facts = " ".join(f"{k}={self.fact(job, k)}" for k in ("JobState", "Restarts", "ExitCode"))
        self.say(f"job {job}: {facts}")
        return facts

    def preempt(self, cwd: Path) -> None:
        """A job that needs the whole node, and goes first."""
        self.batch("-p", "high", "-n", "2", "-o", "high.out", "--wrap", "sleep 1", cwd=cwd)
