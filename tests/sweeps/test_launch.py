"""Launchers and the cache of composed cells: both commands, dead workers, broken launchers, old records."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_sweep import working_folder

from ganlab.cli import main
from ganlab.config import compose
from ganlab.config.overrides import command_line
from ganlab.errors import ConfigError
from ganlab.sweeps import compositions, ledger, plan, scheduler, status
from ganlab.sweeps.placement import Rules
from ganlab.sweeps.plan import Job
from ganlab.system.lock import Lock

# A cell notes its start; seed 5 fails.
STAND_IN = """
import json, os, sys
from pathlib import Path
words = dict(w.lstrip("+").split("=", 1) for w in sys.argv[1:])
run = Path(words["run_dir"].strip("'").replace("${seed}", words["seed"]))
run.mkdir(parents=True, exist_ok=True)
with open(run / "starts", "a") as file:
    file.write(os.environ.get("OMP_NUM_THREADS", "-") + chr(10))
if words["seed"] == "5":
    sys.exit(1)
step = int(words.get("steps", 10**9))
(run / "checkpoints" / ("step-%09d" % step)).mkdir(parents=True)
(run / "checkpoints" / ("step-%09d" % step) / "MANIFEST.json").touch()
(run / "result.json").write_text(json.dumps({"status": "finished", "step": step, "scores": {}}))
"""
GRID = "title: T\nblocks:\n- overrides: [dataset=digits, steps=4]\n  axes: {seed: [0, 5]}\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_folder(tmp_path, monkeypatch, "g", GRID, STAND_IN)


def starts(folder: Path) -> dict[str, int]:
    return {p.parent.name: len(p.read_text().split()) for p in folder.glob("out/*/starts")}


@pytest.mark.parametrize("command", ["sweep", "train -m"])
def test_both_commands_give_their_cells_to_a_launcher(command: str, place: Path, capsys: Any) -> None:
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    if command == "sweep":
        line = ["sweep", "--config-dir", "conf", "grid=g", "out=out"]
    else:
        line = ["train", "-m", "steps=4", "seed=0,5", "run_dir=out/s${seed}"]
    assert main.main([*line, *words]) == 8
    assert starts(place) == {"s0": 1, "s5": 2}
    assert "1 of 2 cells failed" in capsys.readouterr().err
    assert main.main([*line, *words, "retry=never"]) == 8
    assert starts(place) == {"s0": 1, "s5": 2}
    (record,) = [*place.glob("out/grid.json"), *place.glob("outputs/.sweeps/*/grid.json")]
    rows = status.rows(record.parent.relative_to(place))
    assert [(r["run"], r["state"]) for r in rows] == [("out/s0", "finished"), ("out/s5", "pending")]


def make(folder: Path, *names: str, **rules: Any) -> tuple[scheduler.Scheduler, ledger.Ledger]:
    jobs = [Job(n, {}, ["seed=0", f"run_dir={folder / 'out' / n}"], folder / "out" / n, 4) for n in names]
    books = ledger.Ledger(folder / "ledger")
    books.begin(jobs)
    return scheduler.Scheduler(jobs, books, Rules(**rules)), books


def finish(job: Job) -> None:
    saved = job.folder / "checkpoints" / f"step-{job.steps:09d}"
    saved.mkdir(parents=True)
    (saved / "MANIFEST.json").touch()
    (job.folder / "result.json").write_text(json.dumps({"status": "finished", "step": job.steps}))


def test_a_cell_whose_worker_died_is_launched_once_more(place: Path) -> None:
    sweep, books = make(place, "a", "b", "c")
    launches: list[list[str]] = []

    def launcher(jobs: list[Job]) -> dict[str, str]:
        launches.append([job.name for job in jobs])
        for job in jobs:
            books.record_start(job.name)
            if job.name == "a" or (job.name == "b" and len(launches) == 2):
                finish(job)
        if len(launches) == 1:
            raise RuntimeError("a worker died")
        return {}

    assert sweep.launch(launcher) is None
    assert launches == [["a", "b", "c"], ["b", "c"]]
    assert sweep.states == {"a": "finished", "b": "finished", "c": "lost"}
    assert {r["error"] for r in sweep.write_table() if r["state"] == "failed"} == {scheduler.LOST}


def test_a_launcher_that_starts_nothing_is_not_asked_again(place: Path) -> None:
    sweep, _ = make(place, "a")
    error = RuntimeError("no cluster")

    def launcher(_: list[Job]) -> dict[str, str]:
        raise error

    assert sweep.launch(launcher) is error
    assert sweep.states == {"a": "pending"}


def test_a_cell_that_ends_while_it_is_claimed_does_not_run_again(place: Path, monkeypatch: Any) -> None:
    """Its owner finishes and frees the folder between two looks: the result is read after the lock."""
    sweep, books = make(place, "a")
    sweep.jobs[0].folder.mkdir(parents=True)
    lock, look = Lock(sweep.jobs[0].folder / ".lock"), books.holder

    def holder(job: Job) -> str | None:
        if lock.fileno() >= 0:
            finish(job)
            lock.release()
        return look(job)

    monkeypatch.setattr(books, "holder", holder)
    sweep.work(0)
    assert sweep.states == {"a": "finished"}
    assert not starts(place)


def test_records_of_earlier_versions_continue(place: Path) -> None:
    """A sweep's folder is named by its cells' identities, and a cell's ledger by its number."""
    line = command_line(["steps=4", "seed=0,5", "run_dir=out/s${seed}"], multirun=True)
    made = plan.plan_combinations(line)
    assert [job.name for job in made.jobs] == ["000", "001"]
    assert made.jobs[0].overrides == [
        "+experiment=digits",
        "++steps=4",
        "++seed=0",
        "++run_dir='out/s${seed}'",
    ]
    identities = [
        hashlib.sha256("\n".join([*sorted(job.overrides), job.config]).encode()).hexdigest()[:12]
        for job in made.jobs
    ]
    digest = hashlib.sha256("".join(identities).encode()).hexdigest()[:10]
    assert made.ledger == Path("outputs/.sweeps") / digest
    made.ledger.mkdir(parents=True)
    last = {"id": "0", "state": "failed", "code": 1, "tries": 2}
    (made.ledger / "001.json").write_text(json.dumps(last))
    finish(made.jobs[0])
    words = ["train", "-m", "steps=4", "seed=0,5", "run_dir=out/s${seed}"]
    assert main.main([*words, "sweep.retry=never"]) == 8
    assert not starts(place)


# ---- compositions


def cells(n: int) -> list[list[str]]:
    return [["+experiment=digits", f"seed={i}"] for i in range(n)]


def test_composed_cells_are_cached_by_content(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANLAB_CACHE", str(place / "cache"))
    cache = compositions.Cache([])
    first = [cache.compose(words) for words in cells(2)]
    cache.save()
    real, calls = compose.compose, list[Any]()

    def counted(*args: Any) -> Any:
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(compose, "compose", counted)
    assert [compositions.Cache([]).compose(words) for words in cells(2)] == first
    assert not calls
    damaged = cache.path.read_bytes().replace(b'"seed": 1', b'"seed": 7', 1)
    cache.path.write_bytes(damaged[:-20])
    again = compositions.Cache([])
    assert [again.compose(words) for words in cells(2)] == first
    assert calls
    (place / "conf" / "loss").mkdir()
    (place / "conf" / "loss" / "mine.yaml").write_text("_target_: ganlab.methods.losses.Hinge\n")
    before = compositions.Cache(["conf"]).path
    (place / "conf" / "loss" / "mine.yaml").write_text("_target_: ganlab.methods.losses.Standard\n")
    assert compositions.Cache(["conf"]).path != before != cache.path


def test_what_depends_on_the_environment_is_not_cached(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANLAB_CACHE", str(place / "cache"))
    (place / "conf" / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [digits]\nsteps: ${oc.decode:${oc.env:STEPS}}\n"
    (place / "conf" / "experiment" / "mine.yaml").write_text(text)
    for steps in ("3", "9"):
        monkeypatch.setenv("STEPS", steps)
        cache = compositions.Cache(["conf"])
        assert cache.compose(["+experiment=mine"]).tree["steps"] == int(steps)
        cache.save()
    assert not cache.path.exists()
    with pytest.raises(ConfigError):
        cache.compose(["+experiment=mine", "stepz=1"])
    assert os.environ["STEPS"] == "9"
