"""Random search: the ``random`` key of a grid's block, drawn identically on every machine. Imports no torch.

::

    random:
      n: 200                                       # members; n= on the command line overrides it
      seed: 0                                      # of the draw; seed= overrides it
      choices:                                     # drawn uniformly and independently
        architecture.depth: [4, 8, 12, 20]         # a list: values of this key
        norm:                                      # labels, each with overrides for all cells,
          none: normalization=none                 # or by the labels of one axis of the block
          norm: {gan: normalization=bn, wgan-gp: normalization=ln}

A member depends only on hashes of (seed, turn, key), not on any library's generator, and the first 12 of 200
are the 12 of n=12. Duplicates are drawn again, so all members differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ganlab.errors import ConfigError, Mistake, suggest

DRAW = "draw"  # the axis whose labels are the members: a000, a001, ...
KEYS = ("n", "seed", "choices")
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_NUMBER = re.compile(r"\d{1,9}")
T = TypeVar("T")
ByLabel = dict[str, list[str]]  # label of an axis -> overrides; "": for all cells


@dataclass(frozen=True)
class Member:
    """A member of a random set: its label, the label drawn for each key, and overrides by axis label."""

    label: str
    number: int
    chosen: dict[str, str]
    overrides: list[ByLabel]

    def cell_overrides(self, labels: Sequence[str]) -> list[str]:
        """The overrides of its cell with these axis labels; the run's seed is the member's number."""
        words = [word for part in self.overrides for at in ("", *labels) for word in part.get(at, [])]
        return [*words, f"seed={self.number}"]


@dataclass(frozen=True)
class RandomSet:
    """A set of ``n`` members drawn from ``choices``: key -> label -> overrides. ``own_seed``: the file's."""

    choices: dict[str, dict[str, ByLabel]]
    n: int
    seed: int = 0
    own_seed: int = 0

    @property
    def size(self) -> int:
        """Number of different members."""
        return math.prod(len(labels) for labels in self.choices.values())

    def members(self) -> Iterator[Member]:
        """The first ``n`` different draws; ``n`` is at most ``size``."""
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

    def with_setting(self, key: str, text: str) -> RandomSet:
        """The set with another ``n`` or ``seed``. Raises ConfigError."""
        value = int(text) if _NUMBER.fullmatch(text) else -1
        if key == "seed":
            if value < 0:
                what = f"{text[:40]!r} is not an integer of at least 0"
                fix = "write seed=0, the seed of the draw; each run's seed is its member's number"
                raise ConfigError(key, what, fix)
            return replace(self, seed=value)
        if not 1 <= value <= self.size:
            what = f"{text[:40]!r} is not an integer from 1 to {self.size:,}, the number of combinations"
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


@contextlib.contextmanager
def collecting(mistakes: list[Mistake]) -> Iterator[None]:
    """Inside, a ConfigError adds to ``mistakes`` instead of being raised."""
    try:
        yield
    except ConfigError as error:
        mistakes += error.mistakes


def read(content: Any, axes: Mapping[str, Mapping[str, list[str]]], where: str) -> RandomSet:
    """Parse ``random`` of a block with ``axes``. Raises ConfigError with all mistakes."""
    if not isinstance(content, dict):
        raise ConfigError(where, "must be a mapping", "write n: 200, seed: 0 and choices: {key: [a, b]}")
    unknown = [str(key) for key in content if key not in KEYS]
    mistakes = [Mistake(f"{where}.{key}", "unknown key", suggest(key, KEYS)) for key in unknown]
    reserved = [axis for axis in ("n", "seed", DRAW) if axis in axes]
    mistakes += [Mistake(where, f"conflicts with axis {axis!r}", "rename the axis") for axis in reserved]
    entries = content.get("choices")
    choices: dict[str, dict[str, ByLabel]] = {}
    if not isinstance(entries, dict) or not entries:
        mistakes.append(Mistake(f"{where}.choices", "must be a mapping", "write choices: {key: [a, b]}"))
        entries = {}
    for key, values in entries.items():
        with collecting(mistakes):
            choices[str(key)] = _read_labels(str(key), values, axes, f"{where}.choices.{key}")
    random_set = RandomSet(choices, 1)
    for key in ("n", "seed") if not mistakes else ():
        try:
            random_set = random_set.with_setting(key, str(content.get(key, {"n": "", "seed": 0}[key])))
        except ConfigError as error:
            mistakes += [m._replace(where=f"{where}.{m.where}") for m in error.mistakes]
    if mistakes:
        raise ConfigError(mistakes)
    return replace(random_set, own_seed=random_set.seed)


def _read_labels(
    key: str, values: Any, axes: Mapping[str, Mapping[str, list[str]]], where: str
) -> dict[str, ByLabel]:
    """Label -> overrides of one key."""

    def of_value(value: object) -> tuple[str, ByLabel]:
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return text, {"": [f"{key}={text}"]}

    return read_labels(values, where, of_value, lambda words, at: _by_label(words, axes, at))


def read_labels(
    values: Any, where: str, of_value: Callable[[Any], tuple[str, T]], of_words: Callable[[Any, str], T]
) -> dict[str, T]:
    """Label -> overrides, from a list of values or a mapping from labels. Raises ConfigError."""
    if isinstance(values, list) and values and all(isinstance(v, str | int | float) for v in values):
        labels = dict(map(of_value, values))
        if len(labels) < len(values):
            raise ConfigError(where, "repeats a value", "keep one")
        return labels
    if isinstance(values, dict) and values:
        return {str(label): of_words(words, f"{where}.{label}") for label, words in values.items()}
    what = "must be a list of values, or a mapping from labels to overrides"
    raise ConfigError(where, what, "write [a, b]")


def _by_label(content: Any, axes: Mapping[str, Mapping[str, list[str]]], where: str) -> ByLabel:
    """The overrides of a label: the same for all cells, or by the labels of one axis."""
    if not isinstance(content, dict):
        return {"": overrides(content, where)}
    keys = {str(label) for label in content}
    if not any(set(labels) == keys for labels in axes.values()):
        forms = ["{" + ", ".join(f"{label}: ..." for label in labels) + "}" for labels in axes.values()]
        fix = f"write {' or '.join(forms) or '[key=value, ...]'}"
        raise ConfigError(where, "must have exactly the labels of one axis as keys", fix)
    return {str(label): overrides(words, f"{where}.{label}") for label, words in content.items()}


def overrides(content: Any, where: str) -> list[str]:
    """``key=value`` overrides of a grid file. Raises ConfigError."""
    words = [content] if isinstance(content, str) else content
    if not isinstance(words, list) or not all(
        isinstance(w, str) and ("=" in w or w[:1] == "~") for w in words
    ):
        raise ConfigError(where, "must be a list of key=value overrides", "write [key=value, ...]")
    if any(w.lstrip("+").startswith("run_dir=") for w in words):
        raise ConfigError(where, "sets run_dir", "leave it out: each cell of a grid has its own folder")
    return list(words)
