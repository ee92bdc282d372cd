"""Sweeps on a real SLURM that are cancelled, preempted and out of time (``slurm_node.py``).

What was seen goes to ``benchmarks/reliability/slurm.txt``.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .base import ROOT, Case, Failed, Figure, Numbers, nothing_lost, tiny
from .slurm_node import WAIT, Node, needs

TRANSCRIPT = ROOT / "benchmarks" / "reliability" / "slurm.txt"
GRID = "title: trial\nblocks:\n- overrides: [{words}]\n  axes: {{seed: [{seeds}]}}\n"
BRIEF_S = 30.0  # seconds of a cell's training: long enough to be met at work


class Trial:
    """A folder with cells to run on a node."""

    def __init__(self, node: Node, place: Path, steps: int) -> None:
        self.node, self.place, self.steps = node, place, steps
        place.mkdir()
        self.words = [
            w for w in tiny(f"steps={steps}", "save_every=100000")[1:] if not w.startswith("run_dir=")
        ]

    def write_grid(self, seeds: str) -> None:
        """A grid file of these seeds, ``conf/grid/trial.yaml``."""
        (self.place / "conf" / "grid").mkdir(parents=True)
        grid = GRID.format(words=", ".join(f'"{w}"' for w in self.words), seeds=seeds)
        (self.place / "conf" / "grid" / "trial.yaml").write_text(grid)

    def array(self, seeds: str, *words: str, tasks: str = "0") -> str:
        """Submit ``scripts/slurm_array.sh`` for a grid of these seeds; the number of its first task."""
        self.write_grid(seeds)
        script, more = (
            str(ROOT / "scripts" / "slurm_array.sh"),
            ("--config-dir", "conf", "grid=trial", "out=out"),
        )
        job = self.node.batch(f"--array={tasks}", *words, script, *more, cwd=self.place)
        return f"{job}_{tasks[0]}"

    @contextmanager
    def submitit(self, seeds: str, *words: str) -> Iterator[subprocess.Popen[str]]:
        """``ganlab train -m`` on submitit, meanwhile."""
        line = [*self.words, f"seed={seeds}", "run_dir=out/${seed}", "hydra/launcher=submitit_slurm"]
        line += [f"hydra.launcher.{word}" for word in words]
        self.node.say("$ ganlab train -m " + " ".join(line[-2 - len(words) :]))
        command = [sys.executable, "-m", "ganlab", "train", "-m", *line]
        process = subprocess.Popen(
            command,
            cwd=self.place,
            env=self.node.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
            said = process.communicate(timeout=WAIT)[0]
            kept = [
                line
                for line in said.splitlines()
                if re.match(r"train -m|trial|cell |\[?\w+ +|ganlab: ", line)
            ]
            self.node.say("\n".join([*kept, f"exit code {process.returncode}"]))
        finally:
            process.kill()
            process.wait()

    def job(self) -> str:
        """The number of the only job in the queue."""
        self.node.until(lambda: self.node.told("squeue", "-h", "-r", "-o", "%A"), "job")
        return self.node.told("squeue", "-h", "-r", "-o", "%A").split()[0]

    def at_work(self) -> None:
        """Wait until a cell trains."""

        def trains() -> bool:
            return any('"step": 2' in p.read_text() for p in self.place.glob("out/*/metrics.jsonl"))

        self.node.until(trains, "cell at work")

    def speeds(self) -> list[float]:
        """Updates a second of its cells."""
        results = [json.loads(path.read_text()) for path in self.place.glob("out/*/result.json")]
        return [float(result["it_per_s"]) for result in results]

    def status(self) -> dict[str, str]:
        """Of the cells, told too; what they hold is whole."""
        found = {}
        for path in sorted(self.place.glob("out/*/result.json")):
            result = json.loads(path.read_text())
            nothing_lost(path.parent)
            found[path.parent.name] = str(result["status"])
            part = "all" if result["step"] == self.steps else "some, saved"
            self.node.say(f"cell {path.parent.name}: {result['status']}; steps done: {part}")
        return found


def shared(trial: Trial) -> None:
    """Two tasks share a grid: no more CPUs are asked for than SLURM gives, each cell is run once"""
    first = trial.array("0, 1, 2", tasks="0-1")
    for task in (first, f"{first[:-1]}1"):
        assert "COMPLETED" in trial.node.over(task)
    assert set(trial.status().values()) == {"finished"}
    rows = [json.loads(line) for line in (trial.place / "out/.sweep/sweep.jsonl").read_text().splitlines()]
    assert sum(row["event"] == "started" for row in rows) == 3


def cancelled(trial: Trial) -> None:
    """scancel: the cell saves, the task does not come back"""
    job = trial.array("0")
    trial.at_work()
    trial.node.run("scancel", job)
    assert trial.node.over(job).startswith("JobState=CANCELLED Restarts=0")
    assert set(trial.status().values()) == {"stopped"}
    time.sleep(5)
    assert not trial.node.run("squeue", "-h")


def preempted(partition: str, trial: Trial) -> None:
    """Preempted: the cell saves, the task comes back and finishes it"""
    job = trial.array("0", "-p", partition)
    trial.at_work()
    trial.node.preempt(trial.place)
    _came_back(trial, job)


def out_of_time(trial: Trial) -> None:
    """The end of its time is near: the cell saves, the task comes back and finishes it"""
    _came_back(trial, trial.array("0", "--time=6", "--signal=B:USR1@180"))


def cell_preempted(partition: str, trial: Trial) -> None:
    """Preempted, on submitit: the cell saves, is waited for, comes back and finishes"""
    with trial.submitit("0", f"partition={partition}", "timeout_min=30") as process:
        job = trial.job()
        trial.at_work()
        trial.node.preempt(trial.place)
        _came_back(trial, job)
    assert process.returncode == 0


def cell_cancelled(trial: Trial) -> None:
    """scancel, on submitit: the cell saves, is told as stopped, does not come back"""
    with trial.submitit("0", "partition=low", "timeout_min=30") as process:
        job = trial.job()
        trial.at_work()
        trial.node.run("scancel", job)
        assert trial.node.over(job).startswith("JobState=CANCELLED Restarts=0")
    assert process.returncode == 8
    assert set(trial.status().values()) == {"stopped"}


def drained(trial: Trial) -> None:
    """A drained node: the cells of a grid wait in the queue, and run once it is back"""
    node, name = trial.node, f"nodename={trial.node.host}"
    node.run("scontrol", "update", name, "state=drain", "reason=trial")
    trial.write_grid("0, 1")
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=30", "grid=trial", "out=out"]
    node.say("$ ganlab sweep " + " ".join(words[::-1]))
    command = [sys.executable, "-m", "ganlab", "sweep", "--config-dir", "conf", *words]
    process = subprocess.Popen(command, cwd=trial.place, env=node.env, stdin=subprocess.DEVNULL)
    try:
        job = trial.job()
        time.sleep(10)
        node.run("squeue", "-h", "-r", "-o", "%T %r")
        assert not list(trial.place.glob("out/*/run.json")), "a cell ran on a drained node"
        node.run("scontrol", "update", name, "state=resume")
        assert "COMPLETED" in node.over(job)
        assert process.wait(WAIT) == 0
    finally:
        process.kill()
        process.wait()
    assert trial.status() == {"s0": "finished", "s1": "finished"}


def cell_out_of_time(trial: Trial) -> None:
    """The end of its time is near, on submitit: the cell saves, is waited for, comes back and finishes"""
    words = ("partition=low", "timeout_min=6", "signal_delay_s=180", "max_num_timeout=20")
    with trial.submitit("0", *words) as process:
        _came_back(trial, trial.job())
    assert process.returncode == 0


def _came_back(trial: Trial, job: str) -> None:
    """It was started again, and went on from what it had saved: no step is told twice."""
    facts = trial.node.over(job)
    assert re.match(r"JobState=COMPLETED Restarts=[1-9]", facts), facts
    assert set(trial.status().values()) == {"finished"}
    said = "".join(path.read_text() for path in trial.place.glob("out*/**/*.log"))  # of the sweep's books
    assert re.search(r"saved at step [1-9]", said), f"nothing was saved on the way: {said[-300:]}"


GRACE = "preempted, PreemptMode=REQUEUE, GraceTime=10"
TRIALS: dict[str, tuple[Callable[[Trial], None], float]] = {  # and how many times as long as others
    "array: shared": (shared, 0.3),
    "array: cancelled": (cancelled, 1),
    "array: preempted, PreemptMode=REQUEUE": (functools.partial(preempted, "low"), 1),
    f"array: {GRACE}": (functools.partial(preempted, "grace"), 1),
    "array: preempted, PreemptMode=CANCEL": (functools.partial(preempted, "cancels"), 1),
    "array: out of time": (out_of_time, 7),
    "submitit: cancelled": (cell_cancelled, 1),
    "submitit: preempted, PreemptMode=REQUEUE": (functools.partial(cell_preempted, "low"), 1),
    f"submitit: {GRACE}": (functools.partial(cell_preempted, "grace"), 1),
    "submitit: preempted, PreemptMode=CANCEL": (functools.partial(cell_preempted, "cancels"), 1),
    "submitit: out of time": (cell_out_of_time, 7),
    "submitit: a grid, the node drained": (drained, 0.3),
}


def trials(place: Path, names: Sequence[str] = ()) -> Numbers:
    """All of them (or ``names``) on one node, one after the other; the transcript tells each."""
    node, failed = Node(place), list[str]()
    said = node.told("slurmctld", "-V")
    node.say(f"{said}, one node of 2 CPUs; what scripts/reliability.py slurm did and saw\n")
    with node.up():
        speed = 1.0
        for number, name in enumerate(names or TRIALS):
            check, length = TRIALS[name]
            words = inspect.getdoc(getattr(check, "func", check))
            node.say(f"\n{name}\n# {words}")
            trial = Trial(
                node, place / f"trial-{number}", 100 if not number else round(speed * BRIEF_S * length)
            )
            try:
                check(trial)
            except (AssertionError, OSError, subprocess.SubprocessError, ValueError) as error:
                failed.append(f"{name}: {error!s:.300}")
                node.say(f"FAILED: {error!s:.300}")
            finally:
                node.clear()
            speed = max([speed, *trial.speeds()])
    if not names:
        TRANSCRIPT.write_text("\n".join(node.lines) + "\n")
    if failed:
        raise Failed(len(failed), "; ".join(failed))
    return {}


def cases() -> list[Case]:
    return [Case("a node of its own", trials, len(TRIALS))]


FIGURES = [
    Figure("slurm", "A real SLURM: cancelled, preempted, out of time", (7, 9), 12, cases, needs=needs),
]

if __name__ == "__main__":  # from tests/: python -m faults.slurm [NAME OF A TRIAL]...
    if why := needs():
        sys.exit(f"faults.slurm: {why}")
    with tempfile.TemporaryDirectory(prefix="ganlab-slurm-") as folder:
        trials(Path(folder), sys.argv[1:])
