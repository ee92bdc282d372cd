"""The plan of a sweep: its cells, composed and checked before anything runs.

``plan_grid`` makes it from a grid file (``ganlab sweep``), ``plan_combinations`` from a command line with
several values (``ganlab train -m``), which is a grid without a name: its record lies in a folder that a hash
of its cells names, and each run in the folder that it would have alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException

from ganlab import errors
from ganlab.config import check
from ganlab.config.files import user_dirs
from ganlab.config.overrides import CommandLine, quoted
from ganlab.errors import ConfigError, EnvError, Mistake
from ganlab.runs.folder import RunFolder
from ganlab.runs.naming import FREE, config_hash, run_path
from ganlab.sweeps import grid as grids
from ganlab.sweeps import process as processes
from ganlab.sweeps.compositions import Cache
from ganlab.sweeps.placement import MAX_CELLS
from ganlab.sweeps.process import print_status

SWEEPS_DIR = Path("outputs/.sweeps")  # records of unnamed grids
NOTICE_CELLS = 100  # from so many cells on, composing takes long enough to print a notice


@dataclass(frozen=True)
class Job:
    """A composed and checked cell.

    overrides: all arguments of ``ganlab train``. config: hash of the keys that affect training. label: its
    values, for tables. chosen: for a cell of a random set, the value drawn for each key.
    """

    name: str
    axes: dict[str, str]
    overrides: list[str]
    folder: Path
    steps: int
    tree: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    label: str = ""
    chosen: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """12 hex digits: a hash of overrides and config."""
        text = "\n".join([*sorted(self.overrides), self.config])
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep. out: folder of ``grid.json`` and ``cells.csv``; ledger: see ``ledger.py``.

    metadata: further entries of ``grid.json``.
    """

    grid: str
    title: str
    scale: grids.Scale
    out: Path
    ledger: Path
    jobs: list[Job]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Content of ``grid.json``, which reports and ``ganlab status`` read."""
        cells = [
            {
                "name": j.name,
                "axes": j.axes,
                "overrides": j.overrides,
                "run": os.path.relpath(j.folder, self.out),
                "steps": j.steps,
            }
            | ({"chosen": dict(j.chosen)} if j.chosen else {})
            for j in self.jobs
        ]
        scale = {"updates": self.scale.updates, "width": self.scale.width}
        head = {"format": 1, "grid": self.grid, "title": self.title, "scale": scale}
        return {**head, **self.metadata, "cells": cells}


def final_status(folder: Path, steps: int) -> str | None:
    """``finished`` or ``diverged`` according to result and last checkpoint; None if the run is not over."""
    result = processes.read_json_leniently(folder / "result.json")
    if result.get("status") == "diverged":
        return "diverged"
    return "finished" if RunFolder(folder).finished(result, steps) else None


def _check_folder(folder: Path, saved: Mapping[str, Any], key: str) -> None:
    """Raise ConfigError if a cell's folder holds a run of a different config; ``key`` chooses the folder."""
    run = RunFolder(folder)
    try:
        if run.config.exists():
            run.check_config(saved, FREE.union(saved.get("resume_allow") or ()))
    except ConfigError as error:
        raise ConfigError(m._replace(fix=m.fix.replace("run_dir=", key)) for m in error.mistakes) from None
    except EnvError:
        pass  # reported when the cell runs


# ---- a grid file


def plan_grid(
    name: str,
    arguments: Sequence[str],
    scale: grids.Scale,
    out: str | None,
    config_dirs: Sequence[str] = (),
    max_cells: int = MAX_CELLS,
) -> Plan:
    """Compose and check every cell of a grid. Raises ConfigError with all mistakes.

    ``arguments``: restrictions of the grid's axes, and overrides for all cells.
    """
    grid, overrides = grids.restrict(grids.load(name, user_dirs(config_dirs)), arguments)
    out_dir = Path(out or Path("outputs") / grids.folder_name(name, scale, overrides, grid.folder_suffixes()))

    def job(cell: grids.Cell, cache: Cache) -> Job:
        folder, composed = out_dir / cell.name, cache.compose(cell.overrides)
        reduced = grids.scaled(composed.tree, scale, overrides)
        for key, value in reduced.items():  # the effect of the overrides below, without composing again
            parent, _, last = key.rpartition(".")
            for tree in (composed.tree, composed.saved):
                (tree[parent] if parent else tree)[last] = value
        _check_folder(folder, composed.saved, "out=")
        own = [*(f"{k}={v}" for k, v in reduced.items()), f"run_dir={quoted(str(folder))}"]
        return Job(
            cell.name,
            cell.axes,
            [*cell.overrides, *own],
            folder,
            int(composed.tree["steps"]),
            composed.tree,
            config_hash(composed.saved),
            chosen=cell.chosen,
        )

    cells = grids.cells(grid, overrides, max_cells)
    jobs = _make_jobs({cell.name: cell for cell in cells}, job, config_dirs, "in cell", grid.axis_keys())
    return Plan(name, grid.title, scale, out_dir, out_dir / ".sweep", jobs, grid.metadata())


def _make_jobs(
    cells: Mapping[str, Any],
    make: Callable[[Any, Cache], Job],
    config_dirs: Sequence[str],
    where: str,
    axes: Sequence[str] = (),
) -> list[Job]:
    """Make the job of each cell (by label). Raises ConfigError with each mistake once.

    A mistake that not all cells have names one that has; an unknown key may be a misspelled axis.
    """
    if len(cells) > NOTICE_CELLS:
        print_status(f"{len(cells)} cells: all are composed and checked before the first starts")
    jobs, labels, cache = list[Job](), dict[Mistake, list[str]](), Cache(config_dirs)
    for label, cell in cells.items():
        try:
            jobs.append(make(cell, cache))
        except ConfigError as error:
            for mistake in error.mistakes:
                labels.setdefault(mistake, []).append(label)
    cache.save()
    summary: dict[Any, Mistake] = {}
    for mistake, having in labels.items():
        if mistake.what == check.NO_KEY:
            near = errors.nearest(mistake.where, axes)
            fix = f"did you mean {near!r}?" if near else mistake.fix
            summary.setdefault(mistake.where, mistake._replace(fix=fix))
        elif len(having) == len(cells):
            summary[mistake] = mistake
        else:
            summary[mistake] = mistake._replace(what=f"{mistake.what} ({where} {having[0]})")
    if summary:
        raise ConfigError(summary.values())
    return jobs


# ---- a command line with several values


def plan_combinations(line: CommandLine, config_dirs: Sequence[str] = (), max_cells: int = MAX_CELLS) -> Plan:
    """Compose and check every combination of a command line's values, each with its own folder.

    Raises ConfigError with all mistakes.
    """
    if line.mistakes:
        raise ConfigError(line.mistakes)
    swept = {o.key for o in line.overrides if o.sweep}
    cells: dict[str, tuple[int, list[str], dict[str, str]]] = {}
    for number, texts in enumerate(_expand(line, max_cells)):
        pairs = [text.lstrip("+").partition("=") for text in texts]
        axes = {key: value for key, _, value in pairs if key in swept}
        label = " ".join(f"{key}={value}" for key, value in axes.items()) or "alone"
        cells[label if label not in cells else f"{label} #{number}"] = number, texts, axes

    def job(cell: tuple[int, list[str], dict[str, str]], cache: Cache) -> Job:
        number, texts, axes = cell
        tree, saved, choices, overrides = cache.compose(texts)
        folder = Path(tree["run_dir"] or run_path(choices, overrides, tree["setting"], tree["seed"]))
        _check_folder(folder, saved, "run_dir=")
        label = " ".join(f"{key}={value}" for key, value in axes.items()) or "alone"
        config = config_hash(saved)
        return Job(f"{number:03d}", axes, texts, folder, int(tree["steps"]), tree, config, label)

    jobs = _make_jobs(cells, job, config_dirs, "with")
    first: dict[Path, str] = {}
    for one in jobs:
        if (twin := first.setdefault(one.folder, one.name)) != one.name:
            what = f"runs {int(twin)} and {int(one.name)} would share {one.folder}"
            fix = "leave it out, or write 'run_dir=outputs/x/${setting}-s${seed}'"
            raise ConfigError("run_dir", what, fix)
    digest = hashlib.sha256("".join(one.identity for one in jobs).encode()).hexdigest()[:10]
    fixed = " ".join(o.canonical() for o in line.overrides if not o.sweep and not o.key.startswith("hydra"))
    out = SWEEPS_DIR / digest
    return Plan("", f"train -m {fixed}".strip(), grids.Scale(), out, out, jobs)


def _expand(line: CommandLine, max_cells: int) -> list[list[str]]:
    """Expand a sweep as Hydra does, into the overrides of each combination. Counts them first."""
    words = [o.text for o in line.overrides if not o.key.startswith("hydra")]
    try:
        parsed = OverridesParser.create().parse_overrides(words)
        count = math.prod(map(_count, parsed))
        if not 0 < count <= max_cells:
            fix = "sweep over fewer values, or raise max_jobs="
            raise ConfigError("sweep", f"{count} combinations; must be 1 to {max_cells}", fix)
        values = [[f"{o.get_key_element()}={v}" for v in _values(o)] for o in parsed]
    except HydraException as error:
        what = str(error).splitlines()[0]
        raise ConfigError("sweep", what, "sweep with a,b,c or range(start,stop,step) or glob(*)") from error
    return [list(c) for c in itertools.product(*values)]


def _values(override: Override) -> Iterable[str]:
    """What one override sets the key to, a cell each."""
    if override.is_sweep_override():
        values: Iterable[str] = override.sweep_string_iterator()
        return values
    return [override.get_value_element_as_str()]


def _count(override: Override) -> int:
    """The number of values of an override."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None and value.step:
        return max(0, math.ceil((value.stop - value.start) / value.step))
    return 1
