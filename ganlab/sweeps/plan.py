"""What a sweep is to do, where, and by which rules: cells that were composed, and places to run them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ganlab.errors import ConfigError, EnvError, Mistake
from ganlab.runs.folder import RunFolder
from ganlab.runs.renamed import to_first
from ganlab.sweeps import grid as grids
from ganlab.sweeps import process as processes
from ganlab.system.files import to_strict_json

MOST = 1000  # cells of a sweep, unless it is told otherwise
STALL_MINUTES = 60  # far more than a slow update, a compiler or a statistics pass is silent
Lanes = int | Literal["auto"]


@dataclass(frozen=True)
class Job:
    """A cell that was composed and found right.

    overrides: all of ``ganlab train``'s words; config: a hash of what is trained; label: for tables;
    chosen: of a random set's member, what was drawn for each key.
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
        """12 hex digits of its overrides and its config."""
        text = "\n".join([*sorted(self.overrides), self.config])
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def config_hash(saved: Mapping[str, Any], free: Container[str]) -> str:
    """A hash of a config without the keys that change no training."""
    kept = {k: v for k, v in to_first(saved).items() if k not in free}
    text = json.dumps(to_strict_json(kept), sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def check_folder(folder: Path, saved: Mapping[str, Any], free: frozenset[str], key: str = "run_dir=") -> None:
    """Raise ConfigError if a run of another config is in a cell's folder: its result is not this cell's.

    ``key``: of the command line, that chooses the folder.
    """
    run = RunFolder(folder)
    try:
        if run.config.exists():
            run.check_config(saved, free.union(saved.get("resume_allow") or ()))
    except ConfigError as error:
        raise ConfigError(m._replace(fix=m.fix.replace("run_dir=", key)) for m in error.mistakes) from None
    except EnvError:
        pass  # that run's own affair


@dataclass(frozen=True)
class Plan:
    """A grid at a scale, in a folder. facts: what else ``grid.json`` says of it."""

    grid: str
    title: str
    scale: grids.Scale
    out: Path
    jobs: list[Job]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """``grid.json``: what reports and ``ganlab status`` read."""
        told = [
            {"name": j.name, "axes": j.axes, "overrides": j.overrides, "run": j.folder.name, "steps": j.steps}
            | ({"chosen": dict(j.chosen)} if j.chosen else {})
            for j in self.jobs
        ]
        scale = {"updates": self.scale.updates, "width": self.scale.width}
        head = {"format": 1, "grid": self.grid, "title": self.title, "scale": scale}
        return {**head, **self.facts, "cells": told}


class Places(NamedTuple):
    """Where a sweep works: ``slots`` processes, ``lanes`` cells in each, spread over ``gpus`` (numbers)."""

    slots: int = 1
    lanes: Lanes = 1
    gpus: Sequence[int] = ()


ALONE = Places()


class Rules(NamedTuple):
    """How a sweep minds its cells.

    most: cells, or it is refused; retry: whether what failed in an earlier sweep is run again; stall_s:
    seconds without progress after which a cell is ended, 0: never.
    """

    most: int = MOST
    retry: bool = True
    stall_s: float = 60 * STALL_MINUTES


DEFAULT = Rules()


class Agreement(NamedTuple):
    """What is a process's and not a run's: cells that agree in it may share one."""

    precision: str
    deterministic: bool
    device: str
    threads: str

    def told(self) -> str:
        return " ".join(f"{k}={v}" for k, v in self._asdict().items())


def end_status(folder: Path, steps: int) -> str | None:
    """``finished`` or ``diverged`` if the run in ``folder`` is over, by its result and last checkpoint."""
    result = processes.read_json_leniently(folder / "result.json")
    if result.get("status") == "diverged":
        return "diverged"
    return "finished" if RunFolder(folder).finished(result, steps) else None


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


def rules(max_jobs: int, retry: str, stall_minutes: str, prefix: str = "") -> Rules:
    """From ``max_jobs=``, ``retry=``, ``stall_minutes=`` as written. Raises ConfigError with all mistakes."""
    wrong = list[Mistake]()
    if max_jobs < 1:
        wrong.append(Mistake(f"{prefix}max_jobs", f"{max_jobs} is less than 1", f"the default is {MOST}"))
    if retry not in ("failed", "never"):
        wrong.append(
            Mistake(f"{prefix}retry", f"{retry!r} is neither failed nor never", "the default is failed")
        )
    minutes = math.nan
    with contextlib.suppress(ValueError):
        minutes = float(stall_minutes)
    if not 0 <= minutes < math.inf:
        fix = f"the default is {STALL_MINUTES}; 0: a cell that hangs is left alone"
        wrong.append(Mistake(f"{prefix}stall_minutes", f"{stall_minutes!r} is no number from 0 on", fix))
    if wrong:
        raise ConfigError(wrong)
    return Rules(max_jobs, retry == "failed", 60 * minutes)


def gpu_id() -> list[str]:
    """CUDA's names of the GPUs that this process may use: numbers, UUIDs or MIG instances, in order."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [n.strip() for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n.strip()]
    if count and names and names[0].startswith("MIG"):
        return names  # CUDA shows a process one of them, whatever their number
    return names[:count] if names else [str(n) for n in range(count)]
