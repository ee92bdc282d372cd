"""Signals in every phase of a run: it saves, ends with 128 + N, and goes on as if undisturbed."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ganlab.system.signals import SIGNALS

from .base import Case, Figure, Numbers, inside, one_line
from .launching import assert_identical, begin, committed, finish, last_told

GAME = (
    *("normalization=[sn]", "ema=0.9", "steps=10", "save_every=2", "keep_checkpoints=2", "sample_every=5"),
    *("eval_every=4", "metric=[is,fid]", "log_every=1"),
)
CLASSES = (
    *("architecture=resnet", "architecture.head=projection", "architecture.width=0.02"),
    *("dataset.resolution=32", "normalization=[sn]", "steps=5", "save_every=2", "keep_checkpoints=2"),
    *("eval_every=3", "metric=[is,intra_fid]", "log_every=1", "metric.protocol.intra_n_fake=300"),
)
GRACE_S = 60  # of a step and a save of a run this small on a machine that is busy; what it took is told
Tell = Callable[[], None]
Patch = Callable[[Tell], None]


def nth(n: int, tell: Tell) -> Tell:
    """Tells at its ``n``-th call, from 1 on."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == n:
            tell()

    return count


def at(owner: Any, name: str, n: int, after: bool = False) -> Patch:
    """A moment: before or after the ``n``-th call of a function."""

    def patch(tell: Tell) -> None:
        call, count = getattr(owner, name), nth(n, tell)

        def patched(*args: Any, **kwargs: Any) -> Any:
            if not after:
                count()
            found = call(*args, **kwargs)
            if after:
                count()
            return found

        setattr(owner, name, patched)

    return patch


def within(method: str, nth_call: int, name: str, n: int) -> Patch:
    """A moment inside a call of a method of Checkpoints: before its ``n``-th call of a function of ``os``."""

    def patch(tell: Tell) -> None:
        from ganlab.runs.checkpoint import Checkpoints

        whole, calls = getattr(Checkpoints, method), 0

        def patched(self: Any, *args: Any) -> Any:
            nonlocal calls
            calls += 1
            call = getattr(os, name)
            if calls == nth_call:
                at(os, name, n)(tell)
            try:
                return whole(self, *args)
            finally:
                setattr(os, name, call)

        setattr(Checkpoints, method, patched)

    return patch


def in_save(name: str, n: int) -> Patch:
    return within("save", 2, name, n)


def in_prune(name: str, n: int) -> Patch:
    return within("prune", 3, name, n)  # the first two find nothing to delete


def moments() -> dict[str, list[tuple[str, Patch, tuple[str, ...]]]]:
    """By phase: what is going on when the signal comes."""
    from ganlab.evaluation import evaluator
    from ganlab.evaluation.passes import FeaturePass
    from ganlab.evaluation.per_class import ClassPass
    from ganlab.runs import folder as folder_module
    from ganlab.runs.checkpoint import Checkpoints
    from ganlab.samples import base, images
    from ganlab.training import engine, monitor, trainer
    from ganlab.training.resources import Resources

    def update(n: int, after: bool) -> Patch:
        return at(engine.Engine, "update", n, after)

    return {
        "start-up": [
            ("its data are read", at(Resources, "images", 1), GAME),
            ("its networks are built", at(trainer, "build_gan", 1, after=True), GAME),
            ("its folder is locked", at(folder_module.RunFolder, "lock", 1, after=True), GAME),
            ("its device is prepared", at(trainer, "prepare", 1), GAME),
        ],
        "train step": [
            (f"in step {n}" if not after else f"after step {n}", update(n, after), GAME)
            for n, after in ((1, False), (3, False), (6, True), (10, False))
        ],
        "save": [
            ("its first file is written", in_save("write", 1), GAME),
            ("its manifest is synced", in_save("fsync", 3), GAME),
            ("it is renamed", in_save("rename", 1), GAME),
            ("after it", at(Checkpoints, "save", 2, after=True), GAME),
        ],
        "sample grid": [
            ("the first is drawn", at(images, "grid", 1), GAME),
            ("the second is drawn", at(monitor, "stored_samples", 2), GAME),
            ("the second is written", at(base, "write_png", 2), GAME),
            ("after the last", at(base, "write_png", 3, after=True), GAME),
        ],
        "evaluation": [
            ("the pass of the real images", at(evaluator, "compute", 1), GAME),
            ("the first pass", at(FeaturePass, "blocks", 1), GAME),
            ("the last pass", at(FeaturePass, "blocks", 3), GAME),
            ("the pass of the classes", at(ClassPass, "score", 2), CLASSES),
        ],
        "prune": [
            ("before the first", at(Checkpoints, "prune", 1), GAME),
            ("a checkpoint goes", in_prune("rename", 1), GAME),
            ("its files go", in_prune("unlink", 2), GAME),
            ("after the last", at(Checkpoints, "prune", 6, after=True), GAME),
        ],
    }


def stopped(signum: int, phase: str, patch: Patch, words: tuple[str, ...], place: Path) -> Numbers:
    """One signal at one moment; the same command again ends as if there had been none."""
    note, run = place / "sent", place / "run"

    def send() -> None:
        note.write_text(repr(time.monotonic()))
        os.kill(os.getpid(), signum)

    cache = str(place / "cache")  # empty: the real images are looked at
    done = begin(place, *words, before=lambda: patch(send), GANLAB_CACHE=cache).wait(GRACE_S)
    ended = time.monotonic()
    assert note.exists(), "the moment never came"
    one_line(done, 128 + signum, signal.Signals(signum).name, "same command")
    steps = committed(run)
    if phase != "start-up":
        result = json.loads((run / "result.json").read_text())
        assert result["status"] == "stopped"
        assert steps[-1] == result["step"] >= max(last_told(run), 0), "what was reached is not saved"
        assert f"saved at step {steps[-1]}" in done.err
    finish(place, *words)
    assert_identical(place, *words)
    return {"latency": ended - float(note.read_text())}


def phases() -> list[Case]:
    """All phases, signals and moments."""
    found = []
    for phase, there in moments().items():
        for signum in SIGNALS:
            for when, patch, words in there:
                name = f"{signal.Signals(signum).name} in {phase}: {when}"
                found.append(Case(name, functools.partial(stopped, signum, phase, patch, words)))
    return found


def twice(phase: str, patch: Patch, words: tuple[str, ...], delays: Sequence[float], place: Path) -> Numbers:
    """Ctrl-C, and again before the disk has answered the first: it ends, and what is committed is whole."""
    slowest = 0.0
    for number, delay in enumerate(delays):
        folder = place / str(number)
        folder.mkdir()
        note = folder / "now"

        def slow(note: Path = note) -> None:
            fsync = os.fsync

            def slower(fd: int) -> None:
                deadline = time.monotonic() + 0.15
                while note.exists() and time.monotonic() < deadline:
                    time.sleep(0.01)  # as a disk does, it does not let itself be interrupted
                fsync(fd)

            os.fsync = slower
            patch(note.touch)

        process = begin(folder, *words, before=slow)
        while not note.exists() and process.running():
            time.sleep(0.002)
        process.kill(signal.SIGINT)
        time.sleep(delay)
        second = time.monotonic()
        over = not process.running()
        process.kill(signal.SIGINT)
        done = process.wait(GRACE_S)
        slowest = max(slowest, 0.0 if over else time.monotonic() - second)
        one_line(done, 130, "SIGINT", "same command")
        committed(folder / "run")
        finish(folder, *words)
        with_inside(folder, words)
    return {"latency": slowest}


def with_inside(folder: Path, words: tuple[str, ...]) -> None:
    """As ``assert_identical``, from the folder that the run's relative paths start at."""
    with inside(folder):
        assert_identical(folder, *words)


def double() -> list[Case]:
    found = []
    delays = (0.0, 0.05, 0.1, 0.2)
    for phase, there in moments().items():
        for when, patch, words in there:
            if phase in ("train step", "save", "prune") and words is GAME:
                check = functools.partial(twice, phase, patch, words, delays)
                found.append(Case(f"SIGINT twice in {phase}: {when}", check, len(delays)))
    return found


def p95(numbers: Sequence[Numbers]) -> str:
    """How long from the signal to the end."""
    taken = sorted(n["latency"] for n in numbers)
    return f"p95 {taken[int(0.95 * (len(taken) - 1))]:.2f} s from the signal to the end" if taken else ""


FIGURES = [
    Figure("signals", "Signals x phases -> saved in grace", (7,), 120, phases, p95),
    Figure("twice", "SIGINT twice -> ended, nothing lost", (8,), 40, double, p95),
]
