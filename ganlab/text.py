"""Make untrusted text safe for terminals, Markdown and CSV."""

from __future__ import annotations

import math
import re
import unicodedata

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


def clean(value: object, limit: int = 80) -> str:
    """One line of visible text, at most ``limit`` characters; truncation shows as an ellipsis."""
    raw = value if isinstance(value, str) else repr(value) if isinstance(value, float) else str(value)
    raw = _ESCAPES.sub("", raw[: 40 * limit + 4000])
    kept = []
    for char in raw:
        kind = unicodedata.category(char)
        if char.isspace() or kind in ("Zl", "Zp"):
            kept.append(" ")
        elif kind[0] != "C":  # controls, direction marks, surrogates, private use
            kept.append(char)
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def plain(value: object, limit: int = 40) -> str:
    """Text for figures, limited to characters that their font has (Latin-1 and a few more)."""
    line = clean(value, limit)
    return "".join(c if ord(c) < 256 or c in "…–±≥" else "?" for c in line)


def csv_cell(value: object) -> object:
    """A CSV value that a spreadsheet reads as text or a number, never as a formula; None is empty."""
    if value is None or isinstance(value, (bool, int)):
        return "" if value is None else value
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    line = clean(value, 500)
    first = unicodedata.normalize("NFKC", line[:1])
    return f"'{line}" if first in tuple("=+-@|%") else line
