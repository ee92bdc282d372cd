"""Reads a run's curves from ``metrics.jsonl``: losses and scores over the updates."""

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
LOGGED = ("loss/", "critic/", "validation/", "began/")


@dataclass
class Curve:
    """A value over training steps, which increase strictly; not finite where training diverged."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, step: int, value: float) -> None:
        """Add a point; a step not after the last one is ignored."""
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            self.values.append(value)

    def finite(self) -> dict[int, float]:
        """Step -> value, without those that are not finite."""
        pairs = zip(self.steps, self.values, strict=True)
        return {step: value for step, value in pairs if math.isfinite(value)}


Curves = dict[tuple[str, str], Curve]  # (loss or score, protocol id or "")


@dataclass
class Summary:
    """Contents of metrics.jsonl: curves, and ``train_s``, the training time in seconds up to a step.

    A training line records the updates per second since the previous line, without evaluations, samples and
    saves; the training time is summed from these. (``wall_s`` of the lines includes everything.)
    """

    curves: Curves = field(default_factory=dict)
    train_s: Curve = field(default_factory=Curve)

    def seconds(self, step: int) -> float | None:
        """Training time at a step, interpolated linearly; None outside the lines, or without speeds."""
        steps, values = self.train_s.steps, self.train_s.values
        i = bisect.bisect_left(steps, step)
        if step == 0 or i == len(steps):
            return 0.0 if step == 0 and steps else None
        before, elapsed = (steps[i - 1], values[i - 1]) if i else (0, 0.0)
        return elapsed + (values[i] - elapsed) * (step - before) / (steps[i] - before)


def read(path: Path, notes: list[str]) -> Summary:
    """Read the curves; broken lines are skipped, and their number is added to ``notes``."""
    summary = Summary()
    curves, broken = summary.curves, 0
    try:
        with open(path, "rb", opener=open_regular) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                notes.append(f"metrics.jsonl is larger than {MAX_BYTES >> 20} MB; its curves are left out")
                return summary
            for line in file:
                try:
                    row = parse_line(line)
                    step = row["step"]
                    if not isinstance(step, int) or not 0 <= step < 1 << 62:
                        raise ValueError("invalid step")
                    _add(curves, step, row)
                    _add_seconds(summary.train_s, step, row)
                except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                    broken += 1
    except FileNotFoundError:
        return summary
    except OSError as e:
        notes.append(f"metrics.jsonl can't be read: {text.clean(e, 120)}")
    if broken:
        notes.append(f"skipped {broken} broken line{'s' * (broken != 1)} of metrics.jsonl")
    return summary


def mapping(node: object) -> dict[str, Any]:
    """A node of an untrusted file if it is a mapping, else an empty one."""
    return node if isinstance(node, dict) else {}


def _add_seconds(train_s: Curve, step: int, row: dict[str, Any]) -> None:
    """Add the duration of the updates since the previous training line."""
    rate = row.get("it_per_s")
    if row.get("kind") == "train" and isinstance(rate, (int, float)) and 0 < rate < math.inf:
        before, elapsed = (train_s.steps[-1], train_s.values[-1]) if train_s.steps else (0, 0.0)
        train_s.add(step, elapsed + (step - before) / rate)


def _add(curves: Curves, step: int, row: dict[str, Any]) -> None:
    if "scores" in row:
        ident = text.clean(row.get("protocol_id") or "", 24)
        own_ids = mapping(row.get("own_ids"))
        entries = {
            (k, text.clean(own_ids.get(k) or ident, 24)): v
            for k, v in row["scores"].items()
            if not labels.spread_of(k)
        }
    else:
        entries = {(k, ""): v for k, v in row.items() if k.startswith(LOGGED)}
    for (name, ident), value in entries.items():
        key = (text.clean(name, 40), ident)
        if isinstance(value, (int, float)) and (key in curves or len(curves) < MAX_CURVES):
            curves.setdefault(key, Curve()).add(step, float(value))
