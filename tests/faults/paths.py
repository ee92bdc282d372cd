"""Odd names of folders and files, and places that are only read: it works, or one line says how."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .base import LINE, ROOT, Case, Figure, Forked, ganlab, tiny
from .config_fuzz import said
from .hostile import quick, trained

NAMES = {
    "a space": "a b",
    "equals": "a=b",
    "a comma": "a,b",
    "a newline": "a\nb",
    "a dash": "-a",
    "CJK": "生成器",
    "bytes": os.fsdecode(b"a\xffb"),
    "255 bytes": "x" * 255,
    "quotes": "a'b\"c",
    "dollars": "a$b${c}",
    "brackets": "[a]{b}",
    "a hash": "a#b%c",
}


def works(words: list[str], made: Path | None = None) -> None:
    """Code 0, or code 2 (3 for a path that is read) and one line."""
    with quick():
        done = said(words)
    lines = done.err.splitlines()
    assert "Traceback" not in done.err
    assert all(len(line) <= LINE for line in lines)
    assert done.code in (0, 2, 3), f"code {done.code}: {done.err[-200:]}"
    if done.code == 0:
        assert made is None or made.exists(), f"{made} is not there"
    else:
        errors = [line for line in lines if line.startswith("ganlab: error: ")]
        assert len(errors) == 1, done.err
        assert ";" in errors[0], errors[0]  # with a fix


def as_run_dir(name: str) -> Callable[[Path], None]:
    def check(place: Path) -> None:
        words = [
            w for w in tiny("steps=1", "save_every=0", "metric.protocol.is_n_fake=32") if "run_dir" not in w
        ]
        works([*words, f"run_dir={name}"], place / name / "result.json")

    return check


def as_data(name: str) -> Callable[[Path], None]:
    def check(place: Path) -> None:
        from PIL import Image

        for i in range(40):
            folder = place / name / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (i, 6 * i, 255 - i)).save(folder / f"{i}.png")
        words = [w for w in tiny("steps=1", "metric.protocol.is_n_fake=32") if not w.startswith("dataset")]
        works([*words, "dataset=folder", f"dataset.path={name}", "dataset.resolution=16"], place / "run")

    return check


def as_run(name: str) -> Callable[[Path], None]:
    """A run folder that was renamed: sampled, reported, checked; its checkpoint named to go on from."""

    def check(place: Path) -> None:
        trained(place).rename(place / name)
        for words in (
            ["sample", f"./{name}", "n=1"],
            ["report", f"./{name}", "out=out"],
            ["check", f"./{name}"],
        ):
            works(words)

    return check


def posix(place: Path) -> None:
    """In the C locale, without UTF-8 mode."""
    env = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = ganlab("train", "run_dir=生成器", "stepz=1", cwd=place, env=env)
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    assert "'steps'" in done.err


def readonly(place: Path) -> None:
    """Nothing is written beside the code or the configs."""

    def state(root: Path) -> set[tuple[str, float]]:
        found = (p for p in root.rglob("*") if "__pycache__" not in p.parts)
        return {(str(p), p.stat().st_mtime) for p in found}

    mine = place / "mine" / "loss"
    mine.mkdir(parents=True)
    (mine / "own.yaml").write_text("_target_: ganlab.methods.losses.Hinge\n")
    mine.chmod(0o555)
    mine.parent.chmod(0o555)
    roots = (ROOT / "ganlab", ROOT / "configs", mine.parent)
    before = [state(root) for root in roots]
    words = [w for w in tiny("steps=1", "metric.protocol.is_n_fake=32") if not w.startswith("loss")]
    done = Forked(*words, "loss=own", "--config-dir", "mine", cwd=place).wait(120)
    mine.parent.chmod(0o755)
    mine.chmod(0o755)
    assert done.code == 0, done.err
    assert [state(root) for root in roots] == before


def cases() -> list[Case]:
    found = [Case("nothing beside code and configs", readonly), Case("the POSIX locale", posix)]
    for name, text in NAMES.items():
        found.append(Case(f"run_dir: {name}", as_run_dir(text)))
        found.append(Case(f"a run's folder: {name}", as_run(text), 3))
        found.append(Case(f"dataset.path: {name}", as_data(text)))
    return found


FIGURES = [
    Figure(
        "paths",
        "Odd paths (=, newlines, CJK, \\xff, 255 bytes, C locale), read-only configs -> works or one line",
        (23, 24),
        40,
        cases,
    )
]
