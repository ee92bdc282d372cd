"""Signals in every phase of a run and of other commands: saved, 128 + N, resumed as if undisturbed."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .base import Case, Figure, Forked, Numbers, inside, one_line
from .runs import assert_identical, begin, committed, finish, last_step

WORDS = (
    *("normalization=[sn]", "ema=0.9", "steps=10", "save_every=2", "keep_checkpoints=2", "sample_every=5"),
    *("eval_every=4", "metric=[is,fid]", "log_every=1"),
)
CLASSES = (
    *("architecture=resnet", "architecture.head=projection", "architecture.width=0.02"),
    *("dataset.resolution=32", "normalization=[sn]", "steps=5", "save_every=2", "keep_checkpoints=2"),
    *("eval_every=3", "metric=[is,intra_fid]", "log_every=1", "metric.protocol.intra_n_fake=300"),
)
FINISHED = ("normalization=[sn]", "steps=2", "save_every=2", "metric=[is,fid]")
GRACE_S = 60  # of a step and a save of a run this small, on a busy machine
Notify = Callable[[], None]
Patch = Callable[[Notify], None]


def nth(n: int, notify: Notify) -> Notify:
    """Notifies at its ``n``-th call, from 1 on."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == n:
            notify()

    return count


def at(owner: Any, name: str, n: int, after: bool = False) -> Patch:
    """A moment: before or after the ``n``-th call of a function."""

    def patch(notify: Notify) -> None:
        call, count = getattr(owner, name), nth(n, notify)

        def patched(*args: Any, **kwargs: Any) -> Any:
            if not after:
                count()
            result = call(*args, **kwargs)
            if after:
                count()
            return result

        setattr(owner, name, patched)

    return patch


def within(method: str, nth_call: int, name: str, n: int) -> Patch:
    """A moment inside a call of a method of Checkpoints: before its ``n``-th call of a function of ``os``."""

    def patch(notify: Notify) -> None:
        from ganlab.runs.checkpoint import Checkpoints

        whole, calls = getattr(Checkpoints, method), 0

        def patched(self: Any, *args: Any) -> Any:
            nonlocal calls
            calls += 1
            call = getattr(os, name)
            if calls == nth_call:
                at(os, name, n)(notify)
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
    from ganlab.data.digits import Digits
    from ganlab.evaluation import evaluator
    from ganlab.evaluation.passes import FeaturePass
    from ganlab.evaluation.per_class import ClassPass
    from ganlab.runs import folder as folder_module
    from ganlab.runs.checkpoint import Checkpoints
    from ganlab.samples import base, images
    from ganlab.training import engine, monitor, trainer

    def update(n: int, after: bool) -> Patch:
        return at(engine.Engine, "update", n, after)

    return {
        "start-up": [
            ("its data are read", at(Digits, "load", 1), WORDS),
            ("its networks are built", at(trainer, "build_gan", 1, after=True), WORDS),
            ("its folder is locked", at(folder_module.RunFolder, "lock", 1, after=True), WORDS),
            ("its device is prepared", at(trainer, "prepare", 1), WORDS),
        ],
        "train step": [
            (f"in step {n}" if not after else f"after step {n}", update(n, after), WORDS)
            for n, after in ((1, False), (3, False), (6, True), (10, False))
        ],
        "save": [
            ("its first file is written", in_save("write", 1), WORDS),
            ("its manifest is synced", in_save("fsync", 3), WORDS),
            ("it is renamed", in_save("rename", 1), WORDS),
            ("after it", at(Checkpoints, "save", 2, after=True), WORDS),
        ],
        "sample grid": [
            ("the first is drawn", at(images, "grid", 1), WORDS),
            ("the second is drawn", at(monitor, "stored_samples", 2), WORDS),
            ("the second is written", at(base, "write_png", 2), WORDS),
            ("after the last", at(base, "write_png", 3, after=True), WORDS),
        ],
        "evaluation": [
            ("the pass of the real images", at(evaluator, "compute", 1), WORDS),
            ("the first pass", at(FeaturePass, "blocks", 1), WORDS),
            ("the last pass", at(FeaturePass, "blocks", 3), WORDS),
            ("the pass of the classes", at(ClassPass, "score", 2), CLASSES),
        ],
        "prune": [
            ("before the first", at(Checkpoints, "prune", 1), WORDS),
            ("a checkpoint goes", in_prune("rename", 1), WORDS),
            ("its files go", in_prune("unlink", 2), WORDS),
            ("after the last", at(Checkpoints, "prune", 6, after=True), WORDS),
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
        assert steps[-1] == result["step"] >= max(last_step(run), 0), "what was reached is not saved"
        assert f"saved at step {steps[-1]}" in done.err
    finish(place, *words)
    assert_identical(place, *words)
    return {"latency": ended - float(note.read_text())}


def name_of(signum: int) -> str:
    return signal.Signals(signum).name


def phases() -> list[Case]:
    """All phases and moments by SIGTERM; one moment of each phase by the other signals."""
    collected = []
    for phase, where in moments().items():
        for number, (when, patch, words) in enumerate(where):
            others = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
            for signum in (signal.SIGTERM, others[number % 4]):
                check = functools.partial(stopped, signum, phase, patch, words)
                collected.append(Case(f"{name_of(signum)} in {phase}: {when}", check))
    return collected


def twice(patch: Patch, words: tuple[str, ...], delays: Sequence[float], place: Path) -> Numbers:
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
        with inside(folder):
            assert_identical(folder, *words)
    return {"latency": slowest}


def double() -> list[Case]:
    collected, delays = list[Case](), (0.0, 0.05, 0.1, 0.2)
    for phase in ("train step", "save", "prune"):
        for when, patch, words in moments()[phase]:
            check = functools.partial(twice, patch, words, delays)
            collected.append(Case(f"SIGINT twice in {phase}: {when}", check, len(delays)))
    return collected


# ---- other commands


def interrupted(signum: int, words: tuple[str, ...], patch: Patch, place: Path) -> None:
    """One line, 128 + N, nothing half under a final name; then the same command once more, to its end."""
    from PIL import Image

    finish(place, *FINISHED)
    sent = place / "sent"
    before = {p for p in place.rglob("*") if p.is_file()}

    def send() -> None:
        sent.touch()
        os.kill(os.getpid(), signum)

    done = Forked(*words, cwd=place, before=lambda: patch(send)).wait(60)
    assert sent.exists(), "the moment never came"
    one_line(done, 128 + signum, name_of(signum), "same command|again")
    for path in {p for p in place.rglob("*") if p.is_file()} - before - {sent}:
        assert not path.name.endswith((".tmp", ".part")), f"left behind: {path.name}"
        if path.suffix == ".png":
            Image.open(path).load()
        if path.suffix == ".json":
            json.loads(path.read_text())
    again = Forked(*words, cwd=place).wait(120)
    assert again.code == 0, again.err[-300:]


def commands() -> list[Case]:
    from ganlab.config import saved_run
    from ganlab.evaluation.evaluator import Evaluator
    from ganlab.evaluation.passes import FeaturePass
    from ganlab.samples import images
    from ganlab.system import files

    sample = ("sample", "run", "n=16", "out=pictures")
    evaluate = ("evaluate", "run", "metric.protocol.seed=1")
    collected = []
    for words, patches in {
        sample: [at(saved_run, "restore", 1), at(images, "write_png", 9), at(files, "write_new", 5)],
        evaluate: [at(FeaturePass, "blocks", 1), at(Evaluator, "score", 1, after=True)],
        ("report", "run", "out=page"): [at(files, "_replace", 1), at(os, "replace", 1)],
    }.items():
        for k, patch in enumerate(patches, 1):
            for signum in (signal.SIGINT, signal.SIGTERM):
                name = f"{name_of(signum)} in {words[0]}, moment {k}"
                collected.append(Case(name, functools.partial(interrupted, signum, words, patch)))
    return collected


def p95(numbers: Sequence[Numbers]) -> str:
    seconds = sorted(n["latency"] for n in numbers)
    return f"p95 {seconds[int(0.95 * (len(seconds) - 1))]:.2f} s" if seconds else ""


FIGURES = [
    Figure("signals", "Signals in every phase: saved, 128 + N, resume identical", phases, p95),
    Figure("twice", "Ctrl-C twice: it ends at once, nothing lost", double, p95),
    Figure("commands", "Other commands interrupted: one line, nothing half", commands),
]
