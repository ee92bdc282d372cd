"""A few cases of RELIABILITY.md's figures, one or two for each promise; ``make reliability`` runs all."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.base import figures, inside

CHOSEN = {  # figure -> its cases that are cheap, and that no other test covers
    "archives": ["tar: link, then through it", "zip: ../"],
    "clocks": ["clock jumps: an hour back"],
    "come-and-go": ["a pipe among images"],
    "config": ["devices 1-19"],
    "data-workers": ["SIGKILL at work 2 of folder"],
    "disks": ["full at byte 4096, once", "metrics.jsonl has no room for ever"],
    "downloads": [
        *("cut at 50 %", "eight at once, the first is killed", "a planted link", "an offline node"),
        "Inception: the server's file is another",
    ],
    "escapes": ["checkpoints -> /", "a token of the environment"],
    "fallback": ["goes on after MANIFEST.json missing"],
    "finished": ["fewer steps than done"],
    "folders": ["run folder replaced", "run folder is read-only"],
    "formats": ["format-1"],
    "hostile": ["torch zip: as weights, checkpoint, data", "configs that were sent"],
    "interrupted": ["SIGINT in report, moment 2", "SIGTERM in sample, moment 2"],
    "kill9": ["sn+ema 0"],
    "missing": ["train without torchvision"],
    "networks": ["no rename over a file"],
    "numerics": ["nan in d at update 5", "score nan", "memory ends in features, call 2"],
    "paths": ["a run's folder: equals", "run_dir: bytes"],
    "ranks_end": ["kill -9 of rank 1 at 5"],
    "ranks_exact": ["apart, gp, ema, stopped at 4"],
    "ranks_same": ["cnn sn, 2 ranks", "resnet gp, 2 ranks"],
    "resume": ["bn everywhere"],
    "resume-controls": ["another seed differs", "the next step differs"],
    "signals": ["SIGTERM in save: it is renamed", "SIGINT in train step: in step 3"],
    "surroundings": ["no home, no cache"],
}


@pytest.mark.parametrize(("key", "name"), [(key, name) for key, names in CHOSEN.items() for name in names])
def test_fault(key: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "case"
    place.mkdir()
    (case,) = (case for case in figures()[key].cases() if case.name == name)
    with inside(place):
        case.check(place)


def test_cases_are_told_apart_and_as_many_as_promised() -> None:
    for figure in figures().values():
        cases = figure.cases()
        assert len({case.name for case in cases}) == len(cases), figure.key
        assert sum(case.n for case in cases) >= figure.least, figure.key
