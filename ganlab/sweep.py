"""``ganlab train -m``: every combination checked before the first starts, then each in a process of its own.

Hydra expands the sweep, and its launchers (one after the other, joblib, a cluster's) call ``cell``, which
runs ``python -m ganlab train`` for one combination: a crash, a leak or a divergence stays there. Signals
are passed on through a file, so that they reach runs behind any launcher.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ganlab import config, jobs
from ganlab.composition import foreign_hydra, hydra_over
from ganlab.errors import ConfigError, DataError, EnvError, Mistake, SweepFailed
from ganlab.jobs import say
from ganlab.overrides import CommandLine, command_line, quoted

PLACE = Path("outputs/.sweeps")
MOST = 1000  # combinations


class Cell(NamedTuple):
    """One combination: its number, what tells it from the others, and its run folder."""

    number: int
    label: str
    folder: Path


def sweep(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> int:
    """Run all combinations and print a table of them. Returns 0, or 128 + N after signal N.

    A diverged run is a result and counts as done. Raises ConfigError before anything starts, if any
    combination has a mistake; SweepFailed at the end, if any run failed.
    """
    line = command_line(overrides, config_dirs, multirun=True)
    if line.wrong:
        raise ConfigError(line.wrong)
    cells = _checked(line, config_dirs)
    place = _new_folder()
    told = {"command": jobs.COMMAND, "dirs": [str(d) for d in line.dirs], "pid": os.getpid(), "gpus": _gpus()}
    told["cwd"] = str(Path.cwd())  # a launcher's workers may stand elsewhere
    (place / "sweep.json").write_text(json.dumps(told))
    say(f"{len(cells)} runs; what each says is in {place}")
    failure: Exception | None = None
    with jobs.signals_to(lambda signum: _pass_on(signum, place)):
        try:
            _launch(line, place)
        except Exception as error:  # a launcher that broke: the cells' own failures are in their files
            failure = error
    rows = [_row(cell, place, bool(_signals(place))) for cell in cells]
    _write_table(rows, place)
    if stopped := _signals(place):
        say(f"stopped by {signal.Signals(stopped[0]).name}; the same command continues")
        return 128 + stopped[0]
    if failed := [r for r in rows if r["state"] not in ("finished", "diverged")]:
        numbers = ", ".join(f"{r['number']}" for r in failed)
        what = f"{len(failed)} of {len(rows)} runs failed: {numbers}"
        if failure is not None and all(r["state"] == "pending" for r in failed):
            what = f"{what} ({type(failure).__name__}: {failure})".replace("\n", " ")
        raise SweepFailed("sweep", what, "the same command runs those again")
    if diverged := sum(r["state"] == "diverged" for r in rows):
        say(f"{diverged} of {len(rows)} runs diverged: a result, not a failure")
    return 0


# ---- before


def _checked(line: CommandLine, config_dirs: Sequence[str]) -> list[Cell]:
    """All combinations, each with a config that is right and a folder of its own. Raises ConfigError."""
    from ganlab.facts import run_path

    cells: list[Cell] = []
    wrong: dict[Mistake, list[str]] = {}
    combinations = _expanded(line)
    swept = {g.key for g in line.given if g.sweep}
    for number, texts in enumerate(combinations):
        label = " ".join(t.lstrip("+") for t in texts if t.lstrip("+").partition("=")[0] in swept) or "alone"
        try:
            composed = config.compose(texts, config_dirs)
            with contextlib.suppress(DataError, EnvError):  # that run's own affair
                config.build(composed)
        except ConfigError as error:
            for mistake in error.mistakes:
                wrong.setdefault(mistake, []).append(label)
            continue
        tree = composed.tree
        own = tree.get("run_dir")
        path = run_path(composed.choices, composed.overrides, tree["setting"], tree["seed"])
        cells.append(Cell(number, label, Path(own) if own else path))
    if wrong:
        raise ConfigError(
            m if len(where) == len(combinations) else m._replace(what=f"{m.what} (with {where[0]})")
            for m, where in wrong.items()
        )
    for cell in cells:
        if twins := [c.number for c in cells if c.folder == cell.folder and c.number > cell.number]:
            what = f"runs {cell.number} and {twins[0]} would share {cell.folder}"
            raise ConfigError(
                "run_dir", what, "leave it out, or write 'run_dir=outputs/x/${setting}-s${seed}'"
            )
    return cells


def _expanded(line: CommandLine) -> list[list[str]]:
    """Hydra's own expansion of a sweep: the overrides of each combination."""
    words = [g.text for g in line.given if not g.key.startswith("hydra")]
    try:
        parsed = OverridesParser.create().parse_overrides(words)
        (combinations,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        what = str(error).splitlines()[0]
        raise ConfigError("sweep", what, "sweep with a,b,c or range(start,stop,step) or glob(*)") from error
    if not 0 < len(combinations) <= MOST:
        raise ConfigError("sweep", f"has {len(combinations)} combinations", f"at most {MOST}, at least one")
    return [list(c) for c in combinations]


def _new_folder() -> Path:
    PLACE.mkdir(parents=True, exist_ok=True)
    number = sum(1 for _ in PLACE.iterdir())
    while True:
        number += 1
        with contextlib.suppress(FileExistsError):
            (PLACE / f"{number:03d}").mkdir()
            return PLACE / f"{number:03d}"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


# ---- during


def _launch(line: CommandLine, place: Path) -> None:
    """Hydra's multirun, which calls ``cell`` for each combination through its launcher."""
    own = [
        "hydra/job_logging=disabled",
        "hydra/hydra_logging=disabled",
        "hydra.output_subdir=null",
        f"hydra.sweep.dir={quoted(str(place.absolute()))}",
        "hydra.sweep.subdir=.",
        "hydra.mode=MULTIRUN",
    ]
    words = [*line.texts(), *own]
    with hydra_over(line.dirs) as hydra:
        raw = hydra.compose_config(
            "train", words, RunMode.MULTIRUN, from_shell=False, validate_sweep_overrides=False
        )
        env_set = any(g.key.startswith("hydra.job.env_set") for g in line.given)
        if line.dirs and (wrong := foreign_hydra(raw, env_set=env_set, own=tuple(own))):
            raise ConfigError(wrong)
        hydra.multirun("train", cell, words)


def cell(_: DictConfig) -> int:
    """Run one combination in a process of its own and note how it ended. Called by Hydra's launchers."""
    job, place = HydraConfig.get(), Path(HydraConfig.get().sweep.dir)
    told = json.loads((place / "sweep.json").read_text())
    number, words = int(job.job.num), OmegaConf.to_container(job.overrides.task, resolve=False)
    assert isinstance(words, list)  # unresolved: a ${...} in an override is the run's to resolve
    if os.getpid() != told["pid"] and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C here too; the file tells us
    if _signals(place):
        return 0
    env = dict(os.environ, GANLAB_CONFIGS=os.pathsep.join(told["dirs"]))
    if (at_once := job.launcher.get("n_jobs") or 1) != 1:
        cores = os.cpu_count() or 1
        env.setdefault("OMP_NUM_THREADS", str(max(1, cores // (cores if at_once < 0 else at_once))))
        if told["gpus"] > 1 and not any(str(w).lstrip("+").startswith("device=") for w in words):
            env.setdefault("CUDA_VISIBLE_DEVICES", str(number % told["gpus"]))
    log, began = place / f"{number:03d}.log", time.monotonic()
    code = jobs.run(
        [*told["command"], *map(str, words)],
        log,
        cwd=told["cwd"],
        env=env,
        asked=lambda: _signals(place),
        heard=lambda line: say(f"[{number}] {line}"),
    )
    ended = {"code": code, "seconds": round(time.monotonic() - began, 1)}
    note = place / f"{number:03d}.json"
    note.with_suffix(".tmp").write_text(json.dumps(ended))
    note.with_suffix(".tmp").replace(note)
    say(f"[{number}] {jobs.state(code)} after {ended['seconds']:.0f} s")
    return code


def _pass_on(signum: int, place: Path) -> None:
    with open(place / "stop", "a") as file:
        file.write(f"{signum}\n")


def _signals(place: Path) -> list[int]:
    try:
        return [int(word) for word in (place / "stop").read_text().split()]
    except (OSError, ValueError):
        return []


# ---- after


def _row(cell: Cell, place: Path, stopped: bool) -> dict[str, Any]:
    """What became of a cell: its end as noted, its scores from the run folder, its last error line."""
    row: dict[str, Any] = {"number": cell.number, "overrides": cell.label, "state": "pending", "code": None}
    row |= {"scores": "", "run": str(cell.folder), "error": ""}
    with contextlib.suppress(OSError, ValueError):
        row["code"] = int(json.loads((place / f"{cell.number:03d}.json").read_text())["code"])
    row["state"] = jobs.state(row["code"])
    row["scores"] = jobs.scores(cell.folder)
    if row["state"] in ("failed", "diverged"):
        row["error"] = jobs.last_error(place / f"{cell.number:03d}.log")
    if row["code"] is None and not stopped:
        row["error"] = "its process was lost"
    return row


def _write_table(rows: list[dict[str, Any]], place: Path) -> None:
    """``summary.csv`` beside the logs, and the same on the screen."""
    jobs.write_csv(place / "summary.csv", rows)
    heads = ("#", "overrides", "state", "exit", "last scores", "run folder", "error")
    jobs.print_table(f"sweep {place}", heads, rows)


def hydra_itself(rest: Sequence[str], overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> int:
    """``--info``, ``--hydra-help``, ``--cfg hydra|all``: Hydra's own answers about this config.

    ``rest``: the options. Raises ConfigError for mistakes of the overrides.
    """
    from hydra._internal.utils import get_args_parser

    line = command_line(overrides, config_dirs, multirun=True)
    if line.wrong:
        raise ConfigError(line.wrong)
    logging.raiseExceptions = False  # else `--info | head` prints one traceback a line
    parser = get_args_parser()
    args = parser.parse_args(list(rest))
    with hydra_over(line.dirs) as hydra:
        args.overrides = [t for t in line.texts() if t.startswith("hydra") or not args.hydra_help]
        if args.hydra_help:
            hydra.hydra_help(config_name="train", args_parser=parser, args=args)
        elif args.cfg:
            hydra.show_cfg("train", args.overrides, args.cfg, args.package, args.resolve)
        else:
            hydra.show_info(args.info or "all", config_name="train", overrides=args.overrides)
    return 0
