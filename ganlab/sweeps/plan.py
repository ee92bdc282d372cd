"""The plan of a sweep: its composed cells, the processes and GPUs that run them, and its limits."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ganlab.errors import ConfigError, EnvError, Mistake
from ganlab.runs.folder import RunFolder
from ganlab.sweeps import grid as grids
from ganlab.sweeps import process as processes

STALL_MINUTES = 60  # a slow update, a compilation or a statistics pass takes far less
Lanes = int | Literal["auto"]


@dataclass(frozen=True)
class Job:
    """A composed and checked cell.

    overrides: all arguments of ``ganlab train``. config: hash of the keys that affect training. label: for
    tables. chosen: for a cell of a random set, the value drawn for each key.
    """

    name: str
    axes: dict[str, str]
    overrides: list[str]
    folder: Path
    steps: int
    tree: dict[str, Any]
    config: str = ""
    label: str = ""
    chosen: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """12 hex digits: a hash of overrides and config."""
        text = "\n".join([*sorted(self.overrides), self.config])
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def check_folder(folder: Path, saved: Mapping[str, Any], free: frozenset[str], key: str = "run_dir=") -> None:
    """Raise ConfigError if a cell's folder holds a run of a different config.

    ``key``: the command-line key that chooses the folder, named in the message.
    """
    run = RunFolder(folder)
    try:
        if run.config.exists():
            run.check_config(saved, free.union(saved.get("resume_allow") or ()))
    except ConfigError as error:
        raise ConfigError(m._replace(fix=m.fix.replace("run_dir=", key)) for m in error.mistakes) from None
    except EnvError:
        pass  # reported when the cell runs


@dataclass(frozen=True)
class Plan:
    """The cells of a grid at one scale, in one folder. metadata: further entries of ``grid.json``."""

    grid: str
    title: str
    scale: grids.Scale
    out: Path
    jobs: list[Job]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Content of ``grid.json``, which reports and ``ganlab status`` read."""
        cells = [
            {"name": j.name, "axes": j.axes, "overrides": j.overrides, "run": j.folder.name, "steps": j.steps}
            | ({"chosen": dict(j.chosen)} if j.chosen else {})
            for j in self.jobs
        ]
        scale = {"updates": self.scale.updates, "width": self.scale.width}
        head = {"format": 1, "grid": self.grid, "title": self.title, "scale": scale}
        return {**head, **self.metadata, "cells": cells}


class Placement(NamedTuple):
    """Where cells run: ``slots`` processes with ``lanes`` cells each, spread over ``gpus`` (indices)."""

    slots: int = 1
    lanes: Lanes = 1
    gpus: Sequence[int] = ()


ONE_PROCESS = Placement()


class Rules(NamedTuple):
    """Limits of a sweep.

    max_cells: a larger sweep is refused. retry: whether to rerun cells that failed in an earlier sweep.
    stall_s: seconds without progress after which a cell is terminated; 0 disables this.
    """

    max_cells: int = grids.MAX_CELLS
    retry: bool = True
    stall_s: float = 60 * STALL_MINUTES


DEFAULT_RULES = Rules()


class ProcessSettings(NamedTuple):
    """Process-wide settings of a cell; only cells with equal settings can share a process."""

    precision: str
    deterministic: bool
    device: str
    threads: str

    def __str__(self) -> str:
        return " ".join(f"{k}={v}" for k, v in self._asdict().items())


def final_status(folder: Path, steps: int) -> str | None:
    """``finished`` or ``diverged`` according to result and last checkpoint; None if the run is not over."""
    result = processes.read_json_leniently(folder / "result.json")
    if result.get("status") == "diverged":
        return "diverged"
    return "finished" if RunFolder(folder).finished(result, steps) else None


def parse_placement(jobs: str | None, per_gpu: str, gpus: str | None, overrides: Sequence[str]) -> Placement:
    """Parse ``jobs=``, ``per_gpu=`` and ``gpus=``. Raises ConfigError with all mistakes."""
    mistakes, numbers = list[Mistake](), list[int]()
    if not re.fullmatch(r"[1-9]\d{0,3}|auto", per_gpu):
        fix = "write per_gpu=4 or per_gpu=auto; the default is 1"
        mistakes.append(Mistake("per_gpu", f"{per_gpu!r} is neither a positive integer nor auto", fix))
    if gpus is not None:
        entries = [n.strip() for n in gpus.strip("[]").split(",")]
        if all(re.fullmatch(r"\d{1,4}", n) for n in entries) and len(set(entries)) == len(entries):
            numbers = [int(n) for n in entries]
        else:
            what = f"{gpus!r} is not a list of distinct GPU indices"
            mistakes.append(Mistake("gpus", what, "write gpus=[0,1]"))
    if numbers and any(o.lstrip("+").startswith("device=") for o in overrides):
        mistakes.append(Mistake("gpus", "conflicts with device=", "keep one of the two"))
    slots = str(len(numbers) or 1) if jobs is None else jobs
    if not re.fullmatch(r"[1-9]\d{0,3}", slots):
        fix = "the default is 1, or one per GPU in gpus="
        mistakes.append(Mistake("jobs", f"{slots!r} is not a positive integer", fix))
    if mistakes:
        raise ConfigError(mistakes)
    return Placement(int(slots), "auto" if per_gpu == "auto" else int(per_gpu), numbers)


def parse_rules(max_jobs: int, retry: str, stall_minutes: str, prefix: str = "") -> Rules:
    """Parse ``max_jobs=``, ``retry=`` and ``stall_minutes=``. Raises ConfigError with all mistakes."""
    mistakes = list[Mistake]()
    if max_jobs < 1:
        mistakes.append(
            Mistake(
                f"{prefix}max_jobs",
                f"must be at least 1, not {max_jobs}",
                f"the default is {grids.MAX_CELLS}",
            )
        )
    if retry not in ("failed", "never"):
        mistakes.append(
            Mistake(f"{prefix}retry", f"{retry!r} is not one of failed, never", "the default is failed")
        )
    minutes = math.nan
    with contextlib.suppress(ValueError):
        minutes = float(stall_minutes)
    if not 0 <= minutes < math.inf:
        fix = f"the default is {STALL_MINUTES}; 0 never stops a hanging cell"
        what = f"{stall_minutes!r} is not a number of at least 0"
        mistakes.append(Mistake(f"{prefix}stall_minutes", what, fix))
    if mistakes:
        raise ConfigError(mistakes)
    return Rules(max_jobs, retry == "failed", 60 * minutes)


def visible_gpus() -> list[str]:
    """CUDA's names of the GPUs that this process may use: indices, UUIDs or MIG instances, in order."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [n.strip() for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n.strip()]
    if count and names and names[0].startswith("MIG"):
        return names  # CUDA lets a process use one MIG instance, so the device count is 1
    return names[:count] if names else [str(n) for n in range(count)]
