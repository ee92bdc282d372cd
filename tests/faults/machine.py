"""Odd machines: closed streams, no home, little memory, odd names of folders, packages that are absent."""

from __future__ import annotations

import ctypes
import functools
import os
import pwd
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .base import LINE, ROOT, Case, Done, Figure, Forked, environment, ganlab, one_line, tiny
from .runs import finish

STRANGER = 12345  # a uid that no one knows
CLOSED = {"stdout": (1,), "stderr": (2,), "all three": (0, 1, 2)}
COMMANDS: dict[str, tuple[int, list[str]]] = {  # beside a finished run: exit code, words
    "train": (0, tiny("metric=[is,fid]", "steps=4", "run_dir=other")),
    "a mistake": (2, ["train", "steps=x"]),
    "train --cfg": (0, ["train", "--cfg", "job"]),
    "evaluate": (0, ["evaluate", "run", "metric.protocol.seed=1"]),
    "sample": (0, ["sample", "run", "n=4", "out=pictures"]),
    "report": (0, ["report", "run", "out=page"]),
    "analyze": (0, ["analyze", "run", "analysis=singular_values", "out=figure"]),
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


def commands(before: Callable[[], object], doctor: int, place: Path) -> None:
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
    images(place / "photos")
    words = ("data", "prepare", "folder", "path=photos", "resolution=16")
    one_line(Forked(*words, cwd=place, before=unknown_user).wait(60), 5, "", "GANLAB_CACHE")


def images(folder: Path) -> None:
    from PIL import Image

    for i in range(40):
        path = folder / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i, 6 * i, 255 - i)).save(path)


def limited(place: Path) -> None:
    """``ulimit -v``: the message names the limit, not a bug, nor a batch that is too large."""

    def before() -> None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20),) * 2)

    words = tiny("batch_size=256", "architecture.width=1", "dataset.resolution=32", "d_steps=5")
    done = Forked(*words, cwd=place, before=before).wait(120)
    one_line(done, 5, "memory: ulimit -v limits the process to")
    command = ["bash", "-c", f"ulimit -v 1000000; exec {sys.executable} -m ganlab train steps=1"]
    end = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, check=False)
    one_line(Done(end.returncode, end.stdout, end.stderr, 0), 5, "memory: ulimit -v .* 1.02 GB")


# ---- names

NAMES = {
    "a space": "a b",
    "equals": "a=b",
    "a comma": "a,b",
    "a newline": "a\nb",
    "a dash": "-a",
    "CJK": "生成器",
    "bytes": os.fsdecode(b"a\xffb"),
    "255 bytes": "x" * 255,
    "quotes and dollars": "a'b\"c$d${e}",
    "brackets and a hash": "[a]{b}#c%d",
}


def odd_name(name: str, place: Path) -> None:
    """A run_dir, a run's folder and a data set of this name: code 0, or one line with a fix."""
    images(place / "data" / name)
    brief = ("steps=1", "metric.protocol.is_n_fake=32")
    run_dir = [word for word in tiny(*brief) if not word.startswith("run_dir")]
    finish(place, *brief)
    (place / "run").rename(place / f"{name[:250]}-run")
    renamed = f"./{name[:250]}-run"
    data = [word for word in tiny(*brief, "run_dir=other") if not word.startswith("dataset")]
    for words, made in (
        ([*run_dir, f"run_dir={name}"], place / name / "result.json"),
        ([*data, "dataset=folder", f"dataset.path=data/{name}", "dataset.resolution=16"], place / "other"),
        (["sample", renamed, "n=1"], None),
        (["report", renamed, "out=out"], place / "out"),
        (["check", renamed], None),
    ):
        done = Forked(*words, cwd=place).wait(120)
        assert "Traceback" not in done.err
        assert all(len(line) <= LINE for line in done.err.splitlines())
        if done.code == 0:
            assert made is None or made.exists(), f"{made} is not there"
        else:
            assert done.code in (2, 3), f"code {done.code}: {done.err[-200:]}"
            one_line(done, done.code, "; ")


def posix(place: Path) -> None:
    """In the C locale, without UTF-8 mode."""
    env = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    one_line(ganlab("train", "run_dir=生成器", "stepz=1", cwd=place, env=env), 2, "'steps'")


def read_only(place: Path) -> None:
    """Nothing is written beside the code or the configs."""

    def state(root: Path) -> set[tuple[str, float]]:
        paths = (p for p in root.rglob("*") if "__pycache__" not in p.parts)
        return {(str(p), p.stat().st_mtime) for p in paths}

    roots = (ROOT / "ganlab", ROOT / "configs")
    before = [state(root) for root in roots]
    finish(place, "steps=1", "metric.protocol.is_n_fake=32")
    assert [state(root) for root in roots] == before


# ---- packages


class Absent:
    """An import system in which some packages are not installed."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self) -> None:
        for name in list(sys.modules):
            if self._is_absent(name):
                del sys.modules[name]
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]

    def _is_absent(self, name: str) -> bool:
        return any(name == n or name.startswith(f"{n}.") for n in self.names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if self._is_absent(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def absent(package: str, words: Sequence[str], pip_name: str, place: Path) -> None:
    """A command without one package: code 5, and nothing was begun."""
    env = {"GANLAB_OFFLINE": "1", "GANLAB_CACHE": str(place / "cache")}
    done = Forked(*words, cwd=place, env=env, before=Absent(package)).wait(120)
    one_line(done, 5, pip_name, f"pip install {pip_name}")
    assert not (place / "run").exists(), "a run folder was made"


def weights(word: str, content: bytes | None, where: str, place: Path) -> None:
    """Weights that are not there, or are not weights."""
    if content is not None:
        (place / "weights.pth").write_bytes(content)
    env = {"GANLAB_OFFLINE": "1", "GANLAB_CACHE": str(place / "cache"), "TORCH_HOME": str(place / "hub")}
    done = Forked(*tiny(*word.split()), cwd=place, env=env, real_features=True).wait(120)
    one_line(done, 5, where)
    assert not (place / "run").exists(), "a run folder was made"


def cases() -> list[Case]:
    def case(name: str, check: Callable[..., None], *args: Any, n: int = 1) -> Case:
        return Case(name, functools.partial(check, *args), n)

    collected = [
        *(
            case(f"closed: {name}", commands, functools.partial(closed, numbers), 0, n=len(COMMANDS))
            for name, numbers in CLOSED.items()
        ),
        case("a user that no one knows", commands, unknown_user, 5, n=len(COMMANDS)),
        case("no home, no cache", no_home),
        case("little address space", limited),
        case("the POSIX locale", posix),
        case("nothing beside code and configs", read_only),
        *(case(f"folders named with {name}", odd_name, text, n=5) for name, text in NAMES.items()),
    ]
    for package, words, pip_name in (
        ("torchvision", tiny(), "torchvision"),
        ("scipy", tiny("metric=[fid]"), "scipy"),
        ("sklearn", tiny(), "scikit-learn"),
        ("PIL", tiny(), "pillow"),
        ("safetensors", tiny(), "safetensors"),
        ("hydra", tiny(), "hydra-core"),
        ("matplotlib", ["report", "."], "matplotlib"),
        ("jinja2", ["report", "."], "jinja2"),
    ):
        collected.append(case(f"{words[0]} without {package}", absent, package, words, pip_name))
    for word, content, where in (
        ("metric.extractor=inception", None, "metric.extractor=cifar"),
        ("metric.weights=nowhere.pth", None, "weights"),
        ("metric.weights=weights.pth metric.progress=smoke", b"no weights", "weights"),
        ("metric.extractor=inception metric.weights=weights.pth", b"\x80\x02.", "weights"),
    ):
        collected.append(case(f"{word}: {content!r}", weights, word, content, where))
    return collected


FIGURES = [
    Figure("machine", "Odd machines, names and absent packages: it works, or one line says how", cases)
]
