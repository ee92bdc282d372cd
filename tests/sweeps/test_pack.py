"""The process that plays several cells of a sweep: whole, with real runs, and its ends one by one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ganlab.cli import main
from ganlab.errors import EnvError, SweepFailed
from ganlab.runs.checkpoint import Checkpoints, digest
from ganlab.runs.folder import RunFolder
from ganlab.sweeps import lanes as lanes_module
from ganlab.sweeps import packed
from ganlab.sweeps.lanes import Lane, Lanes
from ganlab.system.signals import StopFlag

CPU = torch.device("cpu")
COMMON = [
    "dataset=digits",
    "dataset.resolution=16",
    "architecture=cnn",
    "architecture.width=0.05",
    "architecture.z_dim=8",
    "metric=is",
    "metric.extractor=cifar",
    "metric.protocol=smoke",
    "metric.protocol.is_n_fake=20",
    "steps=5",
    "metric.progress=null",
    "eval_every=0",
    "device=cpu",
    "threads=1",
]
AXES = {"a": ["seed=0", "batch_size=8"], "b": ["seed=1", "batch_size=8", "normalization=bn"]}
GRID = f"""
title: Three
blocks:
  - overrides: {json.dumps(COMMON)}
    axes:
      cell: {json.dumps({**AXES, "bad": ["batch_size=4000"]})}
"""


def state(run: Path) -> str:
    folder = RunFolder(run)
    _, tensors, rest = Checkpoints(folder.checkpoints, folder.run_id).load(5)
    return digest(tensors, rest["game"])


def test_packed_cells_are_what_ganlab_train_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "conf" / "grid").mkdir(parents=True)
    (tmp_path / "conf" / "grid" / "three.yaml").write_text(GRID)
    line = ["sweep", "--config-dir", "conf", "grid=three", "per_gpu=3", "out=packed"]
    assert main.main(line) == SweepFailed.code
    err = capfd.readouterr().err
    what = "batch_size: 4000 is more than the 1797 images of digits train; use at most 1797"
    assert err.count(what) == 2, err  # packed, then alone: it fails for itself, the others do not notice
    assert "1 of 3 cells failed: bad" in err
    for name, own in AXES.items():
        run = tmp_path / "packed" / name
        assert json.loads((run / "result.json").read_text())["packed"]["runs"] == 2
        assert main.main(["train", *COMMON, *own, f"run_dir=solo/{name}"]) == 0
        assert state(run) == state(tmp_path / "solo" / name)
        said = (tmp_path / "packed" / ".sweep" / f"{name}.log").read_text()
        assert said.count("finished") == 1
        assert "step 5/5" in said
    assert main.main([*line, "cell=a,b"]) == 0  # nothing is left to do


def played(error: BaseException | None, lanes: int, of: int) -> tuple[packed.Pack, list[dict[str, Any]]]:
    """A pack of ``lanes`` lanes in ``of`` places, the first of which has ended so."""
    told = io.StringIO()
    made = packed.Pack(str(of), told, io.StringIO(), StopFlag())
    made.lanes = Lanes(CPU, made.on_end)
    run: Any = iter([SimpleNamespace()])
    made.lanes.active = [Lane(str(n), run, CPU, io.StringIO()) for n in range(lanes)]
    made.overrides = {str(n): [] for n in range(lanes)}
    made.on_end(made.lanes.active[0], error)
    return made, [json.loads(line) for line in told.getvalue().splitlines()]


def full(where: str = "batch_size") -> EnvError:
    error = EnvError(where, "the device has no memory for 64", "lower it")
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory.")
    return error


@pytest.mark.parametrize(
    ("error", "lanes", "code", "places"),
    [
        (None, 4, 0, 4),
        (EnvError("disk", "is full"), 4, 5, 4),
        (full(), 4, 5, 3),
        (torch.OutOfMemoryError("CUDA out of memory."), 3, 5, 2),
        (full(), 1, 5, 4),  # alone: nobody else has taken its memory
        (KeyError("x"), 4, 1, 4),
    ],
)
def test_how_a_lane_ends_is_told_and_a_lack_of_memory_makes_fewer(
    error: BaseException | None,
    lanes: int,
    code: int,
    places: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # crash.txt
    made, events = played(error, lanes, 4)
    assert (events[0]["event"], events[0]["cell"], events[0]["code"]) == ("ended", "0", code)
    assert made.num_lanes == places
    assert any("at once from now on" in e.get("text", "") for e in events) == (places < 4)


def test_auto_measures_the_cells_and_says_what_it_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five updates a block, on a clock that says that two lanes are worth it and four are not."""
    costs = {1: 1.0, 2: 1.2, 4: 2.3}
    played: list[int] = []
    told, stop = io.StringIO(), StopFlag()

    class Cells(packed.Pack):
        def turns(self, words: Any) -> Any:
            run = SimpleNamespace(
                progress={"evaluated": -1}, record=SimpleNamespace(packed=1), idle_s=0.0, step=0
            )
            for _ in range(30):
                played.append(int(words[0]))
                yield run

    def seconds(work: Any, device: Any) -> float:
        for _ in range(5):
            work()
        return costs[len(set(played[-4:]))] if len(made.lanes.active) == 4 else costs[len(set(played[-2:]))]

    orders = [
        {"cell": str(n), "words": [str(n)], "log": str(tmp_path / str(n)), "device": "cpu"} for n in range(6)
    ]
    made = Cells("auto", told, io.StringIO("\n".join(map(json.dumps, [*orders, None, None, None]))), stop)
    monkeypatch.setattr(lanes_module, "seconds_of", seconds)
    assert made.run() == 0
    events = [json.loads(line) for line in told.getvalue().splitlines()]
    (packing,) = [e for e in events if e["event"] == "packing"]
    assert packing["chosen"] == 2
    assert [m["lanes"] for m in packing["measured"]] == [1, 2, 4]
    assert "4 lanes give 1.74x, less than 1.1 times the speed of fewer" in packing["why"]
    assert sorted(e["cell"] for e in events if e["event"] == "ended") == list("012345")
    assert {n: played.count(n) for n in range(6)} == dict.fromkeys(
        range(6), 30
    )  # none is lost, none done twice


def test_no_more_cells_are_asked_for_after_a_signal() -> None:
    told, stop = io.StringIO(), StopFlag()
    stop.signum = 15
    assert packed.Pack("3", told, io.StringIO('{"cell": "x"}'), stop).run() == 143
    assert told.getvalue() == ""
