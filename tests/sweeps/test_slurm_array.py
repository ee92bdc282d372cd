"""scripts/slurm_array.sh without SLURM (faults/slurm.py has one): tasks share cells, save, come back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ganlab.sweeps import ledger

ROOT = Path(__file__).resolve().parents[2]
GRID = "title: T\nblocks:\n- overrides: [dataset=digits, steps=4]\n  axes: {seed: [0, 1, 2, 3, 4]}\n"
COMMAND = """
import sys
from ganlab.cli import main
from ganlab.sweeps import process
process.COMMAND = [sys.executable, "-S", "stand_in.py"]
sys.exit(main.main(sys.argv[1:]))
"""
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
said = dict(w.lstrip("+").split("=", 1) for w in sys.argv[1:])
run = Path(said["run_dir"].strip("'"))
run.mkdir(parents=True, exist_ok=True)
def stop(signum, frame):
    (run / "saved").write_text(str(int(signum)))
    sys.exit(128 + signum)
for one in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(one, stop)
with open(run / "starts", "a") as file:
    file.write(os.environ["SLURM_ARRAY_TASK_ID"] + chr(10))
time.sleep(600 if Path("hold").exists() else 0.5)
saved = run / "checkpoints" / ("step-%09d" % 4)
saved.mkdir(parents=True, exist_ok=True)
(saved / "MANIFEST.json").touch()
(run / "result.json").write_text(json.dumps({"status": "finished", "step": 4, "scores": {}}))
"""


def prepare(folder: Path) -> None:
    (folder / "conf" / "grid").mkdir(parents=True)
    (folder / "conf" / "grid" / "g.yaml").write_text(GRID)
    (folder / "go.py").write_text(COMMAND)
    (folder / "stand_in.py").write_text(STAND_IN)
    (folder / "bin").mkdir()
    scontrol = '#!/bin/sh\n[ "$1" = show ] && exec cat facts\necho "$@" >> requeued\n'
    (folder / "bin" / "scontrol").write_text(scontrol)
    (folder / "bin" / "scontrol").chmod(0o755)


def task(folder: Path, number: int) -> subprocess.Popen[bytes]:
    """What SLURM starts for a task of the array."""
    env = dict(
        os.environ, GANLAB=f"{sys.executable} go.py", PYTHONPATH=str(ROOT), SLURM_JOB_ID=str(70 + number)
    )
    env |= {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": str(number)}
    env["PATH"] = f"{folder / 'bin'}{os.pathsep}{env['PATH']}"
    command = ["bash", str(ROOT / "scripts/slurm_array.sh"), "--config-dir", "conf", "grid=g", "out=out"]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_the_tasks_of_an_array_share_the_cells(tmp_path: Path) -> None:
    prepare(tmp_path)
    tasks = [task(tmp_path, number) for number in range(2)]
    said = [t.communicate(timeout=300)[0].decode() for t in tasks]
    assert [t.returncode for t in tasks] == [0, 0], said
    starts = [p.read_text().split() for p in sorted(tmp_path.glob("out/*/starts"))]
    assert len(starts) == 5
    assert all(len(by) == 1 for by in starts), starts
    assert not (tmp_path / "requeued").exists()


CANCELLED = "JobState=CANCELLED PreemptTime=None"
PREEMPTED = "JobState=PREEMPTED PreemptTime=2026-01-01T00:00:00"


@pytest.mark.parametrize(
    ("signum", "facts", "again"),
    [
        (signal.SIGUSR1, CANCELLED, True),  # the end of its time: --signal=B:USR1@300
        (signal.SIGTERM, CANCELLED, False),
        (signal.SIGTERM, "JobState=PENDING Restarts=1", False),  # preempted: SLURM has queued it already
        (signal.SIGTERM, PREEMPTED, True),  # and where it does not
    ],
)
def test_a_task_saves_and_is_queued_again_unless_cancelled(
    tmp_path: Path, signum: signal.Signals, facts: str, again: bool
) -> None:
    prepare(tmp_path)
    (tmp_path / "facts").write_text(f"JobId=1 {facts} SuspendTime=None\n")
    (tmp_path / "hold").touch()
    first = task(tmp_path, 3)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("out/*/starts")):
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    time.sleep(0.5)
    first.send_signal(signum)
    said = first.communicate(timeout=120)[0].decode()
    assert first.returncode == 128 + signum, said
    (saved,) = tmp_path.glob("out/*/saved")
    assert saved.read_text() == str(int(signum))
    assert (tmp_path / "requeued").exists() == again
    if not again:
        return
    assert (tmp_path / "requeued").read_text() == "requeue 70_3\n"
    (tmp_path / "hold").unlink()
    again = task(tmp_path, 3)
    assert again.wait(300) == 0
    ends = [r for r in ledger.read_records(tmp_path / "out" / ".sweep") if r["event"] == "ended"]
    assert sum(r["state"] == "finished" for r in ends) == 5, json.dumps(ends)
