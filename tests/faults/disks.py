"""Full disks and disks that fail: the last good checkpoint stays, the path is named, training goes on."""

from __future__ import annotations

import errno
import functools
import json
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ganlab.system import files

from . import launching
from .base import Case, Figure, Numbers, one_line
from .injecting import can_mount, fails, named, of_checkpoint, small_disk, warned
from .launching import assert_identical, begin, committed, finish, told, whole

GAME = (*launching.GAME, "steps=12")
BIG = ("normalization=[sn]", "architecture.width=0.5", "steps=4", "save_every=1", "keep_checkpoints=3")
BRIEF = {"EIO": errno.EIO, "EDQUOT": errno.EDQUOT, "ESTALE": errno.ESTALE}


# ---- full


def full_at(limit: int, times: int, place: Path) -> None:
    """A file-size limit strikes ``limit`` bytes into the files of a checkpoint, ``times`` saves long."""
    run = place / "run"

    def before() -> None:
        from ganlab.runs.checkpoint import Checkpoints

        commit, saves = Checkpoints._commit, 0

        def limited(self: Any, *args: Any) -> None:
            nonlocal saves
            saves += 1
            if not 2 < saves <= 2 + times:
                return commit(self, *args)
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                return commit(self, *args)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

        Checkpoints._commit = limited  # type: ignore[method-assign]

    done = begin(place, *GAME, before=before).wait()
    steps = committed(run)
    told_full = f"disk full writing {run.name}/checkpoints/step-000000004: needs "
    if times < 3:
        assert done.code == 0, done.err[-300:]
        assert warned(done, told_full) == 1
        assert "MB free" in done.err
    else:
        one_line(done, 5, "disk full writing .*step-000000008: needs .* MB free", "run_dir=|free some space")
        assert warned(done, "disk full writing") == 2
        assert steps == [0, 2]
        assert json.loads((run / "result.json").read_text())["status"] == "failed"
        finish(place, *GAME)
    assert_identical(place, *GAME)


def too_small(share: float, place: Path) -> None:
    """A disk of its own, too small for the checkpoints to come: it is told before the first update."""
    with small_disk(place, *BIG) as (mount, size):
        mount(int(size * share))
        done = begin(place, *BIG).wait()
        one_line(done, 5, "disk full writing run", "free some space|run_dir=")
        lines = (
            (place / "run" / "metrics.jsonl").read_text()
            if (place / "run" / "metrics.jsonl").exists()
            else ""
        )
        assert "train" not in lines, "it trained before it told"


def just_enough(place: Path) -> None:
    """A disk of its own that holds the run: it is let in, and ends."""
    with small_disk(place, *BIG) as (mount, size):
        mount(int(size * 5.5))
        done = begin(place, *BIG).wait()
        assert done.code == 0, done.err[-300:]
        committed(place / "run")


def no_room(call: int, code: int, place: Path) -> None:
    """The allocation of the ``call``-th checkpoint to come is refused: as on a disk too small, or a quota."""

    def before() -> None:
        count, real = 0, os.posix_fallocate

        def refuse(fd: int, start: int, size: int) -> None:
            nonlocal count
            count += 1
            if count == call:
                raise OSError(code, os.strerror(code))
            real(fd, start, size)

        os.posix_fallocate = refuse

    done = begin(place, *BIG, before=before).wait()
    one_line(done, 5, "disk full writing run/checkpoints: 3 more checkpoints need", "keep_checkpoints")
    assert json.loads((place / "run" / "result.json").read_text())["step"] == 0
    assert sorted(os.listdir(place / "run" / "checkpoints")) == ["step-000000000"]
    finish(place, *BIG)
    assert_identical(place, *BIG)


# ---- failing


def brief(call: str, code: int, which: Callable[[str], bool], first: int, times: int, place: Path) -> None:
    """An error that goes away is not even told, and the run is what it would be."""
    done = begin(place, *GAME, before=fails(call, code, which, first, times)).wait()
    assert done.code == 0, done.err[-300:]
    assert not warned(done, ""), done.err
    assert_identical(place, *GAME)


def lasting(call: str, code: int, place: Path) -> None:
    """A disk that fails for good after the second checkpoint: code 5, the path named, the last one whole."""
    run = place / "run"
    broken = fails(
        call, code, of_checkpoint, {"write": 7, "fsync": 13, "rename": 3, "mkdir": 4}[call], 10_000
    )
    done = begin(place, *GAME, before=broken).wait()
    one_line(done, 5, r"run/checkpoints/step-\d+", "run_dir=|free some space")
    steps = committed(run)
    assert steps, "nothing is left"
    finish(place, *GAME)
    assert_identical(place, *GAME)


def metrics_full(code: int, place: Path) -> None:
    """metrics.jsonl has no room for a while: told once, its lines wait, none is lost."""
    times = 6 if code in files.TRANSIENT else 3  # three further tries are made in silence
    done = begin(place, *GAME, before=fails("write", code, named("metrics.jsonl"), 2, times)).wait()
    assert done.code == 0, done.err[-300:]
    assert warned(done, "records are buffered until the next checkpoint") == 1, done.err
    assert warned(done, "retrying at the next checkpoint") <= 1, done.err
    assert_identical(place, *GAME)


def metrics_dead(place: Path) -> None:
    """metrics.jsonl has no room for ever: no checkpoint runs ahead of it; three in a row and it ends."""
    broken = fails("write", errno.ENOSPC, named("metrics.jsonl"), 4, 10_000)
    done = begin(place, *GAME, before=broken).wait()
    one_line(done, 5, "disk full writing run/metrics.jsonl", "free some space")
    assert committed(place / "run")[-1] == 2
    finish(place, *GAME)
    assert_identical(place, *GAME)


def pictures_full(place: Path) -> None:
    """Pictures have no room: told once, and training goes on."""
    broken = fails("write", errno.ENOSPC, lambda path: "/samples/" in path, 1, 10_000)
    done = begin(place, *GAME, before=broken).wait()
    assert done.code == 0, done.err[-300:]
    assert warned(done, "samples/step-000000000.png") == warned(done, "") == 1, done.err
    assert os.listdir(place / "run" / "samples") == []
    assert told(place / "run") == whole(*GAME).records


def board_full(place: Path) -> None:
    """TensorBoard has no room: told once, and training goes on."""

    def before() -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        def refuse(self: Any, data: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        RecordWriter.write = refuse

    done = begin(place, *GAME, before=before).wait()
    assert done.code == 0, done.err[-300:]
    assert warned(done, "TensorBoard failed") == warned(done, "") == 1, done.err
    assert_identical(place, *GAME)


def result_full(place: Path) -> None:
    """result.json has no room for a while: told, and training goes on."""
    broken = fails("write", errno.ENOSPC, lambda path: ".result.json." in path, 3, 3)
    done = begin(place, *GAME, before=broken).wait()
    assert done.code == 0, done.err[-300:]
    assert warned(done, "result.json") == 3, done.err
    assert_identical(place, *GAME)


def cases() -> list[Case]:
    found: list[Case] = []

    def add(name: str, check: Callable[..., None], *args: Any) -> None:
        found.append(Case(name, functools.partial(check, *args)))

    limits = [0, 1, 7, 100, 512, 1000, 2000, 3000, 4095, 4096, 4097, 6000, 8192, 9000, 10000, 11000, 12000]
    for limit in limits:
        add(f"full at byte {limit}, once", full_at, limit, 1)
    for limit in limits[::4]:
        add(f"full at byte {limit}, three times", full_at, limit, 3)
    for number, code in enumerate((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), 1):
        add(f"no room for checkpoint {number} to come, {errno.errorcode[code]}", no_room, number, code)
    for name, code in BRIEF.items():
        for call, which, first in (
            ("write", of_checkpoint, 4),
            ("fsync", of_checkpoint, 8),
            ("fsync", named("metrics.jsonl"), 2),
            ("write", named("metrics.jsonl"), 2),
            ("replace", named("result.json"), 2),
        ):
            times = 3 if call == "write" else 1
            where = "checkpoints" if which is of_checkpoint else "other files"
            add(f"{name} in {call} {first} of {where}, {times} times", brief, call, code, which, first, times)
        for call in ("write", "fsync", "rename", "mkdir"):
            add(f"{name} in {call} for good", lasting, call, code)
    for code in (errno.ENOSPC, errno.EDQUOT):
        add(f"metrics.jsonl for a while, {errno.errorcode[code]}", metrics_full, code)
    for check in (metrics_dead, pictures_full, board_full, result_full):
        add(str(check.__doc__).partition(":")[0], check)
    if can_mount():
        for share in (0.2, 0.5, 0.9, 1.5, 2.0, 2.5, 3.0):
            add(f"a disk of {share} checkpoints", too_small, share)
        add("a disk of 5.5 checkpoints holds them", just_enough)
    return found


def about(_: Sequence[Numbers]) -> str:
    return "" if can_mount() else "small disks of its own: not run, mounting them needs root"


FIGURES = [
    Figure(
        "disks",
        "Disk-full and IO-error points -> last good intact, path named",
        (13, 14, 15),
        50,
        cases,
        about,
    )
]
