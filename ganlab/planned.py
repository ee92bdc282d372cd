"""What a sweep is to do and where: cells that were composed, and places to run them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ganlab import grid as grids
from ganlab import jobs as processes
from ganlab.errors import ConfigError, Mistake

Lanes = int | Literal["auto"]


@dataclass(frozen=True)
class Job:
    """A cell that was composed and found right. ``overrides``: all of ``ganlab train``'s words."""

    name: str
    axes: dict[str, str]
    overrides: list[str]
    folder: Path
    steps: int
    tree: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A grid at a scale, in a folder."""

    grid: str
    title: str
    scale: grids.Scale
    out: Path
    jobs: list[Job]

    def record(self) -> dict[str, Any]:
        """``grid.json``: what reports and ``ganlab status`` read."""
        told = [
            {"name": j.name, "axes": j.axes, "overrides": j.overrides, "run": j.folder.name, "steps": j.steps}
            for j in self.jobs
        ]
        scale = {"updates": self.scale.updates, "width": self.scale.width}
        return {"format": 1, "grid": self.grid, "title": self.title, "scale": scale, "cells": told}


class Places(NamedTuple):
    """Where a sweep works: ``slots`` processes, ``lanes`` cells in each, spread over ``gpus`` (numbers)."""

    slots: int = 1
    lanes: Lanes = 1
    gpus: Sequence[int] = ()


ALONE = Places()


class Agreement(NamedTuple):
    """What is a process's and not a run's: cells that agree in it may share one."""

    precision: str
    deterministic: bool
    device: str
    threads: str

    def told(self) -> str:
        return " ".join(f"{k}={v}" for k, v in self._asdict().items())


def ended(folder: Path, steps: int) -> str | None:
    """``finished`` or ``diverged`` if the run in ``folder`` is over, by its ``result.json``."""
    result = processes.peek(folder / "result.json")
    if result.get("status") == "diverged":
        return "diverged"
    reached = result.get("step")
    done = result.get("status") == "finished" and isinstance(reached, int) and reached >= steps
    return "finished" if done else None


def places(jobs: str | None, per_gpu: str, gpus: str | None, words: Sequence[str]) -> Places:
    """From ``jobs=``, ``per_gpu=`` and ``gpus=`` as written. Raises ConfigError with all mistakes."""
    wrong, numbers = list[Mistake](), list[int]()
    if not re.fullmatch(r"[1-9]\d{0,3}|auto", per_gpu):
        fix = "write per_gpu=4 or per_gpu=auto; the default is 1"
        wrong.append(Mistake("per_gpu", f"{per_gpu!r} is neither a number from 1 on nor auto", fix))
    if gpus is not None:
        named = [n.strip() for n in gpus.strip("[]").split(",")]
        if all(re.fullmatch(r"\d{1,4}", n) for n in named) and len(set(named)) == len(named):
            numbers = [int(n) for n in named]
        else:
            wrong.append(
                Mistake("gpus", f"{gpus!r} is no list of GPUs' numbers", "write gpus=[0,1], each once")
            )
    if numbers and any(w.lstrip("+").startswith("device=") for w in words):
        wrong.append(Mistake("gpus", "is given beside device=", "keep one of the two"))
    slots = str(len(numbers) or 1) if jobs is None else jobs
    if not re.fullmatch(r"[1-9]\d{0,3}", slots):
        fix = "the default is 1, or one for each of gpus"
        wrong.append(Mistake("jobs", f"{slots!r} is no number from 1 on", fix))
    if wrong:
        raise ConfigError(wrong)
    return Places(int(slots), "auto" if per_gpu == "auto" else int(per_gpu), numbers)


def visible(gpu: int) -> str:
    """CUDA's name of the GPU with this number among those that this process may see."""
    names = [n.strip() for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n.strip()]
    return names[gpu] if gpu < len(names) else str(gpu)
