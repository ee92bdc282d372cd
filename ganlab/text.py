"""Text from outside made safe to print: terminals, Markdown and CSV."""

from __future__ import annotations

import math
import re
import unicodedata

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


def clean(value: object, limit: int = 80) -> str:
    """One line of visible text, at most ``limit`` characters; a cut shows as an ellipsis."""
    raw = value if isinstance(value, str) else repr(value) if isinstance(value, float) else str(value)
    raw = _ESCAPES.sub("", raw[: 40 * limit + 4000])
    kept = []
    for sign in raw:
        kind = unicodedata.category(sign)
        if sign.isspace() or kind in ("Zl", "Zp"):
            kept.append(" ")
        elif kind[0] != "C":  # controls, direction marks, surrogates, private use
            kept.append(sign)
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def plain(value: object, limit: int = 40) -> str:
    """Text for figures: only signs that the figures' font surely has (Latin-1 and a few more)."""
    line = clean(value, limit)
    return "".join(c if ord(c) < 256 or c in "…–±≥" else "?" for c in line)


def csv_cell(value: object) -> object:
    """A CSV value that a spreadsheet takes for text or a number, never for a formula; None is empty."""
    if value is None or isinstance(value, (bool, int)):
        return "" if value is None else value
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    line = clean(value, 500)
    first = unicodedata.normalize("NFKC", line[:1])
    return f"'{line}" if first in tuple("=+-@|%") else line
