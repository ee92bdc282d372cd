"""scripts/slurm_array.sh with a stand-in for the sweep (faults/slurm.py has a real SLURM)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm_array.sh"
SWEEP = """
echo "$@" > words
trap 'exit 143' TERM
trap 'exit 138' USR1
touch started
while [ -e hold ]; do sleep 0.1; done
"""
CANCELLED = "JobState=CANCELLED PreemptTime=None"
PREEMPTED = "JobState=PREEMPTED PreemptTime=2026-01-01T00:00:00"


def task(folder: Path) -> subprocess.Popen[bytes]:
    """What SLURM starts for a task of an array."""
    (folder / "sweep.sh").write_text(SWEEP)
    (folder / "bin").mkdir()
    scontrol = folder / "bin" / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$1" = show ] && exec cat facts\necho "$@" >> requeued\n')
    scontrol.chmod(0o755)
    env = dict(os.environ, GANLAB="bash sweep.sh", SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="3")
    env["PATH"] = f"{folder / 'bin'}{os.pathsep}{env['PATH']}"
    return subprocess.Popen(["bash", str(SCRIPT), "grid=g"], cwd=folder, env=env, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("signum", "facts", "again"),
    [
        (signal.SIGUSR1, CANCELLED, True),  # the end of its time: --signal=B:USR1@300
        (signal.SIGTERM, CANCELLED, False),
        (signal.SIGTERM, PREEMPTED, True),
    ],
)
def test_a_task_that_is_stopped_is_queued_again_unless_cancelled(
    tmp_path: Path, signum: signal.Signals, facts: str, again: bool
) -> None:
    (tmp_path / "facts").write_text(f"JobId=1 {facts} SuspendTime=None\n")
    (tmp_path / "hold").touch()
    process = task(tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signum)
    assert process.wait(60) == 128 + signum
    assert (tmp_path / "requeued").exists() == again
    assert not again or (tmp_path / "requeued").read_text() == "requeue 70_3\n"


def test_a_task_that_is_through_is_not_queued_again(tmp_path: Path) -> None:
    assert task(tmp_path).wait(60) == 0
    assert (tmp_path / "words").read_text() == "sweep retry=never grid=g\n"
    assert not (tmp_path / "requeued").exists()
