"""What can go wrong for a user and the exit code that says so; near misses of names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import NamedTuple

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text of someone else's for a screen: no escapes and no signs that turn lines around; lines stay."""
    return _CONTROL.sub("?", text)


class Mistake(NamedTuple):
    """One thing to mend: ``where`` (a config key or a file), ``what`` is wrong, and the ``fix``."""

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" + (f"; {self.fix}" if self.fix else "")
        return " ".join(text.split())


class GanlabError(Exception):
    """A failure that the user can mend. Printed as one line per mistake, without a traceback.

    agreed: all ranks of the run raise it, and only one of them is not ``silent``.
    """

    code = 1
    agreed = False
    silent = False

    def __init__(self, where: str | Iterable[Mistake], what: str = "", fix: str = "") -> None:
        self.mistakes = [Mistake(where, what, fix)] if isinstance(where, str) else list(where)
        super().__init__("\n".join(str(m) for m in self.mistakes))


class ConfigError(GanlabError):
    """The config or the command line is wrong (exit code 2)."""

    code = 2


class DataError(GanlabError):
    """A dataset or another input file is missing, damaged or unsuitable (exit code 3)."""

    code = 3


class CheckpointError(GanlabError):
    """No usable checkpoint, or one that does not fit the run (exit code 4)."""

    code = 4


class EnvError(GanlabError):
    """Device, dependency, disk, permission, network or weights (exit code 5)."""

    code = 5


class Diverged(GanlabError):
    """Training left the finite numbers (exit code 6)."""

    code = 6


class RunInUse(GanlabError):
    """Another live process owns the run folder (exit code 7)."""

    code = 7


class SweepFailed(GanlabError):
    """A sweep ended, and some of its jobs failed (exit code 8)."""

    code = 8


class Stopped(GanlabError):
    """A signal asked the run to stop (exit code 128 + N)."""

    def __init__(self, signum: int, what: str = "", fix: str = "") -> None:
        import signal

        self.signum = signum
        self.code = 128 + signum
        super().__init__(signal.Signals(signum).name, what or "stopped", fix)


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that ``word`` most likely is a misspelling of, or None."""
    close = difflib.get_close_matches(word, set(map(str, names)), n=12, cutoff=0.5)
    scored = [(_edits(word, n), -difflib.SequenceMatcher(None, word, n).ratio(), n) for n in close]
    best = min(scored, default=None)
    return best[2] if best and best[0] <= max(1, (len(word) + 1) // 3) else None


def _edits(a: str, b: str) -> int:
    """Letters to insert, drop, replace or swap to get from ``a`` to ``b`` (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[j] = min(row[j], last[j - 2] + 1)
    return row[-1]


def suggest(word: str, names: Iterable[str], *, all_of: str = "") -> str:
    """A fix for an unknown word: "did you mean 'steps'?", else the names themselves if they are few."""
    names = sorted(set(map(str, names)))
    if near := nearest(word, names):
        return f"did you mean {near!r}?"
    return f"choose one of {', '.join(names)}" if 0 < len(", ".join(names)) < 130 else all_of
