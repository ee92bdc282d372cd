"""The name that a misspelt word most likely means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
