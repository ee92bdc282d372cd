"""Commands beside training that a signal ends: one line, 128 + N, nothing half under a final name."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import Case, Figure, Forked, one_line
from .launching import finish
from .signals import at

GAME = ("normalization=[sn]", "steps=2", "save_every=2", "metric=[is,fid]")


def interrupted(signum: int, words: tuple[str, ...], patch: Callable[[Any], None], place: Path) -> None:
    """A signal at one moment of a command; then the same command once more, to its end."""
    from PIL import Image

    finish(place, *GAME)
    sent = place / "sent"
    before = {p for p in place.rglob("*") if p.is_file()}

    def send() -> None:
        sent.touch()
        os.kill(os.getpid(), signum)

    done = Forked(*words, cwd=place, before=lambda: patch(send)).wait(60)
    assert sent.exists(), "the moment never came"
    one_line(done, 128 + signum, signal.Signals(signum).name, "same command|again")
    for path in {p for p in place.rglob("*") if p.is_file()} - before - {sent}:
        assert not path.name.endswith((".tmp", ".part")), f"left behind: {path.name}"
        if path.suffix == ".png":
            Image.open(path).load()
        if path.suffix == ".json":
            json.loads(path.read_text())
    again = Forked(*words, cwd=place).wait(120)
    assert again.code == 0, again.err[-300:]


def moments() -> dict[str, tuple[tuple[str, ...], list[Callable[[Any], None]]]]:
    """By command: its words, and what goes on when the signal comes."""
    from ganlab.cli import data
    from ganlab.config import saved_run
    from ganlab.evaluation.evaluator import Evaluator
    from ganlab.evaluation.passes import FeaturePass
    from ganlab.samples import images
    from ganlab.system import files

    return {
        "sample": (
            ("sample", "run", "n=16", "out=pictures"),
            [at(saved_run, "restore", 1), at(images, "write_png", 9), at(files, "write_new", 5)],
        ),
        "evaluate": (
            ("evaluate", "run", "metric.protocol.seed=1"),
            [
                at(saved_run, "restore", 1),
                at(FeaturePass, "blocks", 1),
                at(Evaluator, "score", 1, after=True),
            ],
        ),
        "report": (
            ("report", "run", "out=page"),
            [at(files, "_replace", 1), at(os, "replace", 1)],
        ),
        "data info": (
            ("data", "info", "digits"),
            [at(data, "info", 1)],
        ),
    }


def cases() -> list[Case]:
    found = []
    for command, (words, there) in moments().items():
        for k, patch in enumerate(there):
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                name = f"{signal.Signals(signum).name} in {command}, moment {k + 1}"
                found.append(Case(name, functools.partial(interrupted, signum, words, patch)))
    return found


FIGURES = [Figure("interrupted", "Other commands interrupted -> one line, nothing half", (7,), 27, cases)]
