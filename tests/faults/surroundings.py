"""Surroundings of containers and job scripts: closed streams, users without a home, little memory."""

from __future__ import annotations

import ctypes
import functools
import os
import pwd
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import Case, Done, Figure, Forked, environment, ganlab, one_line, tiny
from .launching import finish

STRANGER = 12345  # a uid that no one knows
CLOSED = {"stdout": (1,), "stderr": (2,), "all three": (0, 1, 2)}
COMMANDS: dict[str, tuple[int, list[str]]] = {  # beside a finished run: exit code, words
    "train": (0, tiny("metric=[is,fid]", "steps=4", "run_dir=other")),
    "a mistake": (2, ["train", "steps=x"]),
    "train --cfg": (0, ["train", "--cfg", "job"]),
    "train --help": (0, ["train", "--help"]),
    "evaluate": (0, ["evaluate", "run", "metric.protocol.seed=1"]),
    "sample": (0, ["sample", "run", "n=4", "out=pictures"]),
    "report": (0, ["report", "run", "out=page"]),
    "analyze": (0, ["analyze", "run", "analysis=singular_values", "out=figure"]),
    "data info": (0, ["data", "info", "digits"]),
    "data check": (0, ["data", "check", "digits"]),
    "status": (0, ["status", "."]),
    "check": (0, ["check", "run"]),
    "explain": (0, ["explain", "run"]),
    "doctor": (0, ["doctor"]),
}


def closed(numbers: tuple[int, ...]) -> None:
    """The process as one that began with these descriptors closed."""
    for number in numbers:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)


def unknown_user() -> None:
    """A user without a name, a home and the right to write but where all may; as ``docker run -u``."""
    os.environ.pop("HOME", None)
    os.environ.pop("GANLAB_CACHE", None)
    if os.geteuid():

        def nobody(uid: int) -> Any:
            raise KeyError(uid)

        pwd.getpwuid = nobody
        return
    libc = ctypes.CDLL(None)
    assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(STRANGER, STRANGER, STRANGER)
    os.setresuid(STRANGER, STRANGER, STRANGER)
    header, read_anywhere = (ctypes.c_uint32 * 2)(0x20080522, 0), 1 << 2  # CAP_DAC_READ_SEARCH: the packages
    assert libc.capset(header, (ctypes.c_uint32 * 6)(read_anywhere, read_anywhere)) == 0


def commands(before: Callable[[], object], place: Path, doctor: int = 0) -> None:
    """All commands, one after the other, in a folder that all may write to."""
    finish(place, "steps=4", "metric=[is]")
    for path in (place, *place.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    for name, (code, words) in (COMMANDS | {"doctor": (doctor, ["doctor"])}).items():
        done = Forked(*words, cwd=place, before=before).wait(120)
        assert done.code == code, f"{name}: exit code {done.code}, not {code}: {done.err[-300:]}"
        assert not list(place.rglob("crash.txt")), f"{name}: crash.txt"


def no_home(place: Path) -> None:
    """What can't do without a cache names the variable that chooses one; training only warns."""
    place.chmod(0o777)
    done = Forked(*tiny("metric=[is,fid]", "steps=4"), cwd=place, before=unknown_user).wait(120)
    assert done.code == 0, done.err[-300:]
    assert "not cached" in done.err
    assert "GANLAB_CACHE" in done.err
    (place / "photos").mkdir()
    picture(place / "photos" / "one.png")
    words = ("data", "prepare", "folder", "path=photos", "resolution=16")
    one_line(Forked(*words, cwd=place, before=unknown_user).wait(60), 5, "", "GANLAB_CACHE")
    one_line(Forked(*words[:3], "path=~no-such-user/x", cwd=place).wait(60), 3, "~no-such-user/x")


def picture(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16)).save(path)


def really(place: Path) -> None:
    """A real process from its first import on, with nothing but a folder that is no home."""
    env = {"HOME": "/dev/null", "GANLAB_CACHE": "", "XDG_CACHE_HOME": ""}
    done = ganlab(*tiny("metric=[is,fid]", "steps=4"), cwd=place, env=env, timeout=300)
    assert done.code == 0, done.err[-300:]
    assert "GANLAB_CACHE" in done.err


def limited(place: Path) -> None:
    """``ulimit -v``: the limit is what is told, not a bug, nor a batch that is too large."""

    def before() -> None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20),) * 2)

    words = tiny("batch_size=256", "architecture.width=1", "dataset.resolution=32", "d_steps=5")
    one_line(
        Forked(*words, cwd=place, before=before).wait(120), 5, "memory: ulimit -v limits the process to", ""
    )


def limited_imports(place: Path) -> None:
    """Not even torch can be loaded."""
    command = ["bash", "-c", f"ulimit -v 1000000; exec {sys.executable} -m ganlab train steps=1"]
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, check=False)
    one_line(
        Done(done.returncode, done.stdout, done.stderr, 0),
        5,
        "memory: ulimit -v limits the process to 1.02 GB",
    )


def cases() -> list[Case]:
    found = [
        Case(f"closed: {name}", functools.partial(commands, functools.partial(closed, n)), len(COMMANDS))
        for name, n in CLOSED.items()
    ]
    found += [
        Case("a user that no one knows", functools.partial(commands, unknown_user, doctor=5), len(COMMANDS)),
        Case("no home, no cache", no_home, 3),
        Case("little address space", limited),
    ]
    found += [Case("a home that is none, really", really), Case("too little for torch", limited_imports)]
    return found


FIGURES = [
    Figure("surroundings", "Closed streams, no home, little memory", (16, 17, 18), 61, cases),
]
