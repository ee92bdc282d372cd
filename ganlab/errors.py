"""User-facing errors with their exit codes, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import NamedTuple

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Make untrusted text safe to print: replace control and direction characters, keep line breaks."""
    return _CONTROL.sub("?", text)


def printable_name(name: object) -> str:
    """Make a file name printable: control and undecodable characters become '?'."""
    return "".join(c if c.isprintable() else "?" for c in str(name))


class Mistake(NamedTuple):
    """One mistake: ``where`` (a config key or file), ``what`` is wrong, and the ``fix``."""

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" + (f"; {self.fix}" if self.fix else "")
        return " ".join(text.split())


class GanlabError(Exception):
    """An error that the user can fix, printed as one line per mistake, without a traceback.

    where: a key or file, or the mistakes themselves.
    agreed: all ranks of the run raise it, and all but one are ``silent``.
    """

    code = 1
    agreed = False
    silent = False

    def __init__(self, where: str | PurePath | Iterable[Mistake], what: str = "", fix: str = "") -> None:
        where = printable_name(where) if isinstance(where, PurePath) else where
        self.mistakes = [Mistake(where, what, fix)] if isinstance(where, str) else list(where)
        super().__init__("\n".join(str(m) for m in self.mistakes))


class ConfigError(GanlabError):
    """An invalid config or command line (exit code 2)."""

    code = 2


class DataError(GanlabError):
    """A missing, damaged or unsuitable dataset or other input file (exit code 3)."""

    code = 3


class CheckpointError(GanlabError):
    """No usable checkpoint, or one that does not fit the run (exit code 4)."""

    code = 4


class EnvError(GanlabError):
    """A problem with a device, dependency, disk, permission, network or weights file (exit code 5)."""

    code = 5


class Diverged(GanlabError):
    """Training diverged to non-finite values (exit code 6)."""

    code = 6


class RunInUse(GanlabError):
    """Another live process owns the run folder (exit code 7)."""

    code = 7


class SweepFailed(GanlabError):
    """A sweep ended with failed jobs (exit code 8)."""

    code = 8


class Stopped(GanlabError):
    """A signal stopped the run (exit code 128 + N)."""

    def __init__(self, signum: int, what: str = "", fix: str = "") -> None:
        import signal

        self.signum = signum
        self.code = 128 + signum
        super().__init__(signal.Signals(signum).name, what or "stopped", fix)


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name of which ``word`` is most likely a misspelling, or None."""
    close = difflib.get_close_matches(word, set(map(str, names)), n=12, cutoff=0.5)
    scored = [(_edits(word, n), -difflib.SequenceMatcher(None, word, n).ratio(), n) for n in close]
    best = min(scored, default=None)
    return best[2] if best and best[0] <= max(1, (len(word) + 1) // 3) else None


def _edits(a: str, b: str) -> int:
    """Edit distance with adjacent swaps (optimal string alignment)."""
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
    """A fix for an unknown word: "did you mean 'steps'?", or a list of the names if it is short."""
    names = sorted(set(map(str, names)))
    if near := nearest(word, names):
        return f"did you mean {near!r}?"
    return f"choose one of {', '.join(names)}" if 0 < len(", ".join(names)) < 130 else all_of
