"""Grids: files to cells, scale, the runner with a stand-in for the run, status, and what a grid costs."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ganlab.cli import main
from ganlab.config import compose
from ganlab.config.files import GRIDS, options_of
from ganlab.errors import ConfigError, DataError, EnvError, SweepFailed
from ganlab.extractors import inception
from ganlab.runs.folder import RunFolder
from ganlab.sweeps import grid, ledger, placement, plan, process, scheduler, status
from ganlab.system.lock import Lock

SHIPPED = options_of(GRIDS)

# What a cell does is told by its seed: 5 fails always, 7 fails the first time, 6 diverges, 3 waits, 8 and 9
# take a while and hold their folder's lock.
STAND_IN = """
import fcntl, json, os, signal, socket, sys, time
from pathlib import Path
said = dict(w.lstrip("+").split("=", 1) for w in sys.argv[1:])
run, seed = Path(said["run_dir"].strip("'")), int(said.get("seed", 0))
run.mkdir(parents=True, exist_ok=True)
with open(run / "starts", "a") as file:
    file.write(os.environ.get("OMP_NUM_THREADS", "-") + chr(10))
starts = len((run / "starts").read_text().split())
def stop(signum, frame):
    print("ganlab: error: SIGTERM: saved at step 1", flush=True)
    sys.exit(128 + signum)
signal.signal(signal.SIGTERM, stop)
if seed > 7:
    lock = open(run / ".lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(7)
    lock.write(str(os.getpid()) + "@" + socket.gethostname())
    lock.flush()
    time.sleep(1)
if seed == 3 and starts == 1:
    time.sleep(600)
code = 5 if seed == 5 or (seed == 7 and starts == 1) else 6 if seed == 6 else 0
if code:
    print("ganlab: error: disk: seed " + str(seed) + " went wrong; mend it")
state = {0: "finished", 6: "diverged"}.get(code, "failed")
scores = {"last": {"step": 4, "values": {"fid_cifar": 10.5 + seed}}}
(run / "run.json").write_text("{}")
saved = run / "checkpoints" / ("step-%09d" % int(said["steps"]))
saved.mkdir(parents=True, exist_ok=True)
(saved / "MANIFEST.json").touch()
(run / "result.json").write_text(
    json.dumps({"status": state, "step": int(said["steps"]), "steps": 4, "it_per_s": 2.5, "scores": scores})
)
sys.exit(code)
"""
FILE = """
# a grid for tests
title: Two methods
blocks:
  - overrides: [dataset=digits, steps=40, eval_every=20]
    axes:
      method: {sn: normalization=sn, wgan-gp: [normalization=gp, loss=wasserstein]}
      setting: [A, B]
      seed: [0]
"""


def working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, grid: str, script: str) -> Path:
    """``folder``, now the working one, with a grid file of its own and a script for ``ganlab train``."""
    (folder / "conf" / "grid").mkdir(parents=True)
    (folder / "conf" / "grid" / f"{name}.yaml").write_text(grid)
    (folder / "stand_in.py").write_text(script)
    monkeypatch.setattr(process, "COMMAND", [sys.executable, "-S", str(folder / "stand_in.py")])
    monkeypatch.setattr(process, "POLL", 0.02)
    monkeypatch.setattr(scheduler, "WAIT", 0.02)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_folder(tmp_path, monkeypatch, "two", FILE, STAND_IN)


def sweep(*words: str, at_once: str = "2") -> int:
    line = ["sweep", "--config-dir", "conf", "grid=two", f"jobs={at_once}", "scale=0.1", *words]
    return main.main(line)


def rows(folder: Path) -> dict[str, dict[str, str]]:
    (path,) = folder.glob("outputs/*/cells.csv")
    with open(path, newline="") as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


def starts(folder: Path) -> dict[str, int]:
    return {p.parent.name: len(p.read_text().split()) for p in folder.glob("outputs/*/*/starts")}


# ---- files


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_grid_composes_and_scales(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many cells of it as have each of its overrides at least once."""
    words = ["n=2"] if "n" in grid.load(name).axis_keys() else []  # two members of a random set, not all
    cells = grid.cells

    def covering(*args: Any) -> list[grid.Cell]:
        covered, chosen = set[str](), list[grid.Cell]()
        for cell in cells(*args):
            if not covered.issuperset(cell.overrides):
                covered.update(cell.overrides)
                chosen.append(cell)
        return chosen

    monkeypatch.setattr(grid, "cells", covering)
    planned = plan.plan_grid(name, words, grid.Scale(0.01, 0.25), None)
    assert len({job.folder for job in planned.jobs}) == len(planned.jobs) > 1
    assert all(job.steps < 10_000 for job in planned.jobs)
    assert planned.out == Path("outputs") / f"{name}-u0.01-w0.25"


def test_the_paper_s_grid_is_eight_methods_at_six_settings() -> None:
    assert len(grid.cells(grid.load("sngan_fig1_cifar"))) == 48
    planned = plan.plan_grid("sngan_fig1_cifar", ["setting=D,F"], grid.Scale(), None)
    trees = {job.name: job.tree for job in planned.jobs}
    assert len(trees) == 16
    assert {job.steps for job in planned.jobs} == {100_000}
    assert list(trees["wgan-gp-F-s0"]["normalization"]) == ["gp"]
    assert trees["wgan-gp-F-s0"]["loss"]["_target_"].endswith("Wasserstein")
    assert {t["loss"]["_target_"] for n, t in trees.items() if not n.startswith("wgan")} == {
        "ganlab.methods.losses.Standard"
    }
    d = trees["ln-D-s0"]
    assert (d["optimizer"]["lr"], d["optimizer"]["betas"], d["d_steps"]) == (1e-3, [0.5, 0.9], 5)


def test_a_grid_file_s_mistakes_are_told_together(place: Path) -> None:
    (place / "conf" / "grid" / "bad.yaml").write_text(
        "titel: x\nblocks:\n  - axis: {}\n  - axes: {seed: 0, setting: [A, A], m: {a/b: x=1}}\n"
        "  - overrides: [run_dir=x]\n"
    )
    with pytest.raises(ConfigError) as caught:
        grid.load("bad", [place / "conf"])
    messages = "\n".join(map(str, caught.value.mistakes))
    for part in (
        "bad.yaml: titel: unknown key of a grid; did you mean 'title'?",
        "title: is missing",
        "blocks[0].axis: unknown key of a block; did you mean 'axes'?",
        "blocks[1].axes.seed: must be a list of values, or a mapping",
        "blocks[1].axes.setting: repeats a value",
        "'a/b' can't name a folder",
        "blocks[2].overrides: sets run_dir",
    ):
        assert part in messages, messages


def test_unknown_grids_and_labels_get_a_suggestion(place: Path, capsys: Any) -> None:
    assert main.main(["sweep", "grid=sngan_fig1_cifer"]) == 2
    assert "did you mean 'sngan_fig1_cifar'?" in capsys.readouterr().err
    assert sweep("method=sm") == 2
    assert "method: no label 'sm'; did you mean 'sn'?" in capsys.readouterr().err
    assert sweep("setting=A,Z", "stepz=3") == 2
    err = capsys.readouterr().err
    assert "setting: there is no 'Z'" in err
    assert "(in cell sn-Z-s0)" in err
    assert err.count("stepz") == 1
    assert sweep("metod=sn") == 2
    assert capsys.readouterr().err == "ganlab: error: metod: unknown key; did you mean 'method'?\n"
    assert not (place / "outputs").exists()


@pytest.mark.parametrize("text", ["0", "2", "0.1,0.1,0.1", "nan"])
def test_a_scale_is_one_or_two_fractions(text: str) -> None:
    with pytest.raises(ConfigError, match="fractions"):
        grid.parse_scale(text)


def test_scale_reaches_every_count_but_what_the_user_set(place: Path) -> None:
    planned = plan.plan_grid("two", ["log_every=7"], grid.Scale(0.1, 0.5), None, ["conf"])
    tree = planned.jobs[0].tree
    assert (tree["steps"], tree["eval_every"], tree["log_every"]) == (4, 2, 7)
    assert tree["architecture"]["width"] == 0.5
    assert planned.record()["scale"] == {"updates": 0.1, "width": 0.5}


def test_an_axis_is_cut_down_or_given_new_values(place: Path) -> None:
    planned = plan.plan_grid("two", ["method=sn", "seed=0,1,2"], grid.Scale(), None, ["conf"])
    assert [job.name for job in planned.jobs] == [f"sn-{s}-s{n}" for s in "AB" for n in range(3)]
    assert planned.out == Path("outputs/two")  # an axis moves no folder
    other = plan.plan_grid("two", ["loss=hinge"], grid.Scale(), None, ["conf"])
    assert re.fullmatch(r"outputs/two-[0-9a-f]{6}", str(other.out))


# ---- runs


def test_a_sweep_runs_every_cell_once_and_then_none(place: Path, capsys: Any) -> None:
    assert sweep() == 0
    assert starts(place) == {n: 1 for n in ("sn-A-s0", "sn-B-s0", "wgan-gp-A-s0", "wgan-gp-B-s0")}
    assert {r["state"] for r in rows(place).values()} == {"finished"}
    assert rows(place)["sn-A-s0"]["last scores"] == "fid_cifar 10.5"
    record = json.loads((place / "outputs/two-u0.1/grid.json").read_text())
    assert record["title"] == "Two methods"
    assert record["scale"] == {"updates": 0.1, "width": 1.0}
    assert record["cells"][2]["axes"] == {"method": "wgan-gp", "setting": "A", "seed": "s0"}
    assert sweep() == 0
    assert set(starts(place).values()) == {1}
    assert sweep("seed=1") == 0  # more seeds in the same folder
    assert len(json.loads((place / "outputs/two-u0.1/grid.json").read_text())["cells"]) == 8
    assert "wgan-gp-B-s1" in capsys.readouterr().out


def test_threads_are_divided(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert sweep("setting=A") == 0
    assert {p.read_text().split()[0] for p in place.glob("outputs/*/*/starts")} == {"3"}


def test_a_failed_cell_is_tried_twice_and_the_others_go_on(place: Path, capsys: Any) -> None:
    assert sweep("method=sn", "setting=A", "seed=5,7,6,0") == SweepFailed.code
    assert starts(place) == {"sn-A-s5": 2, "sn-A-s7": 2, "sn-A-s6": 1, "sn-A-s0": 1}
    states = {name: row["state"] for name, row in rows(place).items()}
    assert states == {
        "sn-A-s5": "failed",
        "sn-A-s7": "finished",
        "sn-A-s6": "diverged",
        "sn-A-s0": "finished",
    }
    assert rows(place)["sn-A-s5"]["error"] == "disk: seed 5 went wrong; mend it"
    err = capsys.readouterr().err
    assert "1 of 4 cells failed: sn-A-s5; the same command runs them again" in err
    assert "; will be retried" in err
    assert sweep("method=sn", "setting=A", "seed=6,7,0") == 0  # diverged is over
    assert starts(place)["sn-A-s6"] == 1


def test_a_signal_stops_the_cells_and_the_same_command_continues(place: Path, capsys: Any) -> None:
    def later() -> None:
        while not list(place.glob("outputs/*/sn-A-s3/starts")):
            time.sleep(0.02)
        time.sleep(0.3)  # its handler is in place
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=later)
    thread.start()
    assert sweep("method=sn", "setting=A", "seed=3,0", at_once="1") == 128 + signal.SIGTERM
    thread.join()
    assert {n: r["state"] for n, r in rows(place).items()} == {"sn-A-s3": "stopped", "sn-A-s0": "pending"}
    assert "stopped by SIGTERM; the same command continues the sweep" in capsys.readouterr().err
    assert sweep("method=sn", "setting=A", "seed=3,0", at_once="1") == 0
    assert starts(place) == {"sn-A-s3": 2, "sn-A-s0": 1}


@pytest.mark.slow
def test_two_sweeps_of_one_folder_share_the_work(place: Path) -> None:
    code = "import sys; from ganlab.cli import main; from ganlab.sweeps import process;"
    code += "process.COMMAND = [sys.executable, '-S', 'stand_in.py'];"
    code += "sys.exit(main.main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, "sweep", "--config-dir", "conf", "grid=two"]
    line += ["seed=8,9", "steps=4", "setting=A"]
    both = [subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [p.communicate(timeout=240) for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    errors = b"".join(err for _, err in outputs).decode()
    assert sorted(re.findall(r"(\S+): finished after", errors)) == sorted(rows(place)), errors
    assert {r["state"] for r in rows(place).values()} == {"finished"}


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["per_gpu=0", "jobs=-1"], ["per_gpu: '0'", "jobs: '-1' is not a positive integer"]),
        (["per_gpu=2", "jobs=2"], ["per_gpu: conflicts with jobs=; keep one of the two"]),
        (["jobs=2", "hydra/launcher=joblib"], ["jobs: applies to processes of this machine"]),
        (["hydra/launcher=jobl"], ["hydra/launcher: there is no 'jobl'; choose one of basic, joblib"]),
        (["gpus=[0]", "device=cpu"], ["gpus: conflicts with device=; keep one of the two"]),
    ],
)
def test_mistakes_about_places_are_one_line_each(
    words: list[str], messages: list[str], place: Path, capsys: Any
) -> None:
    assert main.main(["sweep", "--config-dir", "conf", "grid=two", *words]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == len(messages)
    assert all(part in line for part, line in zip(messages, err, strict=True))
    assert not (place / "outputs").exists()


def test_gpus_that_are_not_there_are_refused_and_others_spread(place: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(EnvError, match="gpus: no GPU 2: this machine has 0, 1"):
        placement.parse_placement(None, None, "[0,2]", [])
    assert placement.parse_placement("2", None, None, []) == placement.Placement(2, ["0", "1"])
    assert placement.parse_placement(None, "3", None, []) == placement.Placement(6, ["0", "1"])
    assert placement.parse_placement(None, None, None, []) == placement.Placement(1, [])
    assert placement.parse_placement("2", None, None, ["device=cpu"]) == placement.Placement(2, [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    assert placement.visible_gpus() == ["5", "GPU-abc"]
    places = placement.parse_placement(None, "2", "[1]", [])
    assert places == placement.Placement(2, ["GPU-abc"])
    made = plan.plan_grid("two", [], grid.Scale(), None, ["conf"])
    doing = scheduler.Scheduler(made.jobs, ledger.Ledger(place / "ledger"), placement=places)
    assert doing._env(made.jobs[0], 1)["CUDA_VISIBLE_DEVICES"] == "GPU-abc"


# ---- status


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("result.json", "a pipe"),
        ("metrics.jsonl", "a device"),
    ],
)
def test_status_and_report_read_regular_files_alone(name: str, kind: str, place: Path) -> None:
    def late(*_: Any) -> None:
        raise AssertionError("still reading")

    run = place / "run"
    (run / "samples").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "result.json").write_text('{"status": "finished", "step": 2, "steps": 2}')
    (run / name).unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to("/dev/zero")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    signal.alarm(60)
    try:
        codes = [main.main(["status", "run"]), main.main(["report", "run", "out=out"])]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert codes[0] == 0
    assert codes[1] in (0, 3)


def test_a_result_that_says_finished_is_believed_with_its_checkpoint_alone(place: Path) -> None:
    assert sweep("setting=A", "seed=0", "method=sn") == 0
    run = place / "outputs/two-u0.1/sn-A-s0"
    assert [r["state"] for r in status.rows(run)] == ["finished"]
    (run / "checkpoints/step-000000004").rename(run / "checkpoints/step-000000002")
    assert [r["state"] for r in status.rows(run)] == ["no checkpoint"]
    assert sweep("setting=A", "seed=0", "method=sn") == 0
    assert len((run / "starts").read_text().split()) == 2  # it ran again
    assert [r["state"] for r in status.rows(run)] == ["finished"]


def test_status_tells_each_run_and_sums_up(place: Path, capsys: Any) -> None:
    assert sweep("setting=A", "seed=0,5", "method=sn") == SweepFailed.code
    out = place / "outputs/two-u0.1"
    live = out / "wgan-gp-A-s0"
    live.mkdir()
    (live / "run.json").write_text("{}")
    (live / "result.json").write_text('{"status": "running", "step": 2, "steps": 40, "it_per_s": 2.0}')
    (live / "metrics.jsonl").write_text('{"step": 20, "kind": "train"}\n{"step": 30, "kind": "tr')
    capsys.readouterr()
    lock = Lock(live / ".lock")
    by_name = {Path(r["run"]).name: r for r in status.rows(place / "outputs")}
    lock.release()
    assert by_name["wgan-gp-A-s0"]["state"] == "running"
    assert (by_name["wgan-gp-A-s0"]["step"], by_name["wgan-gp-A-s0"]["left"]) == (20, "0:10")
    assert by_name["sn-A-s0"]["state"] == "finished"
    assert main.main(["status", str(out)]) == 0
    output = capsys.readouterr().out
    assert "Two methods, 0.1 of the updates" in output
    assert "killed" in output
    assert "3 runs: " in output
    assert main.main(["status", "nowhere"]) == DataError.code
    assert main.main(["status", str(place / "conf")]) == DataError.code


def test_status_survives_damaged_files(place: Path, capsys: Any) -> None:
    run = place / "outputs" / "x"
    run.mkdir(parents=True)
    for name in ("run.json", "result.json", "metrics.jsonl", "grid.json"):
        (run / name).write_bytes(b"\xff[1, {")
    (place / "outputs" / "grid.json").write_text('{"cells": [1, {"run": 3}], "scale": [], "title": null}')
    assert main.main(["status"]) == 0
    output = capsys.readouterr()
    assert "killed" in output.out
    (message,) = output.err.splitlines()
    assert "outputs/x/grid.json: damaged, so cells that have not started are missing" in message


def test_a_dry_run_measures_and_starts_nothing(place: Path, capsys: Any) -> None:
    words = ["architecture.width=0.05", "batch_size=8", "metric.extractor=cifar", "device=cpu"]
    assert sweep("dry_run=true", "setting=B,C", "method=sn", *words) == 0
    assert capsys.readouterr().err.count("measuring") == 1  # their rates differ, their cost does not
    assert sweep("dry_run=true", "setting=A", *words) == 0
    output = capsys.readouterr()
    assert "2 cells, 8 updates, 0.1 of the updates, 1 of the width: about" in output.out
    assert output.err.count("measuring") == 2  # once for each method
    assert not (place / "outputs").exists()


def test_a_dry_run_fetches_no_weights(place: Path, capsys: Any, monkeypatch: Any) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(inception, "fetch", never)
    monkeypatch.setattr(inception, "places", lambda: [place / "none.pth"])
    words = ["architecture.width=0.05", "batch_size=8", "device=cpu", "method=sn", "setting=A"]
    assert sweep("dry_run=true", "metric.extractor=inception", *words) == 0
    assert "scoring is not included" in capsys.readouterr().out


def test_a_finished_cell_of_another_config_is_refused_before_anything_runs(place: Path, capsys: Any) -> None:
    """Else its result would stand in the table as this sweep's."""
    out = place / "outputs" / "mine"
    assert sweep(f"out={out}") == 0
    for cell in ("sn-A-s0", "sn-B-s0", "wgan-gp-A-s0", "wgan-gp-B-s0"):  # as `ganlab train` would have
        normalization = ["gp", "loss=wasserstein"] if cell.startswith("w") else ["sn"]
        words = [f"normalization={normalization[0]}", *normalization[1:], f"setting={cell[-4]}", "seed=0"]
        made = compose.compose(["dataset=digits", "steps=4", "eval_every=2", *words])
        RunFolder(out / cell).write_config(made.saved | {"save_every": 250, "sample_every": 100})
    assert sweep(f"out={out}") == 0
    assert sweep(f"out={out}", "eval_every=1") == 0  # moves no weights: may differ, as for `ganlab train`
    before = (out / "cells.csv").read_bytes()
    capsys.readouterr()
    assert sweep(f"out={out}", "batch_size=8") == 2
    (line,) = capsys.readouterr().err.splitlines()
    message = "batch_size: this run folder was made with 64, requested 8; use another out=, the old value"
    assert message in line
    assert (out / "cells.csv").read_bytes() == before
    (out / "sn-A-s0" / "config.yaml").write_text("[1]")
    assert sweep(f"out={out}") == 2
    assert "is damaged" in capsys.readouterr().err
