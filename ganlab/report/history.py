"""A run's curves: what ``metrics.jsonl`` says of losses and scores over the updates."""

from __future__ import annotations

import json
import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ganlab.disk import regular
from ganlab.report import text

MAX_BYTES = 512 << 20
MAX_CURVES = 160
LOGGED = ("loss/", "critic/", "validation/")


@dataclass
class Curve:
    """A value over the training steps, strictly increasing in step; not finite where training blew up."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, step: int, value: float) -> None:
        """A step that is not later than the last one is ignored."""
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            self.values.append(value)


Curves = dict[tuple[str, str], Curve]  # (loss or score, protocol id or "")


def read(path: Path, notes: list[str]) -> Curves:
    """The losses and scores over the steps; lines that are broken are skipped, and counted in ``notes``."""
    curves: Curves = {}
    broken = 0
    try:
        with open(path, "rb", opener=regular) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                notes.append(f"metrics.jsonl is larger than {MAX_BYTES >> 20} MB: no curves")
                return curves
            for line in file:
                try:
                    row = json.loads(line)
                    step = row["step"]
                    if not isinstance(step, int) or not 0 <= step < 1 << 62:
                        raise ValueError("step is not a count")
                    _add(curves, step, row)
                except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                    broken += 1
    except FileNotFoundError:
        return curves
    except OSError as e:
        notes.append(f"metrics.jsonl can't be read: {text.clean(e, 120)}")
    if broken:
        notes.append(f"{broken} broken line(s) in metrics.jsonl skipped")
    return curves


def _add(curves: Curves, step: int, row: dict[str, Any]) -> None:
    if "scores" in row:
        ident = text.clean(row.get("protocol_id") or "", 24)
        own = row.get("own_ids")
        own = own if isinstance(own, dict) else {}
        named = {
            (k, text.clean(own.get(k) or ident, 24)): v
            for k, v in row["scores"].items()
            if not text.spread_of(k)
        }
    else:
        named = {(k, ""): v for k, v in row.items() if k.startswith(LOGGED)}
    for (name, ident), value in named.items():
        key = (text.clean(name, 40), ident)
        if isinstance(value, (int, float)) and (key in curves or len(curves) < MAX_CURVES):
            curves.setdefault(key, Curve()).add(step, float(value))
