"""A run's curves: what ``metrics.jsonl`` says of losses and scores over the updates."""

from __future__ import annotations

import bisect
import math
import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ganlab import text
from ganlab.papers import labels
from ganlab.runs.metrics_file import parse_line
from ganlab.system.files import open_regular

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


@dataclass
class Summary:
    """What metrics.jsonl tells: curves, and ``train_s``, the seconds that the updates up to a step took.

    A line of training has the updates per second since the line before, evaluations, samples and saves left
    out: the sum is the training's own wall clock, whatever the run did beside it. (The lines' ``wall_s`` has
    all in it.)
    """

    curves: Curves = field(default_factory=dict)
    train_s: Curve = field(default_factory=Curve)

    def seconds(self, step: int) -> float | None:
        """Training seconds at a step, straight between the lines; None outside them, or without speeds."""
        steps, values = self.train_s.steps, self.train_s.values
        i = bisect.bisect_left(steps, step)
        if step == 0 or i == len(steps):
            return 0.0 if step == 0 and steps else None
        before, spent = (steps[i - 1], values[i - 1]) if i else (0, 0.0)
        return spent + (values[i] - spent) * (step - before) / (steps[i] - before)


def read(path: Path, notes: list[str]) -> Summary:
    """The losses and scores over the steps; lines that are broken are skipped, and counted in ``notes``."""
    told = Summary()
    curves, broken = told.curves, 0
    try:
        with open(path, "rb", opener=open_regular) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                notes.append(f"metrics.jsonl is larger than {MAX_BYTES >> 20} MB: no curves")
                return told
            for line in file:
                try:
                    row = parse_line(line)
                    step = row["step"]
                    if not isinstance(step, int) or not 0 <= step < 1 << 62:
                        raise ValueError("step is not a count")
                    _add(curves, step, row)
                    _spend(told.train_s, step, row)
                except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                    broken += 1
    except FileNotFoundError:
        return told
    except OSError as e:
        notes.append(f"metrics.jsonl can't be read: {text.clean(e, 120)}")
    if broken:
        notes.append(f"{broken} broken line(s) in metrics.jsonl skipped")
    return told


def _spend(train_s: Curve, step: int, row: dict[str, Any]) -> None:
    """Add the seconds of the updates since the last line of training."""
    rate = row.get("it_per_s")
    if row.get("kind") == "train" and isinstance(rate, (int, float)) and 0 < rate < math.inf:
        before, spent = (train_s.steps[-1], train_s.values[-1]) if train_s.steps else (0, 0.0)
        train_s.add(step, spent + (step - before) / rate)


def _add(curves: Curves, step: int, row: dict[str, Any]) -> None:
    if "scores" in row:
        ident = text.clean(row.get("protocol_id") or "", 24)
        own = row.get("own_ids")
        own = own if isinstance(own, dict) else {}
        named = {
            (k, text.clean(own.get(k) or ident, 24)): v
            for k, v in row["scores"].items()
            if not labels.spread_of(k)
        }
    else:
        named = {(k, ""): v for k, v in row.items() if k.startswith(LOGGED)}
    for (name, ident), value in named.items():
        key = (text.clean(name, 40), ident)
        if isinstance(value, (int, float)) and (key in curves or len(curves) < MAX_CURVES):
            curves.setdefault(key, Curve()).add(step, float(value))
