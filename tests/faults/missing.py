"""Packages and weights that are not there are missed at the start of a command, not hours later."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .base import Case, Figure, Forked, Numbers, one_line, tiny


class Absent:
    """An import system in which some packages are not installed."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self) -> None:
        for name in list(sys.modules):
            if self._is(name):
                del sys.modules[name]
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]

    def _is(self, name: str) -> bool:
        return any(name == n or name.startswith(f"{n}.") for n in self.names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if self._is(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def absent(package: str, words: Sequence[str], where: str, fix: str) -> Callable[[Path], Numbers | None]:
    """A command without one package: code 5, and nothing was begun."""

    def check(place: Path) -> Numbers:
        env = {"GANLAB_OFFLINE": "1", "GANLAB_CACHE": str(place / "cache")}
        done = Forked(*words, cwd=place, env=env, before=Absent(package)).wait(120)
        one_line(done, 5, where, fix)
        assert not (place / "run").exists(), "a run folder was made"
        return {"seconds": done.seconds}

    return check


def weights(word: str, content: bytes | None, where: str) -> Callable[[Path], Numbers | None]:
    """Weights that are not there, or are not weights."""

    def check(place: Path) -> None:
        if content is not None:
            (place / "weights.pth").write_bytes(content)
        env = {"GANLAB_OFFLINE": "1", "GANLAB_CACHE": str(place / "cache"), "TORCH_HOME": str(place / "hub")}
        done = Forked(*tiny(*word.split()), cwd=place, env=env, real_features=True).wait(120)
        one_line(done, 5, where)
        assert not (place / "run").exists(), "a run folder was made"

    return check


def board(place: Path) -> None:
    """Without TensorBoard a run says so once, and goes on."""
    words = tiny("steps=2", "metric=[is]")
    done = Forked(*words, cwd=place, before=Absent("tensorboard", "torch.utils.tensorboard")).wait(120)
    assert done.code == 0, done.err
    assert done.err.count("TensorBoard failed") == 1, done.err
    assert (place / "run" / "result.json").is_file()


def cases() -> list[Case]:
    found = [
        Case(
            "train without torchvision",
            absent("torchvision", tiny(), "torchvision", "pip install torchvision"),
        ),
        Case(
            "inception weights absent", weights("metric.extractor=inception", None, "metric.extractor=cifar")
        ),
        Case("train without TensorBoard", board),
    ]
    lsun = ["train", "dataset=lsun", "dataset.path=."]
    for package, words, named in (
        ("scipy", tiny("metric=[fid]"), "scipy"),
        ("sklearn", tiny(), "scikit-learn"),
        ("PIL", tiny(), "pillow"),
        ("safetensors", tiny(), "safetensors"),
        ("hydra", tiny(), "hydra-core"),
        ("matplotlib", ["report", "."], "matplotlib"),
        ("jinja2", ["report", "."], "jinja2"),
        ("matplotlib", ["analyze", ".", "analysis=scores"], "matplotlib"),
        ("scipy", ["evaluate", "."], "scipy"),
        ("PIL", ["sample", "."], "pillow"),
        ("torchvision", lsun, "torchvision"),
    ):
        name = f"{words[0]} without {package}" + (" (lsun)" if words is lsun else "")
        found.append(Case(name, absent(package, words, named, f"pip install {named}")))
    for word, content in (
        ("metric.weights=nowhere.pth", None),
        ("metric.weights=weights.pth", b""),
        ("metric.weights=weights.pth metric.progress=smoke", b"no weights"),
        ("metric.extractor=inception metric.weights=nowhere.pth", None),
        ("metric.extractor=inception metric.weights=weights.pth", b"\x80\x02."),
    ):
        found.append(Case(f"{word}: {content!r}", weights(word, content, "weights")))
    return found


FIGURES = [
    Figure(
        "missing",
        "Absent packages and weights -> missed at the start, with the line to install them",
        (54,),
        10,
        cases,
    )
]
