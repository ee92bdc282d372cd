"""Malformed words and values, made from the keys and the schema that there are: one line, nothing written."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import yaml

from ganlab.cli.commands import COMMANDS
from ganlab.config import compose
from ganlab.config.check import all_keys, alternatives
from ganlab.config.files import NAMED, groups
from ganlab.config.targets import arguments, is_node, resolve
from ganlab.schema import Range, fits

from .base import LINE, Case, Done, Failed, Figure, Numbers, run_here

MAX_S = 3.0  # CPU seconds that one mistake may take
MAX_MB = 500  # that the process may grow by at one mistake
SIZE = 60  # mistakes of a case
TEXTS = ("run_dir", "resume", "path", "weights", "device", "setting", "sha256", "name")  # any text


class Point(NamedTuple):
    """One mistake. ``where``: a regex that an error line begins with; ``fix``: of what it says besides.

    meant: the word that was misspelt, to be suggested; 9 of 10 must be.
    """

    words: list[str]
    where: str
    fix: str = ""
    meant: str = ""


PARTS = (
    ["normalization=[sn,gp]"],
    [
        "architecture=resnet",
        "architecture.head=ac",
        "class_loss=acgan",
        "loss=hinge",
        "normalization=[orthonormal]",
    ],
    ["+experiment=sngan_cifar", "normalization=[wn,snr]", "metric=[ms_ssim,precision_recall]"],
)


def trees() -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Command lines and the trees they make."""
    for words in PARTS:
        yield words, compose.compose(words).tree


def misspelt(word: str, how: str, draw: random.Random) -> str:
    """One letter dropped, doubled, or swapped with its neighbour, at a random place."""
    at = draw.randrange(max(len(word) - (how == "swap"), 1))
    if how == "drop":
        return word[:at] + word[at + 1 :]
    if how == "double":
        return word[: at + 1] + word[at:]
    return word[:at] + word[at : at + 2][::-1] + word[at + 2 :]


def typos() -> Iterator[Point]:
    """Every key, group, option and command, misspelt three ways."""
    draw, seen = random.Random(5), set[str]()

    def three(word: str, known: set[str]) -> Iterator[str]:
        for how in ("drop", "swap", "double"):
            for _ in range(9):
                if (typo := misspelt(word, how, draw)) and typo not in known:
                    yield typo
                    break

    for words, tree in trees():
        keys = list(dict.fromkeys(all_keys(tree)))
        for key in keys:
            parent, dot, last = key.rpartition(".")
            if key in seen or parent in ("normalization", "metric.scores"):
                continue  # a new name there is a new part, whose value is wrong, not its name
            seen.add(key)
            for typo in three(last, {k.rpartition(".")[2] for k in keys} | {*groups([])}):
                named = parent + dot + typo
                yield Point(["train", *words, f"{named}=1"], rf"{named}:", meant=key)
    known = groups([])
    for group, options in known.items():
        if "/" in group:
            continue
        key = next((k for k, folder in NAMED.items() if folder == group), group)
        plus = "+" if group == "experiment" else ""
        for option in options:
            for typo in three(option, {*options, ""}) if len(option) > 1 else ():
                yield Point(["train", f"{plus}{key}={typo}"], rf"{key}:", meant=option)
        if group not in ("protocol", "extractor"):
            for typo in three(group, {*known}):
                yield Point(["train", f"{plus}{typo}={options[0]}"], rf"{typo}:", meant=group)
    for command in COMMANDS:
        for typo in three(command, {*COMMANDS}):
            yield Point([typo], rf"{typo}:", meant=command)
    for command in ("sample", "sweep", "status"):
        own = COMMANDS[command].keys
        for key in own:
            for typo in three(key, {*own, "n"}) if len(key) > 2 else ():
                more = {"sample": ["run"], "sweep": ["grid=sngan_fig4", "dry_run=true"]}.get(command, [])
                more = [w for w in more if not w.startswith(f"{key}=")]
                yield Point([command, *more, f"{typo}=1"], rf"{typo}:|grid:", meant=key)


def fields() -> Iterator[Point]:
    """Every field of the schema: below and above its range, of a wrong type, null, NaN, infinite, huge."""
    seen = set[str]()
    for words, tree in trees():
        for key, wanted in leaves(tree):
            for value in () if key in seen else value_mistakes(wanted, key):
                yield Point(
                    ["train", *words, f"{key}={value}"], rf"{key}(\.\d+)?:", r"is not|unknown key|_target_"
                )
            seen.add(key)


def leaves(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and annotation of every plain argument of a tree's classes."""
    for key, (wanted, _) in arguments(resolve(node["_target_"]), bool(node.get("_partial_"))).items():
        here, value = f"{where}{key}", node.get(key)
        if is_node(value):
            yield from leaves(value, f"{here}.")
        elif isinstance(value, dict):
            for name, part in value.items():
                if is_node(part):
                    yield from leaves(part, f"{here}.{name}.")
        elif where or key not in groups([]):
            yield here, wanted


def value_mistakes(wanted: Any, key: str) -> list[str]:
    """Values that a field must refuse, as one would write them."""
    values = []
    options = alternatives(wanted)
    plain = [o for o in options if o in (int, float, str, bool) or get_origin(o) in (Literal, list, tuple)]
    if not plain:
        return []
    for mark in marks(wanted):
        for bound, away in ((mark.ge, -1), (mark.gt, 0), (mark.le, 1), (mark.lt, 0)):
            if bound is not None and abs(bound) != float("inf"):
                values.append(repr(type(bound)(bound + away)))
    values += ["abc", "null", "nan", "inf", "-inf", "[1,2,3,4,5,6,7]", "{a:1}", "true", "-1", "1.5", "''"]
    if int in options and float not in options and str not in options:
        values.append(str(10**30))
    return [v for v in dict.fromkeys(values) if not allowed(v, wanted, key)]


def allowed(text: str, wanted: Any, key: str) -> bool:
    """Whether the schema takes a value; numbers without bounds in Python have torch's."""
    value = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}.get(text, yaml.safe_load(text))
    if key.rpartition(".")[2] in TEXTS:
        return True
    if key.startswith("optimizer.") and isinstance(value, float | int) and not isinstance(value, bool):
        return True  # torch's own rules: a case of its own
    return bool(fits(value, wanted))


def marks(wanted: Any) -> Iterator[Range]:
    """The bounds in an annotation."""
    if get_origin(wanted) is Annotated:
        yield from (m for m in get_args(wanted)[1:] if isinstance(m, Range))
    for inner in get_args(wanted):
        if get_origin(wanted) is not Literal and get_origin(inner):
            yield from marks(inner)


@contextlib.contextmanager
def no_training() -> Iterator[None]:
    """Inside, a run that would begin ends with code 99; nothing is downloaded."""
    from ganlab.training import trainer

    def begin(*_: object) -> None:
        raise SystemExit(99)

    run, offline = trainer.Run, os.environ.get("GANLAB_OFFLINE")
    trainer.Run = begin  # type: ignore[assignment, misc]
    os.environ["GANLAB_OFFLINE"] = "1"
    try:
        yield
    finally:
        trainer.Run = run  # type: ignore[misc]
        os.environ.pop("GANLAB_OFFLINE")
        if offline is not None:
            os.environ["GANLAB_OFFLINE"] = offline


def fault_of(point: Point, done: Done) -> str | None:
    """What is wrong with an answer, or None."""
    lines = done.err.splitlines()
    errors = [line.removeprefix("ganlab: error: ") for line in lines if line.startswith("ganlab: error: ")]
    if "Traceback" in done.err + done.out:
        return "a traceback"
    if done.code != 2 or not errors or len(errors) != len(lines):
        return f"code {done.code}: {done.err[:200]!r}"
    if any(len(line) > LINE for line in lines):
        return "a line is too long"
    matches = [line for line in errors if re.match(point.where, line)]
    if not any(re.search(point.fix, line) for line in matches):
        return f"no line has {point.where!r} and {point.fix!r}: {errors[0][:200]}"
    return None


def check(points: Sequence[Point], place: Path) -> Numbers:
    """All these mistakes, one after the other."""
    faults, seconds, peak, right = list[str](), list[float](), 0.0, 0
    with no_training():
        run_here("train", "stepz=1")  # imports are no part of a mistake's time
        for point in points:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            done = run_here(*point.words)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            seconds.append(done.seconds)
            peak = max(peak, grown)
            fault = fault_of(point, done)
            if fault is None and (files := [p.name for p in place.iterdir()]):
                fault = f"left {files} behind"
            if fault is None and (done.seconds > MAX_S or grown > MAX_MB):
                fault = f"took {done.seconds:.1f} s, {grown:.0f} MB"
            if fault:
                faults.append(f"{' '.join(point.words)}: {fault}")
            right += bool(point.meant) and f"did you mean '{point.meant}'?" in done.err
    meant = sum(bool(point.meant) for point in points)
    if right < 0.9 * meant:
        faults.append(f"{right} of {meant} suggestions are right")
    if faults:
        raise Failed(len(faults), "; ".join(faults[:20]))
    return {"meant": meant, "right": right, "slowest": max(seconds), "mb": peak}


def cases() -> list[Case]:
    families: dict[str, Callable[[], Iterator[Point]]] = {"misspelt": typos, "fields": fields}
    collected = []
    for name, family in families.items():
        points = list(family())[:: 3 if name == "fields" else 1]
        for i in range(0, len(points), SIZE):
            part = points[i : i + SIZE]
            collected.append(
                Case(f"{name} {i + 1}-{i + len(part)}", functools.partial(check, part), len(part))
            )
    return collected


def summary(numbers: Sequence[Numbers]) -> str:
    meant, right = (sum(n[key] for n in numbers) for key in ("meant", "right"))
    return f"right suggestion for {right / max(meant, 1):.0%} of misspelt words"


FIGURES = [
    Figure("config", "Malformed configs and words: one line with the fix, nothing written", cases, summary)
]
