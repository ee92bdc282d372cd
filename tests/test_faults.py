"""A few cases of RELIABILITY.md's figures, one or two for each promise; ``make reliability`` runs all."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.base import figures, inside

CHOSEN = {  # figure -> its cases that are cheap, and that no other test covers
    "commands": ["SIGTERM in sample, moment 2"],
    "config": ["misspelt 1-60"],
    "corruption": ["swapped, missing and linked files"],
    "controls": ["another seed differs", "the next step differs", "format-1"],
    "disks": [
        *("full at byte 4096, once", "EIO in rename for good"),
        *("metrics.jsonl has no room for ever", "metrics.jsonl for a while, ENOSPC"),
    ],
    "escapes": ["checkpoints -> victim, train", "another user's link", "a token of the environment"],
    "folders": ["run folder replaced", "clock jumps: an hour back", "no rename over a file"],
    "hostile": ["torch zip: as weights, checkpoint, data", "configs that were sent"],
    "kill9": ["sn+ema 0"],
    "machine": ["no home, no cache", "train without torchvision", "folders named with equals"],
    "numerics": ["nan in d at update 5", "score nan", "memory ends in features, call 2"],
    "ranks_end": ["kill -9 of rank 1 at 5"],
    "ranks_exact": ["apart, gp, ema, stopped at 4"],
    "ranks_same": ["cnn sn, 2 ranks"],
    "resume": ["bn everywhere"],
    "signals": ["SIGTERM in save: it is renamed", "SIGTERM in train step: in step 3"],
    "sweepstop": ["SIGTERM to ganlab sweep"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("key", "name"), [(key, name) for key, names in CHOSEN.items() for name in names])
def test_fault(key: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "case"
    place.mkdir()
    (case,) = (case for case in figures()[key].cases() if case.name == name)
    with inside(place):
        case.check(place)
