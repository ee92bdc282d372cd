"""Processes that decode or read: killed, crashed, stopped, blocked while a set is prepared."""

from __future__ import annotations

import io
import os
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from ganlab.data.packing import decoding
from ganlab.data.packing.worker import Worker

from .base import Case, Figure, Forked, one_line
from .data_common import command, packs, photo, tree
from .data_containers import database

N = 40  # images, ten to a process at a time
TIMEOUT = 2.0  # seconds, in the place of 120, for the process that is stopped


def folder(place: Path) -> tuple[str, ...]:
    root = tree(place / "set", {f"{i:02d}.jpg": photo(i) for i in range(N)})
    return "folder", f"path={root}", "resolution=8"


def tars(place: Path) -> tuple[str, ...]:
    """ImageNet's tar of tars."""
    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w") as archive:
        for wnid in ("n01440764", "n01443537"):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as part:
                for i in range(N // 2):
                    info = tarfile.TarInfo(f"{wnid}_{i}.JPEG")
                    info.size = len(data := photo(i))
                    part.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo(f"{wnid}.tar")
            info.size = len(inner.getvalue())
            archive.addfile(info, io.BytesIO(inner.getvalue()))
    root = tree(place / "set", {"ILSVRC2012_img_train.tar": outer.getvalue()})
    return "imagenet", f"path={root}", "resolution=8", "preprocess=plain"


def lsun(place: Path) -> tuple[str, ...]:
    if not (place / "bedroom_train_lmdb").exists():
        database(place / "bedroom_train_lmdb", N)
    return "lsun", f"path={place}", "resolution=8"


def stl(place: Path) -> tuple[str, ...]:
    """Arrays, resized in processes."""
    raw = np.random.default_rng(0).integers(0, 256, 600 * 27648, np.uint8).tobytes()
    root = tree(place / "set", {"unlabeled_X.bin": raw})
    return "stl10", f"path={root}", "verify=false"


SETS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "folder": folder, "ImageNet tar": tars, "LSUN": lsun, "STL-10": stl,
}  # fmt: skip


def content(place: Path) -> dict[str, bytes]:
    (found,) = packs(place)
    return {p.name: p.read_bytes() for p in sorted(found.iterdir())}


def struck(signum: int, nth: int, every: bool = False, at: Path | None = None) -> Any:
    """``Child.start`` whose ``nth`` call (or every one from it on) also sends the child a signal.

    ``at``: the file that is told when.
    """
    inner, calls = Worker.start, [0]

    def start(self: Worker, *args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] == nth or (every and calls[0] > nth):
            if signum == signal.SIGSTOP:
                self._timeout = TIMEOUT
                if at:
                    at.write_text(str(time.monotonic()))
                os.kill(self._process.pid, signum)
                inner(self, *args, **kwargs)
                return
            os.kill(self._process.pid, signum)
            self._process.wait()
        inner(self, *args, **kwargs)

    return patch.object(Worker, "start", start)


def survives(kind: str, signum: int, nth: int) -> Callable[[Path], dict[str, float]]:
    """The process at the ``nth`` piece of work is ended: the pack is the same."""

    def check(place: Path) -> dict[str, float]:
        words = ("data", "prepare", *SETS[kind](place))
        with patch.object(decoding, "CHUNK_IMAGES", 10):
            assert command(place, *words).code == 0
            whole, began = content(place), time.monotonic()
            os.rename(place / "cache", place / "before")
            with struck(signum, nth):
                done = command(place, *words)
        assert done.code == 0, done.err
        assert content(place) == whole, "another pack"
        return {"seconds": time.monotonic() - began}

    return check


def dies_again(kind: str) -> Callable[[Path], None]:
    """Killed at the same work again: one line, and the next try goes on."""

    def check(place: Path) -> None:
        words = ("data", "prepare", *SETS[kind](place))
        with patch.object(decoding, "CHUNK_IMAGES", 10), patch.object(decoding, "num_cores", lambda: 1):
            assert command(place, *words).code == 0
            whole = content(place)
            os.rename(place / "cache", place / "before")
            with struck(signal.SIGKILL, 3, every=True):
                one_line(command(place, *words), 5, "data worker: ended", "rerun the same command to resume")
            assert not packs(place)
            assert command(place, *words).code == 0
        assert content(place) == whole

    return check


def hangs(kind: str, nth: int) -> Callable[[Path], dict[str, float]]:
    """The process is stopped: given up after the timeout, in a process of its own that could hang too."""

    def check(place: Path) -> dict[str, float]:
        words = ("data", "prepare", *SETS[kind](place))
        env, at = {"GANLAB_CACHE": str(place / "cache")}, place / "stopped"

        def before() -> None:
            decoding.CHUNK_IMAGES = 10
            struck(signal.SIGSTOP, nth, at=at).start()

        done = Forked(*words, cwd=place, env=env, before=before).wait(100)
        seconds = time.monotonic() - float(at.read_text())
        one_line(done, 5, "no response for 2 seconds", "GANLAB_DATA_TIMEOUT")
        assert not packs(place)
        with patch.object(decoding, "CHUNK_IMAGES", 10):
            again = command(place, *words)
        assert again.code == 0, again.err  # what was done is kept, and the rest is made
        return {"hung": seconds}

    return check


def cases(long: bool) -> list[Case]:
    ends = [(kind, s, n) for kind in SETS for s in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS)
            for n in ((1, 2) if s == signal.SIGKILL else (1,))
            if s == signal.SIGKILL or kind in ("folder", "ImageNet tar")]  # fmt: skip
    ends += [("folder", signal.SIGKILL, n) for n in (3, 4)] + [("LSUN", signal.SIGKILL, n) for n in (3, 5)]
    made = [
        Case(f"{signal.Signals(s).name} at work {n} of {kind}", survives(kind, s, n)) for kind, s, n in ends
    ]
    made += [Case(f"killed twice: {kind}", dies_again(kind)) for kind in ("folder", "ImageNet tar", "LSUN")]
    stops = [("folder", n) for n in (1, 2, 3, 4)] + [("ImageNet tar", n) for n in (1, 3)]
    stops += [("LSUN", n) for n in (1, 3, 4)] + [("STL-10", 1)]
    hung = [Case(f"SIGSTOP at work {n} of {kind}", hangs(kind, n)) for kind, n in stops]
    return [*made, *hung] if long else [made[1], made[8], hung[1]]


FIGURES = [
    Figure(
        "data-workers", "Data processes killed, crashed, stopped -> same pack, or one line", (9, 10), 27,
        cases,
        lambda found: f"a hang told after {max((n['hung'] for n in found if 'hung' in n), default=0):.1f} s "
        f"at most, at a limit of {TIMEOUT:g} s",
    ),
]  # fmt: skip
