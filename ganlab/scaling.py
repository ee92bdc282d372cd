"""A grid made smaller: fractions of its updates and of its networks' width, and the folder it then has."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ganlab.errors import ConfigError

SCALED = ("steps", "eval_every", "save_every", "log_every", "sample_every", "lr_decay_start")
WIDTH = "architecture.width"
_SILENT = ("device", "threads", "data_memory_gb", "keep_checkpoints")  # move no folder: they change no run


class Scale(NamedTuple):
    """Fractions of a grid's updates and of its networks' width."""

    updates: float = 1.0
    width: float = 1.0

    @property
    def whole(self) -> bool:
        return self == Scale()

    def __str__(self) -> str:
        return f"{self.updates:g} of the updates, {self.width:g} of the width"


def scaled(tree: Mapping[str, Any], scale: Scale, words: Sequence[str]) -> dict[str, Any]:
    """Key -> value of what brings a composed cell to ``scale``; keys that ``words`` set are left alone.

    Raises ConfigError if the width is to change and the architecture has none.
    """
    mine = {w.lstrip("+~").partition("=")[0] for w in words}
    found: dict[str, Any] = {}
    for key in SCALED if scale.updates != 1 else ():
        value = tree.get(key)
        if isinstance(value, int) and value > 0 and key not in mine:
            found[key] = max(1, round(value * scale.updates))
    if scale.width != 1 and WIDTH not in mine:
        width = (tree.get("architecture") or {}).get("width")
        if not isinstance(width, int | float):
            raise ConfigError("scale", "this architecture has no width", "scale=UPDATES alone")
        found[WIDTH] = float(f"{width * scale.width:g}")
    return found


def parse_scale(text: str) -> Scale:
    """``0.01`` or ``0.01,0.125``: updates, width. Raises ConfigError."""
    parts = text.strip("[]").split(",")
    try:
        numbers = [float(p) for p in parts]
        assert len(numbers) in (1, 2)
        assert all(0 < n <= 1 for n in numbers)
    except (ValueError, AssertionError):
        fix = "write scale=UPDATES or scale=UPDATES,WIDTH, fractions such as scale=0.01,0.125"
        raise ConfigError("scale", f"{text!r} is not one or two fractions", fix) from None
    return Scale(*numbers)


def folder_name(grid: str, scale: Scale, words: Sequence[str], marks: Sequence[str] = ()) -> str:
    """``NAME``, ``NAME-u0.01``, ``NAME-u0.01-w0.125``, the ``marks``, and a hash of the other overrides."""
    parts = [grid, *marks]
    if scale.updates != 1:
        parts.append(f"u{scale.updates:g}")
    if scale.width != 1:
        parts.append(f"w{scale.width:g}")
    if others := sorted(w.lstrip("+") for w in words if w.lstrip("+~").partition("=")[0] not in _SILENT):
        parts.append(hashlib.sha256("\n".join(others).encode()).hexdigest()[:6])
    return "-".join(parts)
