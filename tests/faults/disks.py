"""Full disks and disks that fail: the last good checkpoint stays, the path is named, training goes on."""

from __future__ import annotations

import errno
import functools
import json
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ganlab.system import files

from .base import Case, Done, Figure, Numbers, inside, one_line
from .runs import EVENTFUL, assert_identical, begin, committed, differences, finish

WORDS = (*EVENTFUL, "steps=12")
BIG = ("normalization=[sn]", "architecture.width=0.5", "steps=4", "save_every=1", "keep_checkpoints=3")


def fails(
    call: str, code: int, which: Callable[[str], bool], first: int, times: int = 10_000
) -> Callable[[], None]:
    """In the child ``os.<call>`` fails ``times`` times, from its ``first`` on a path that ``which`` names."""

    def patch() -> None:
        real, count = getattr(os, call), 0

        def broken(on: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            path = os.readlink(f"/proc/self/fd/{on}") if isinstance(on, int) else os.fsdecode(on)
            if which(path):
                count += 1
                if first <= count < first + times:
                    raise OSError(code, os.strerror(code), path)
            return real(on, *args, **kwargs)

        setattr(os, call, broken)
        files.PAUSES = (0.01, 0.02, 0.05)

    return patch


def of_checkpoint(path: str) -> bool:
    return "/checkpoints" in path


def named(name: str) -> Callable[[str], bool]:
    return lambda path: name in os.path.basename(path)


def warnings(done: Done, pattern: str = "") -> int:
    """How many; that a G so small collapses does not count."""
    lines = [line for line in done.err.splitlines() if line.startswith("ganlab: warning: ")]
    return sum(pattern in line and "collapsed" not in line for line in lines)


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
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            soft = limit if 2 < saves <= 2 + times else hard
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            try:
                return commit(self, *args)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

        Checkpoints._commit = limited  # type: ignore[method-assign]

    done = begin(place, *WORDS, before=before).wait()
    steps = committed(run)
    if times < 3:
        assert done.code == 0, done.err[-300:]
        assert warnings(done, "disk full writing run/checkpoints/step-000000004: needs ") == 1
    else:
        one_line(done, 5, "disk full writing .*step-000000008: needs .* MB free", "run_dir=|free some space")
        assert warnings(done, "disk full writing") == 2
        assert steps == [0, 2]
        assert json.loads((run / "result.json").read_text())["status"] == "failed"
        finish(place, *WORDS)
    assert_identical(place, *WORDS)


@functools.cache
def checkpoint_bytes() -> int:
    """Of a finished run of ``BIG``."""
    with tempfile.TemporaryDirectory(dir=Path.cwd().parent) as folder, inside(Path(folder)):
        finish(Path(folder), *BIG)
        newest = max((Path(folder) / "run" / "checkpoints").iterdir())
        return sum(p.stat().st_size for p in newest.iterdir())


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[bool]:
    """A tmpfs of ``size`` bytes there; False if it can't be mounted here: root may."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "ganlab-test", str(folder)]
    made = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", str(folder)], check=False, capture_output=True)


def small_disk(share: float, place: Path) -> None:
    """A disk for ``share`` checkpoints: too small is an error before the first update; 5.5 are enough."""
    size = int(share * checkpoint_bytes())
    with mounted(place / "run", size):
        done = begin(place, *BIG).wait()
        metrics = place / "run" / "metrics.jsonl"
        if share > 5:
            assert done.code == 0, done.err[-300:]
            committed(place / "run")
        else:
            one_line(done, 5, "disk full writing run", "free some space|run_dir=")
            assert not metrics.exists() or "train" not in metrics.read_text(), "it trained first"


# ---- failing


def brief(call: str, code: int, which: Callable[[str], bool], first: int, times: int, place: Path) -> None:
    """An error that goes away makes no message, and the run is what it would be."""
    done = begin(place, *WORDS, before=fails(call, code, which, first, times)).wait()
    assert done.code == 0, done.err[-300:]
    assert not warnings(done), done.err
    assert_identical(place, *WORDS)


def lasting(call: str, code: int, place: Path) -> None:
    """A disk that fails for good after the second checkpoint: code 5, the path named, the last one whole."""
    first = {"write": 7, "fsync": 13, "rename": 3, "mkdir": 4}[call]
    done = begin(place, *WORDS, before=fails(call, code, of_checkpoint, first)).wait()
    one_line(done, 5, r"run/checkpoints/step-\d+", "run_dir=|free some space")
    assert committed(place / "run"), "nothing is left"
    finish(place, *WORDS)
    assert_identical(place, *WORDS)


def metrics_full(code: int, place: Path) -> None:
    """metrics.jsonl has no room for a while: one warning, its lines wait, none is lost."""
    times = 6 if code in files.TRANSIENT else 3  # three further tries are made in silence
    done = begin(place, *WORDS, before=fails("write", code, named("metrics.jsonl"), 2, times)).wait()
    assert done.code == 0, done.err[-300:]
    assert warnings(done, "records are buffered until the next checkpoint") == 1, done.err
    assert_identical(place, *WORDS)


def metrics_dead(place: Path) -> None:
    """metrics.jsonl has no room for ever: no checkpoint runs ahead of it; three in a row and it ends."""
    done = begin(place, *WORDS, before=fails("write", errno.ENOSPC, named("metrics.jsonl"), 4)).wait()
    one_line(done, 5, "disk full writing run/metrics.jsonl", "free some space")
    assert committed(place / "run")[-1] == 2
    finish(place, *WORDS)
    assert_identical(place, *WORDS)


def pictures_full(place: Path) -> None:
    """Pictures have no room: one warning, and training goes on."""
    done = begin(place, *WORDS, before=fails("write", errno.ENOSPC, lambda p: "/samples/" in p, 1)).wait()
    assert done.code == 0, done.err[-300:]
    assert warnings(done, "samples/step-000000000.png") == warnings(done) == 1, done.err
    assert differences(place, *WORDS) == "pictures"


def result_full(place: Path) -> None:
    """result.json has no room for a while: warnings, and training goes on."""
    broken = fails("write", errno.ENOSPC, lambda path: ".result.json." in path, 3, 3)
    done = begin(place, *WORDS, before=broken).wait()
    assert done.code == 0, done.err[-300:]
    assert warnings(done, "result.json") == 3, done.err
    assert_identical(place, *WORDS)


def cases() -> list[Case]:
    def case(name: str, check: Callable[..., None], *args: Any) -> Case:
        return Case(name, functools.partial(check, *args))

    limits = (0, 1, 1000, 4096, 4097, 8192, 12000)
    collected = [case(f"full at byte {limit}, once", full_at, limit, 1) for limit in limits]
    collected += [case(f"full at byte {limit}, three times", full_at, limit, 3) for limit in (0, 4096)]
    for code in (errno.EIO, errno.ESTALE):
        for call, which, first in (
            ("write", of_checkpoint, 4),
            ("fsync", of_checkpoint, 8),
            ("fsync", named("metrics.jsonl"), 2),
            ("write", named("metrics.jsonl"), 2),
            ("replace", named("result.json"), 2),
        ):
            times, where = 3 if call == "write" else 1, "checkpoints" if which is of_checkpoint else "files"
            name = f"{errno.errorcode[code]} in {call} {first} of {where}, {times} times"
            collected.append(case(name, brief, call, code, which, first, times))
        for call in ("write", "fsync", "rename", "mkdir"):
            collected.append(case(f"{errno.errorcode[code]} in {call} for good", lasting, call, code))
    for code in (errno.ENOSPC, errno.EDQUOT):
        collected.append(case(f"metrics.jsonl for a while, {errno.errorcode[code]}", metrics_full, code))
    for check in (metrics_dead, pictures_full, result_full):
        collected.append(case(str(check.__doc__).partition(":")[0], check))
    if can_mount():
        for share in (0.2, 0.9, 2.5, 5.5):
            collected.append(case(f"a disk of {share} checkpoints", small_disk, share))
    return collected


@functools.cache
def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder, mounted(Path(folder), 1 << 20) as made:
        return made


def summary(_: Sequence[Numbers]) -> str:
    return "" if can_mount() else "small disks: not run, mounting them needs root"


FIGURES = [Figure("disks", "Disk full or failing: last checkpoint intact, path named", cases, summary)]
