"""Runs stopped anywhere and continued in another process are, bit for bit, those that were never stopped."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from .base import ROOT, Case, Failed, Figure, Forked, Numbers, records
from .runs import assert_identical, differences, epochs, everything, finish, outcome, stop_at, trained

STEPS = 14
POINTS = {
    "the first update": 1,
    "before a save": 3,
    "after a save": 5,
    "mid-epoch": 7,
    "a save, where the rate begins to fall": 8,
    "an epoch's end": 10,
    "the last but one": 13,
}
APART = (  # each of their points has a run of its own; another run is stopped at all of its points
    *("loss=wasserstein", "normalization=sn", "normalization=bn", "normalization=wn"),
    *("architecture=dcgan", "head=projection", "joint_fakes", "sn gamma"),
)


def identical(words: Sequence[str], apart: bool, place: Path) -> Numbers:
    """The same run whole, and stopped at each of the points by a real SIGTERM."""
    words, bad = epochs(*words), list[str]()
    for name, step in POINTS.items():
        stop_at(place, step, *words)
        if not apart and step != max(POINTS.values()):
            continue
        finish(place, *words)
        if differing := differences(place, *words):
            bad += [f"stopped at step {step} ({name}): {differing} differ"] * (1 if apart else len(POINTS))
        shutil.rmtree(place / "run")
    if bad:
        raise Failed(len(bad), "; ".join(dict.fromkeys(bad)))
    return {"identical": len(POINTS)}


def matrix() -> list[Case]:
    return [
        Case(name, functools.partial(identical, words, name in APART), len(POINTS))
        for name, words in everything().items()
    ]


def another_seed(place: Path) -> None:
    """What must differ, does: else nothing above says anything."""
    for seed in (0, 1):
        (place / str(seed)).mkdir()
        finish(place / str(seed), *epochs(f"seed={seed}"))
    a, b = (outcome(place / str(seed) / "run") for seed in (0, 1))
    assert all(a[key] != b[key] for key in a)


def next_step(place: Path) -> None:
    stop_at(place, STEPS - 1, *epochs())
    before = trained(place / "run")
    finish(place, *epochs())
    assert trained(place / "run") != before
    assert_identical(place, *epochs())


def released(fixture: Path, place: Path) -> None:
    """A run of an older ganlab: what it saved is what is loaded, and what it went on to comes again.

    Losses within 1e-3; on the machine and with the versions that it was made with, the same bits.
    """
    import torch

    from ganlab.runs.checkpoint import Checkpoints, digest
    from ganlab.runs.folder import RunFolder
    from ganlab.runs.provenance import versions
    from ganlab.system.hardware import device_name

    expected = json.loads((fixture / "expected.json").read_text())
    run = RunFolder(shutil.copytree(fixture, place / "run"))

    def state(step: int) -> str:
        _, tensors, content = Checkpoints(run.checkpoints, run.run_id).load(step)
        return digest(tensors, content["game"])

    assert state(expected["step"]) == expected["digest"], "what was saved is not what is loaded"
    words = [w for w in expected["words"] if not w.startswith("run_dir=")]
    for command in (["check", "run"], ["train", *words, "run_dir=run"]):
        done = Forked(*command, cwd=place, real_features=True).wait(120)
        assert done.code == 0, done.err[-300:]
    by_step = {(r["step"], r["kind"]): r for r in records(place / "run")}
    for record in expected["continued"]["records"]:
        actual = by_step[record["step"], record["kind"]]
        for key, value in record.items():
            if key.startswith("loss/") and isinstance(value, float):
                assert abs(actual[key] - value) <= 1e-3 * max(1, abs(value)), (key, value, actual[key])
    made = expected["made_on"]
    same_machine = made["device"] in device_name(torch.device("cpu"))
    if same_machine and made["versions"]["torch"] == versions()["torch"]:
        assert state(expected["continued"]["step"]) == expected["continued"]["digest"], "not bit for bit"


def controls() -> list[Case]:
    old = sorted((ROOT / "tests" / "fixtures").glob("format-*"))
    return [
        Case("another seed differs", another_seed),
        Case("the next step differs", next_step),
        *(Case(fixture.name, functools.partial(released, fixture)) for fixture in old),
    ]


def summary(numbers: Sequence[Numbers]) -> str:
    return f"{len(numbers)} configs x {len(POINTS)} points: state, metrics, pictures and scores equal"


FIGURES = [
    Figure("resume", "Stopped at any point, resumed: bit-identical to a run never stopped", matrix, summary),
    Figure("controls", "Another seed or step does differ; a run of an old format goes on", controls),
]
