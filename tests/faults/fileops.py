"""kill -9 before every file operation: of a save, of prune, of a resume with quarantine, of whole runs."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ganlab.runs.checkpoint import Checkpoints

from .base import Case, Failed, Figure, Numbers
from .launching import assert_identical, begin, committed, finish, whole

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
READS = {"os.listdir", "os.scandir", "shutil.rmtree"}
FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
LEAST = {"save": 30, "resume": 15, "new run": 140, "resumed run": 88}  # operations that there are at least
RUN = "0123456789abcdef" * 2
GAME = ("normalization=[sn]", "steps=3", "save_every=1", "keep_checkpoints=2", "log_every=2")


def die_at(k: int, inside: str, counted: list[int] | None = None, changes: bool = False) -> None:
    """From now on this process kills itself before its ``k``-th file operation below ``inside``.

    Python's audit events are the operations on names; writes, half writes and syncs are seen by wrappers.
    ``counted``: count them there instead of killing. ``changes``: only those that change what a kill finds;
    between two of them one moment is like another.
    """
    count = 0
    events = CHANGES if changes else CHANGES | READS
    write, fsync, truncate, pwrite = os.write, os.fsync, os.ftruncate, os.pwrite

    def reached() -> None:
        nonlocal count
        if counted is not None:
            counted[0] += 1
        elif count == k:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def audited(event: str, args: tuple[Any, ...]) -> None:
        if event not in events or not isinstance(args[0], str | bytes | os.PathLike):
            return
        if changes and event == "open" and not args[2] & FOR_WRITING:
            return
        name = os.fsdecode(args[0])
        at = args[-1] if event in ("os.remove", "os.rmdir") else -1  # a folder's descriptor
        if os.path.realpath(os.readlink(f"/proc/self/fd/{at}") if at >= 0 else name).startswith(inside):
            reached()

    def below(fd: int) -> bool:
        try:
            return os.readlink(f"/proc/self/fd/{fd}").startswith(inside)
        except OSError:
            return False

    def seen_write(fd: int, data: Any) -> int:
        if not below(fd):
            return write(fd, data)
        reached()
        half = write(fd, data[: max(1, len(data) // 2)])
        reached()
        return half + (write(fd, data[half:]) if half < len(data) else 0)

    def seen(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(fd: int, *args: Any) -> Any:
            if isinstance(fd, int) and below(fd):
                reached()
            return call(fd, *args)

        return wrapped

    os.write, os.ftruncate, os.pwrite = seen_write, seen(truncate), seen(pwrite)
    if not changes:
        os.fsync = seen(fsync)
    sys.addaudithook(audited)


def killed_in(work: Callable[[], object], k: int, folder: Path) -> bool:
    """Do ``work`` in a child that dies before its ``k``-th file operation; False if it has not as many."""
    if (pid := os.fork()) == 0:
        try:
            logging.disable()
            die_at(k, str(folder))
            work()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), f"exit code {code} at operation {k}"
    return code != 0


def state(step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return {"w": torch.arange(50.0) + step, "b": torch.full((3,), step)}, {"step": step}


def save_and_prune(place: Path) -> Numbers:
    """Old or new, both whole; two are always there; another run's folder beside is not touched."""
    template, other = place / "template", Checkpoints(place / "other", "f" * 32, 2)
    for kept in (Checkpoints(template, RUN, 2), other):
        for step in (1, 2):
            kept.save(step, *state(step))
    before = contents(other.folder)
    k = found = 0
    while True:
        folder = place / f"run{k}"
        shutil.copytree(template, folder)
        kept = Checkpoints(folder, RUN, 2)

        def work(kept: Checkpoints = kept) -> None:
            kept.clean()
            kept.save(3, *state(3))
            kept.prune()

        killed = killed_in(work, k, folder)
        steps = kept.steps()
        assert len(steps) >= 2, f"only {steps} after a kill at operation {k}"
        for step in steps:
            kept.verify(step)
        newest, tensors, _ = kept.load()
        assert newest in (2, 3)
        assert torch.equal(tensors["w"], state(newest)[0]["w"])
        found += newest == 3
        work()
        assert kept.steps() == [2, 3]
        assert sorted(os.listdir(folder)) == ["step-000000002", "step-000000003"]
        shutil.rmtree(folder)
        if not killed:
            break
        k += 1
    assert contents(other.folder) == before, "another run's folder was touched"
    assert 0 < found < k, "no kill after the commit, or none before it"
    return enough("save and prune", k, LEAST["save"])


def resume_and_quarantine(place: Path) -> Numbers:
    """The newest two are damaged: whatever kills the fall back to the third, the next start does the same."""
    template = Checkpoints(place / "template", RUN, 2)
    for step in (1, 2, 3):
        template.save(step, *state(step))
    (template.path(3) / "state.json").write_bytes(b"damaged")
    (template.path(2) / "MANIFEST.json").unlink()
    for left in (".tmp-4-" + "0" * 32, ".trash-0-" + "0" * 32):
        (template.folder / left).mkdir()
        (template.folder / left / "state.json").write_bytes(b"half")
    k = 0
    while True:
        folder = place / f"run{k}"
        shutil.copytree(template.folder, folder)
        kept = Checkpoints(folder, RUN, 2)

        def work(kept: Checkpoints = kept) -> None:
            kept.clean()
            kept.load()

        killed = killed_in(work, k, folder)
        logging.disable()
        work()
        logging.disable(logging.NOTSET)
        assert kept.load()[0] == 1
        aside = ["step-000000002.corrupt", "step-000000003.corrupt"]
        assert sorted(os.listdir(folder)) == ["step-000000001", *aside], f"after a kill at operation {k}"
        shutil.rmtree(folder)
        if not killed:
            break
        k += 1
    return enough("resume and quarantine", k, LEAST["resume"])


def contents(folder: Path) -> Mapping[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def enough(what: str, k: int, least: int) -> Numbers:
    assert k >= least, f"{what} has only {k} file operations: are they seen?"
    return {what: float(k)}


def stopped_run(place: Path) -> Path:
    """A run killed after step 2 of 3, its newest checkpoint damaged, temporary files about."""
    made, killed = place / "made", [0]

    def before() -> None:
        from ganlab.runs.checkpoint import Checkpoints

        prune = Checkpoints.prune

        def dies(self: Checkpoints, keep_also: Any = ()) -> None:
            prune(self, keep_also)
            killed[0] += 1
            if killed[0] == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        Checkpoints.prune = dies  # type: ignore[method-assign]

    assert begin(place, *GAME, before=before).wait().code == -signal.SIGKILL
    (place / "run").rename(made)
    (made / "checkpoints" / "step-000000002" / "state.json").write_bytes(b"damaged")
    (made / "checkpoints" / (".tmp-3-" + "0" * 32)).mkdir()
    (made / f".result.json.{'0' * 32}.tmp").write_bytes(b"half")
    return made


def operations(place: Path, made: Path | None) -> int:
    """How many there are in a whole run from ``made`` on (None: from nothing)."""
    if made:
        shutil.copytree(made, place / "run")
    note = place / "count"

    def before() -> None:
        counted = [0]
        exit_, path = os._exit, str(place / "run")
        die_at(-1, path, counted, changes=True)

        def noted(code: int) -> None:
            note.write_text(str(counted[0]))
            exit_(code)

        os._exit = noted  # type: ignore[assignment]

    done = begin(place, *GAME, before=before).wait()
    assert done.code == 0, done.err[-300:]
    shutil.rmtree(place / "run")
    return int(note.read_text())


def whole_run(again: bool, every: int, first: int, place: Path) -> Numbers:
    """A whole run, from nothing or resumed, killed before its operations ``first``, ``first + every``, ..."""
    whole(*GAME)
    made = stopped_run(place) if again else None
    total, failed = operations(place, made), list[str]()
    points = range(first, total, every)
    for k in points:
        if made:
            shutil.copytree(made, place / "run")
        try:
            process = begin(place, *GAME, before=lambda: die_at(k, str(place / "run"), changes=True))  # noqa: B023
            done = process.wait()
            assert done.code == -signal.SIGKILL, f"exit code {done.code}: {done.err[-200:]}"
            if not made:
                committed(place / "run")
            finish(place, *GAME)
            assert_identical(place, *GAME)
        except Exception as error:
            failed.append(f"operation {k} of {total}: {error}")
        shutil.rmtree(place / "run", ignore_errors=True)
    if failed:
        raise Failed(len(failed), failed[0])
    name = "resumed run" if again else "new run"
    enough(name, total, LEAST[name])
    return {name: float(len(points))}


def cases() -> list[Case]:
    """Points are what K is known to be at least; what it is, is told."""
    found = [
        Case("save and prune", save_and_prune, LEAST["save"]),
        Case("resume and quarantine", resume_and_quarantine, LEAST["resume"]),
    ]
    for again in (False, True):
        name = "resumed run" if again else "new run"
        for first in range(4):
            check = functools.partial(whole_run, again, 4, first)
            found.append(Case(f"{name}, every 4th from {first}", check, LEAST[name] // 4))
    return found


def told(numbers: Sequence[Numbers]) -> str:
    """K of each part."""
    sums: dict[str, float] = {}
    for one in numbers:
        for name, value in one.items():
            sums[name] = sums.get(name, 0) + value
    return "K: " + ", ".join(f"{name} {int(k)}" for name, k in sums.items())


FIGURES = [
    Figure(
        "fileops",
        "kill -9 before every file operation -> recoverable",
        (2, 3, 4),
        sum(LEAST.values()),
        cases,
        told,
    ),
]
