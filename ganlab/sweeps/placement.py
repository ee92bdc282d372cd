"""Where cells run (``jobs=``, ``per_gpu=``, ``gpus=``), and the limits of a sweep (``max_jobs=``, ...)."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from ganlab.errors import ConfigError, EnvError, Mistake

MAX_CELLS = 1000  # default of max_jobs=
STALL_MINUTES = 60  # a slow update, a compilation or a statistics pass takes far less


class Placement(NamedTuple):
    """Local processes: ``slots`` at a time, spread over ``gpus`` (CUDA's names; empty: not assigned)."""

    slots: int = 1
    gpus: Sequence[str] = ()


class Rules(NamedTuple):
    """Limits of a sweep.

    max_cells: a larger sweep is refused. retry: whether to rerun cells that failed in an earlier sweep.
    stall_s: seconds without progress after which a cell is terminated; 0 disables this.
    """

    max_cells: int = MAX_CELLS
    retry: bool = True
    stall_s: float = 60 * STALL_MINUTES


ONE_PROCESS, DEFAULT_RULES = Placement(), Rules()


def parse_placement(
    jobs: str | None, per_gpu: str | None, gpus: str | None, overrides: Sequence[str]
) -> Placement:
    """Parse ``jobs=``, ``per_gpu=`` and ``gpus=``; ``per_gpu`` processes on each GPU unless jobs is given.

    Raises ConfigError with all mistakes, and EnvError if a requested GPU does not exist.
    """
    mistakes, numbers = list[Mistake](), list[int]()
    if per_gpu is not None and not re.fullmatch(r"[1-9]\d{0,3}", per_gpu):
        fix = "write per_gpu=2, for two processes on each GPU; the default is 1"
        what = "is gone: cells share no process" if per_gpu == "auto" else "is not a positive integer"
        mistakes.append(Mistake("per_gpu", f"{per_gpu!r} {what}", fix))
    if gpus is not None:
        entries = [n.strip() for n in gpus.strip("[]").split(",")]
        if all(re.fullmatch(r"\d{1,4}", n) for n in entries) and len(set(entries)) == len(entries):
            numbers = [int(n) for n in entries]
        else:
            what = f"{gpus!r} is not a list of distinct GPU indices"
            mistakes.append(Mistake("gpus", what, "write gpus=[0,1]"))
    sets_device = any(o.lstrip("+").startswith("device=") for o in overrides)
    if numbers and sets_device:
        mistakes.append(Mistake("gpus", "conflicts with device=", "keep one of the two"))
    if jobs is not None and not re.fullmatch(r"[1-9]\d{0,3}", jobs):
        fix = "the default is 1, or per_gpu for each GPU in gpus="
        mistakes.append(Mistake("jobs", f"{jobs!r} is not a positive integer", fix))
    if not mistakes and jobs is not None and per_gpu not in (None, "1"):
        mistakes.append(Mistake("per_gpu", "conflicts with jobs=", "keep one of the two"))
    if mistakes:
        raise ConfigError(mistakes)
    uses_gpus = bool(numbers) or any(value not in (None, "1") for value in (jobs, per_gpu))
    names = visible_gpus() if uses_gpus and not sets_device else []
    if missing := [gpu for gpu in numbers if gpu >= len(names)]:
        present = f"this machine has {', '.join(map(str, range(len(names))))}"
        what = f"no GPU {missing[0]}: {present if names else 'no CUDA device found'}"
        raise EnvError("gpus", what, "leave gpus= out, or list existing GPUs")
    own = [names[gpu] for gpu in numbers] or (names if len(names) > 1 else [])
    return Placement(int(jobs) if jobs is not None else max(1, len(own)) * int(per_gpu or 1), own)


def parse_rules(max_jobs: int, retry: str, stall_minutes: str) -> Rules:
    """Parse ``max_jobs=``, ``retry=`` and ``stall_minutes=``. Raises ConfigError with all mistakes."""
    mistakes = list[Mistake]()
    if max_jobs < 1:
        what = f"must be at least 1, not {max_jobs}"
        mistakes.append(Mistake("max_jobs", what, f"the default is {MAX_CELLS}"))
    if retry not in ("failed", "never"):
        mistakes.append(Mistake("retry", f"{retry!r} is not one of failed, never", "the default is failed"))
    minutes = math.nan
    with contextlib.suppress(ValueError):
        minutes = float(stall_minutes)
    if not 0 <= minutes < math.inf:
        fix = f"the default is {STALL_MINUTES}; 0 never stops a hanging cell"
        what = f"{stall_minutes!r} is not a number of at least 0"
        mistakes.append(Mistake("stall_minutes", what, fix))
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
