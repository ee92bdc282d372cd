"""Random sets: the ``random`` of a grid's block, whose members are drawn the same on every machine. No torch.

::

    random:
      n: 200                                       # members, unless n= says another number
      seed: 0                                      # of the drawing, unless seed= does
      choices:                                     # drawn uniformly, each for itself
        architecture.depth: [4, 8, 12, 20]         # a list: values of this key
        norm:                                      # labels, each with its overrides, for all cells alike or
          none: normalization=none                 # by the labels of one axis of the block
          norm: {gan: normalization=bn, wgan-gp: normalization=ln}

A member is drawn by hashes of (seed, turn, key) alone: no library's generator can move it, and the first 12
of 200 are the 12 of n=12. What was drawn before is drawn anew, so all members differ: two equal ones would be
one run made twice.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ganlab.errors import ConfigError, Mistake, suggest

DRAW = "draw"  # the axis whose labels are the members: a000, a001, ...
KEYS = ("n", "seed", "choices")
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_WORD = re.compile(r"\d{1,9}")
ByLabel = dict[str, list[str]]  # label of an axis -> overrides; "": for every cell


@dataclass(frozen=True)
class Member:
    """One of a random set: its label, what was chosen for each key, and the overrides by axis label."""

    label: str
    number: int
    chosen: dict[str, str]
    overrides: list[ByLabel]

    def words(self, labels: Sequence[str]) -> list[str]:
        """The overrides of its cell with these axis labels; the run's seed is the member's number."""
        found = [word for one in self.overrides for at in ("", *labels) for word in one.get(at, [])]
        return [*found, f"seed={self.number}"]


@dataclass(frozen=True)
class RandomSet:
    """What ``n`` members are drawn from: key -> label -> overrides. ``own_seed``: the file's."""

    choices: dict[str, dict[str, ByLabel]]
    n: int
    seed: int = 0
    own_seed: int = 0

    @property
    def size(self) -> int:
        """How many different members there are."""
        return math.prod(len(labels) for labels in self.choices.values())

    def members(self) -> Iterator[Member]:
        """The first ``n`` different draws. ``n`` is at most ``size``."""
        seen: set[tuple[str, ...]] = set()
        turn = 0
        while len(seen) < self.n:
            chosen = {key: _drawn(self.seed, turn, key, list(of)) for key, of in self.choices.items()}
            turn += 1
            if (member := tuple(chosen.values())) not in seen:
                number = len(seen)
                seen.add(member)
                overrides = [self.choices[key][label] for key, label in chosen.items()]
                yield Member(f"a{number:03d}", number, chosen, overrides)

    def asked(self, key: str, text: str) -> RandomSet:
        """With another ``n`` or ``seed``, as written. Raises ConfigError."""
        value = int(text) if _WORD.fullmatch(text) else -1
        if key == "seed":
            if value < 0:
                what = f"{text[:40]!r} is no whole number from 0 on"
                raise ConfigError(key, what, "it draws the set: write seed=0; a run's own seed is its number")
            return replace(self, seed=value)
        if not 1 <= value <= self.size:
            what = f"{text[:40]!r} is no number from 1 to {self.size:,}, which is all there are"
            raise ConfigError(key, what, f"write {key}={min(self.n, self.size)}")
        return replace(self, n=value)

    def record(self) -> dict[str, int]:
        """For ``grid.json``."""
        return {"n": self.n, "seed": self.seed, "of": self.size}


def _drawn(seed: int, turn: int, key: str, labels: Sequence[str]) -> str:
    """One of ``labels``, uniformly up to 2**-60, by SHA-256 of (seed, turn, key)."""
    digest = hashlib.sha256(f"{seed}/{turn}/{key}".encode()).digest()
    return labels[int.from_bytes(digest[:8], "big") % len(labels)]


# ---- reading


def read(given: Any, axes: Mapping[str, Mapping[str, list[str]]], where: str) -> RandomSet:
    """``random`` of a block with ``axes``. Raises ConfigError with all mistakes."""
    if not isinstance(given, dict):
        raise ConfigError(where, "is no mapping", "write n: 200, seed: 0 and choices: {key: [a, b]}")
    others = [str(key) for key in given if key not in KEYS]
    wrong = [Mistake(f"{where}.{key}", "is no key of it", suggest(key, KEYS)) for key in others]
    taken = [axis for axis in ("n", "seed", DRAW) if axis in axes]
    wrong += [Mistake(where, f"stands beside an axis {t!r}", "call the axis otherwise") for t in taken]
    listed = given.get("choices")
    choices: dict[str, dict[str, ByLabel]] = {}
    if not isinstance(listed, dict) or not listed:
        wrong.append(Mistake(f"{where}.choices", "is no mapping", "write choices: {key: [a, b]}"))
        listed = {}
    for key, values in listed.items():
        try:
            choices[str(key)] = _labels(str(key), values, axes, f"{where}.choices.{key}")
        except ConfigError as error:
            wrong += error.mistakes
    found = RandomSet(choices, 1)
    for key in ("n", "seed") if not wrong else ():
        try:
            found = found.asked(key, str(given.get(key, {"n": "", "seed": 0}[key])))
        except ConfigError as error:
            wrong += [m._replace(where=f"{where}.{m.where}") for m in error.mistakes]
    if wrong:
        raise ConfigError(wrong)
    return replace(found, own_seed=found.seed)


def _labels(
    key: str, values: Any, axes: Mapping[str, Mapping[str, list[str]]], where: str
) -> dict[str, ByLabel]:
    """Label -> overrides of one key."""
    if isinstance(values, list) and values and all(isinstance(v, str | int | float) for v in values):
        found = {_plain(v): {"": [f"{key}={_plain(v)}"]} for v in values}
        if len(found) < len(values):
            raise ConfigError(where, "holds a value twice", "keep one")
        return found
    if isinstance(values, dict) and values:
        return {str(label): _by_label(given, axes, f"{where}.{label}") for label, given in values.items()}
    raise ConfigError(where, "is neither a list of values nor labels with overrides", "write [a, b]")


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _by_label(given: Any, axes: Mapping[str, Mapping[str, list[str]]], where: str) -> ByLabel:
    """The overrides of a label: the same for all cells, or told by the labels of one axis."""
    if not isinstance(given, dict):
        return {"": overrides(given, where)}
    named = {str(label) for label in given}
    axis = next((labels for labels in axes.values() if set(labels) == named), None)
    if axis is None:
        told = ["{" + ", ".join(f"{label}: ..." for label in labels) + "}" for labels in axes.values()]
        fix = f"write {' or '.join(told) or '[key=value, ...]'}"
        raise ConfigError(where, "does not name the labels of an axis, each once", fix)
    return {str(label): overrides(words, f"{where}.{label}") for label, words in given.items()}


def overrides(given: Any, where: str) -> list[str]:
    """``key=value`` words of a grid file. Raises ConfigError."""
    words = [given] if isinstance(given, str) else given
    if not isinstance(words, list) or not all(isinstance(w, str) and "=" in w for w in words):
        raise ConfigError(where, "is no list of key=value overrides", "write [key=value, ...]")
    if any(w.lstrip("+").startswith("run_dir=") for w in words):
        raise ConfigError(where, "sets run_dir", "leave it out: a grid's cells have folders of their own")
    return list(words)
