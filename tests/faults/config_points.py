"""Malformed words and values, made from the keys and the schema that there are, and what must be told."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import yaml

from ganlab.cli.commands import COMMANDS
from ganlab.config import compose
from ganlab.config.check import all_keys, alternatives
from ganlab.config.files import NAMED, groups
from ganlab.config.targets import arguments, is_node, resolve
from ganlab.schema import Range, fits


class Point(NamedTuple):
    """One mistake. ``where``: a regex of the place that a line begins with; ``fix``: of what it says besides.

    meant: the word that was misspelt, to be suggested; counted, not demanded. codes: exit codes that are
    right. files: path -> content, written before.
    """

    name: str
    words: list[str]
    where: str
    fix: str = ""
    meant: str = ""
    codes: tuple[int, ...] = (2,)
    files: Mapping[str, bytes] = {}


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


def misspelt(word: str, how: str, rng: random.Random) -> str:
    """One letter dropped, doubled, or swapped with its neighbour, at a random place."""
    at = rng.randrange(max(len(word) - (how == "swap"), 1))
    if how == "drop":
        return word[:at] + word[at + 1 :]
    if how == "double":
        return word[: at + 1] + word[at:]
    return word[:at] + word[at : at + 2][::-1] + word[at + 2 :]


def typos() -> Iterator[Point]:
    """Every key, group, option and command, misspelt three ways."""
    rng, seen = random.Random(5), set[str]()

    def three(word: str, known: set[str]) -> Iterator[str]:
        for how in ("drop", "swap", "double"):
            for _ in range(9):
                if (wrong := misspelt(word, how, rng)) and wrong not in known:
                    yield wrong
                    break

    for words, tree in trees():
        keys = list(dict.fromkeys(all_keys(tree)))
        for key in keys:
            parent, dot, last = key.rpartition(".")
            if key in seen or parent in ("normalization", "metric.scores"):
                continue  # a new name there is a new part, whose value is wrong, not its name
            seen.add(key)
            for wrong in three(last, {k.rpartition(".")[2] for k in keys} | {*groups([])}):
                named = parent + dot + wrong
                yield Point(f"key {named}", ["train", *words, f"{named}=1"], rf"{named}:", meant=key)
    known = groups([])
    for group, options in known.items():
        if "/" in group:
            continue
        key = next((k for k, folder in NAMED.items() if folder == group), group)
        plus = "+" if group == "experiment" else ""
        for option in options:
            for wrong in three(option, {*options, ""}) if len(option) > 1 else ():
                yield Point(f"{key}={wrong}", ["train", f"{plus}{key}={wrong}"], rf"{key}:", meant=option)
        if group not in ("protocol", "extractor"):
            for wrong in three(group, {*known}):
                words = ["train", f"{plus}{wrong}={options[0]}"]
                yield Point(f"group {wrong}", words, rf"{wrong}:", meant=group)
    for command in COMMANDS:
        for wrong in three(command, {*COMMANDS}):
            yield Point(f"command {wrong}", [wrong], rf"{wrong}:", meant=command)
    for command in ("sample", "sweep", "status"):
        own = COMMANDS[command].keys
        for key in own:
            for wrong in three(key, {*own, "n"}) if len(key) > 2 else ():
                more = {"sample": ["run"], "sweep": ["grid=sngan_fig4", "dry_run=true"]}.get(command, [])
                more = [w for w in more if not w.startswith(f"{key}=")]
                yield Point(
                    f"{command} {wrong}", [command, *more, f"{wrong}=1"], rf"{wrong}:|grid:", meant=key
                )


def fields() -> Iterator[Point]:
    """Every field of the schema: below and above its range, of a wrong type, null, NaN, infinite, huge."""
    seen = set[str]()
    for words, tree in trees():
        for key, wanted in leaves(tree):
            if key in seen:
                continue
            seen.add(key)
            for value in value_mistakes(wanted, key):
                where = rf"{key}(\.\d+)?:"
                yield Point(
                    f"{key}={value}"[:80],
                    ["train", *words, f"{key}={value}"],
                    where,
                    r"is not|unknown key|_target_",
                )


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
    found = []
    options = alternatives(wanted)
    plain = [o for o in options if o in (int, float, str, bool) or get_origin(o) in (Literal, list, tuple)]
    if not plain:
        return []
    for mark in marks(wanted):
        for bound, away in ((mark.ge, -1), (mark.gt, 0), (mark.le, 1), (mark.lt, 0)):
            if bound is not None and abs(bound) != float("inf"):
                found.append(repr(type(bound)(bound + away)))
    found += ["abc", "null", "nan", "inf", "-inf", "[1,2,3,4,5,6,7]", "{a:1}", "true", "-1", "1.5", "''"]
    if int in options and float not in options and str not in options:
        found.append(str(10**30))
    return [v for v in dict.fromkeys(found) if not allowed(v, wanted, key)]


def allowed(text: str, wanted: Any, key: str) -> bool:
    """Whether the schema takes a value; numbers without bounds in Python have torch's."""
    value = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}.get(text, yaml.safe_load(text))
    if key.rpartition(".")[2] in (
        "run_dir",
        "resume",
        "path",
        "weights",
        "device",
        "setting",
        "sha256",
        "name",
    ):
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
