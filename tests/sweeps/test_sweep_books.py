"""A sweep's books: the table before the first start, claims, tries, hangs, rules; and Hydra's launchers."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ganlab.cli import main
from ganlab.errors import ConfigError, SweepFailed
from ganlab.sweeps import ledger, placement, scheduler
from ganlab.sweeps import process as process_module
from ganlab.sweeps.plan import Job
from ganlab.system.lock import Lock
from ganlab.system.signals import VARIABLE

# By its seed: 1 hangs the first time, 2 is slow but alive, 3 says it is done and is not, 4 waits for a signal
# the first time, 5 has bad data, 6 says what would steer a terminal.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
said = dict(w.lstrip("+").split("=", 1) for w in sys.argv[1:])
seed = int(said["seed"])
run = Path("outputs/x") / f"s{seed}"
run.mkdir(parents=True, exist_ok=True)
with open(run / "starts", "a") as file:
    file.write(f"{os.getpid()}" + chr(10))
(run / "gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
first = len((run / "starts").read_text().split()) == 1
def stop(signum, frame):
    if seed == 4:
        (run / "saved").write_text(str(signum))
        sys.exit(128 + signum)
for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(one, stop)
if seed == 1 and first:
    while True:
        time.sleep(0.1)
if seed == 2:
    for _ in range(25):
        time.sleep(0.1)
        os.utime(os.environ["GANLAB_HEARTBEAT"])
if seed == 4 and first:
    time.sleep(600)
if seed == 3:
    sys.exit(0)
if seed == 5:
    print("ganlab: error: data/x.png: is cut short; fetch it again")
    sys.exit(3)
if seed == 6:
    print("ganlab: error: x" + chr(27) + "[2J: =cmd(); no")
    sys.exit(4)
saved = run / "checkpoints" / ("step-%09d" % 10**9)
saved.mkdir(parents=True, exist_ok=True)
(saved / "MANIFEST.json").touch()
(run / "result.json").write_text(json.dumps({"status": "finished", "step": 10**9, "scores": {}}))
"""
RUN_DIR = "run_dir=outputs/x/s${seed}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder where ``ganlab train`` is a small script, and nothing waits for long."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(process_module, "COMMAND", [sys.executable, "-S", str(tmp_path / "stand_in.py")])
    monkeypatch.setattr(process_module, "POLL", 0.02)
    monkeypatch.setattr(scheduler, "WAIT", 0.02)
    monkeypatch.setattr(process_module, "GRACE", 0.3)
    monkeypatch.setattr(process_module, "LAST_GRACE", 0.3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.glob("outputs/.sweeps/*/cells.csv")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def starts(folder: Path) -> dict[str, int]:
    return {p.parent.name: len(p.read_text().split()) for p in folder.glob("outputs/x/*/starts")}


def multirun(seeds: str, *words: str) -> int:
    return main.main(["train", "-m", f"seed={seeds}", RUN_DIR, *words])


def test_the_table_is_on_the_disk_before_anything_starts(place: Path, monkeypatch: Any) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    def never(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(scheduler.Scheduler, "run_locally", never)
    assert multirun("0,7") == 130
    (path,) = place.glob("outputs/.sweeps/*/grid.json")
    assert any(Path(name).parent == path.parent and ".grid.json" in name for name in synced)
    cells = json.loads(path.read_text())["cells"]
    assert [(c["name"], c["run"]) for c in cells] == [("000", "../../x/s0"), ("001", "../../x/s7")]
    assert cells[0]["overrides"] == ["+experiment=digits", "++seed=0", "++run_dir='outputs/x/s${seed}'"]


def test_a_hanging_cell_is_ended_and_tried_again_and_a_slow_one_is_not(place: Path, capsys: Any) -> None:
    assert multirun("1,2,0", "sweep.stall_minutes=0.03") == 0
    assert starts(place) == {"s1": 2, "s2": 1, "s0": 1}
    (path,) = place.glob("outputs/.sweeps/*/sweep.jsonl")
    ends = [r for r in ledger.read_records(path.parent) if r["event"] == "ended"]
    assert [(r["state"], r["error"]) for r in ends] == [
        ("failed", "no progress for 0.03 minutes"),
        ("finished", ""),
        ("finished", ""),
        ("finished", ""),
    ]


def test_what_failed_is_told_with_its_own_line_and_left_alone_if_asked(place: Path, capsys: Any) -> None:
    assert multirun("3,5,6,0") == SweepFailed.code
    table = rows(place)
    assert [(r["state"], r["exit"], r["error"]) for r in table] == [
        ("failed", "0", "exit code 0, but its result is not marked finished"),
        ("failed", "3", "data/x.png: is cut short; fetch it again"),
        ("failed", "4", "x: =cmd(); no"),
        ("finished", "0", ""),
    ]
    err = capsys.readouterr().err
    assert f"001: data/x.png: is cut short; fetch it again (exit code 3); {table[1]['log']}" in err
    assert "\x1b" not in err
    assert starts(place) == {"s3": 2, "s5": 1, "s6": 1, "s0": 1}  # data at fault: another try is of no use
    assert multirun("3,5,6,0", "sweep.retry=never") == SweepFailed.code
    assert starts(place) == {"s3": 2, "s5": 1, "s6": 1, "s0": 1}
    assert "retry=failed runs them again" in capsys.readouterr().err
    assert multirun("3,5,6,0") == SweepFailed.code
    assert starts(place) == {"s3": 4, "s5": 2, "s6": 2, "s0": 1}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sweep.max_jobs=2"], "sweep: 3 combinations; must be 1 to 2; sweep over fewer values"),
        (["sweep.stall_minutes=-1"], "stall_minutes: '-1' is not a number of at least 0"),
        (["sweep.retri=never"], "sweep.retri: unknown key of a sweep; did you mean 'retry'?"),
        (["batch_size=range(1,10000000000)"], "sweep: 29999999997 combinations"),
    ],
)
def test_rules_are_checked(words: list[str], says: str, place: Path, capsys: Any) -> None:
    assert multirun("0,1,2", *words) == 2
    assert says in capsys.readouterr().err
    assert not (place / "outputs").exists()


def test_rules_are_of_sweeps_alone(place: Path, capsys: Any) -> None:
    assert main.main(["train", "sweep.retry=never"]) == 2
    assert "sweep.retry: applies to sweeps only; add -m, or omit it" in capsys.readouterr().err
    assert placement.parse_rules(5, "never", "1.5") == placement.Rules(5, False, 90.0)
    with pytest.raises(ConfigError) as caught:
        placement.parse_rules(0, "x", "y")
    assert len(caught.value.mistakes) == 3


def test_a_claim_lives_as_long_as_the_cell_that_outlives_its_sweep(tmp_path: Path) -> None:
    sweep_ledger = ledger.Ledger(tmp_path)
    claim = sweep_ledger.claim("a")
    assert claim is not None
    assert sweep_ledger.claim("a") is None
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=-1, pass_fds=[claim.fileno()])
    os.close(claim.fileno())  # as when the sweep is killed
    assert sweep_ledger.claim("a") is None
    child.communicate(b"\n")
    again = sweep_ledger.claim("a")
    assert again is not None
    again.release()


def test_books_survive_a_torn_line_and_damaged_notes(tmp_path: Path) -> None:
    cell = Job("a", {}, ["seed=0"], tmp_path / "run", 4, {})
    (tmp_path / "sweep.jsonl").write_bytes(b'{"event": "cell", "ce')
    (tmp_path / "a.json").write_bytes(b"\xff{")
    sweep_ledger = ledger.Ledger(tmp_path)
    sweep_ledger.begin([cell])
    sweep_ledger.record_start("a")
    sweep_ledger.record_start("a")
    assert [r["event"] for r in ledger.read_records(tmp_path)] == ["started", "started"]
    assert sweep_ledger.failed_tries("a") == 0
    assert (
        sweep_ledger.record_end(cell, process_module.ProcessResult(137, 1.0, "died"), stopping=False)
        == "failed"
    )
    assert sweep_ledger.failed_tries("a") == 1
    assert (
        sweep_ledger.record_end(cell, process_module.ProcessResult(143, 1.0), stopping=False) == "failed"
    )  # nobody had asked it to stop
    assert sweep_ledger.failed_tries("a") == ledger.MAX_TRIES
    assert sweep_ledger.record_end(cell, process_module.ProcessResult(143, 1.0), stopping=True) == "stopped"
    later = ledger.Ledger(tmp_path)
    later.begin([cell])
    assert later.failed_tries("a") == 0


def test_a_frozen_machine_is_no_hanging_cell(tmp_path: Path, monkeypatch: Any) -> None:
    clock = [0.0]
    monkeypatch.setattr(process_module.time, "monotonic", lambda: clock[0])
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    try:
        watchdog = process_module.Watchdog(process, tmp_path / "log", tmp_path / "beat", 60.0)
        for _ in range(5):
            clock[0] += 3600
            assert not watchdog.poll([])
        assert not watchdog.stall_reason
        for _ in range(60):
            clock[0] += 1
            watchdog.poll([])
        assert watchdog.stall_reason == "no progress for 1 minutes"
        assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()


def test_nothing_of_a_dead_cell_stays(tmp_path: Path) -> None:
    """Its session's other processes go with it, and their pipe does not keep the sweep waiting."""
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); sys.exit(1)"
    end = process_module.run(
        [sys.executable, "-S", "-c", code],
        tmp_path / "log",
        cwd=tmp_path,
        env=dict(os.environ),
        signals=list,
    )
    lines = (tmp_path / "log").read_text().split()
    assert end.code == 1
    deadline = time.monotonic() + 10
    while Path(f"/proc/{lines[0]}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{lines[0]}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{lines[0]}/stat").exists()


def test_a_cell_that_others_hold_without_progress_is_not_waited_for(place: Path, capsys: Any) -> None:
    run = place / "outputs/x/s0"
    run.mkdir(parents=True)
    lock = Lock(run / ".lock")
    assert multirun("0,7", "sweep.stall_minutes=0.05") == SweepFailed.code
    lock.release()
    assert [r["state"] for r in rows(place)] == ["elsewhere", "finished"]
    assert f"{os.getpid()}@" in rows(place)[0]["error"]
    assert multirun("0,7") == 0


@pytest.mark.slow
def test_cells_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    for name in ("yaml", "ganlab"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for command in (
        [*process_module.COMMAND[:-1], "--version"],
        [*process_module.COMMAND, "steps=x"],
    ):
        process_module.run(command, tmp_path / "log", cwd=tmp_path, env=env, signals=list)
    said = (tmp_path / "log").read_text()
    assert "ganlab: error: steps" in said
    assert not (tmp_path / "canary").exists()


def test_a_heartbeat_is_a_touched_file(tmp_path: Path, monkeypatch: Any) -> None:
    from ganlab.system import signals
    from ganlab.system.signals import StopFlag

    path = tmp_path / "beat"
    path.touch()
    os.utime(path, (0, 0))
    monkeypatch.setattr(signals, "_last", -1e9)
    StopFlag().poll()
    assert path.stat().st_mtime == 0
    monkeypatch.setenv(VARIABLE, str(path))
    StopFlag().poll()
    assert path.stat().st_mtime > 0
    monkeypatch.setattr(signals, "_last", -1e9)
    path.unlink()
    StopFlag().poll()  # a folder that is gone stops nobody
    assert not path.exists()


# ---- launchers


def test_a_launcher_that_can_not_work_here_is_told_in_one_line(place: Path, capsys: Any) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'ganlab[slurm]'")
    if shutil.which("srun"):
        pytest.skip("this machine has SLURM")
    assert multirun("0,7", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=9") == 5
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ganlab: error: ")]
    assert 'hydra/launcher: no run was started (RuntimeError: Could not detect "srun"' in error
    assert not starts(place)
    assert multirun("0,7", "hydra/launcher=submitit_local", "hydra.launcher.timeout=9") == 2
    assert "hydra.launcher: Could not override 'hydra.launcher.timeout'" in capsys.readouterr().err


def test_submitit_runs_a_sweep_and_a_preempted_cell_saves_first_and_is_queued_again(place: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'ganlab[slurm]'")

    def preempt() -> None:
        """What SLURM does: the signal goes to submitit's own process, not to the cell."""
        path = place / "outputs/x/s4/starts"
        deadline = time.monotonic() + 120
        while not (path.exists() and path.read_text().strip()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        status = Path(f"/proc/{path.read_text().split()[0]}/status").read_text()
        os.kill(int(status.partition("PPid:")[2].split()[0]), signal.SIGUSR2)

    thread = threading.Thread(target=preempt)
    thread.start()
    code = multirun("0,4,5", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5")
    thread.join()
    assert code == SweepFailed.code
    assert [r["state"] for r in rows(place)] == ["finished", "finished", "failed"]
    assert (place / "outputs/x/s4/saved").read_text() == str(int(signal.SIGUSR2))
    assert starts(place) == {"s0": 1, "s4": 2, "s5": 1}
    (path,) = place.glob("outputs/.sweeps/*/sweep.jsonl")
    mine = [r for r in ledger.read_records(path.parent) if r.get("cell") == "001" and r["event"] == "ended"]
    assert [(r["state"], r["code"]) for r in mine] == [("stopped", 140), ("finished", 0)]
    assert multirun("0,4", "hydra/launcher=submitit_local") == 0  # all over: nothing is submitted
    assert starts(place)["s4"] == 2
