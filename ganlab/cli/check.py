"""``ganlab check``: verify every checkpoint of a run, to see whether it can resume.

Writes nothing and needs no dataset, so it is safe while the run is training.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ganlab.config import compose
from ganlab.errors import CheckpointError, ConfigError, DataError, EnvError, GanlabError, Mistake, printable
from ganlab.runs import folder as folder_module
from ganlab.runs.checkpoint import ASIDE, LEFTOVER, QUARANTINED, Checkpoints, Loaded
from ganlab.runs.folder import RunFolder, differences
from ganlab.runs.manifest import MANIFEST, MAX_MANIFEST, OtherRunError, read
from ganlab.runs.metrics_file import MAX_BYTES, read_metrics
from ganlab.runs.naming import FREE
from ganlab.sweeps import process
from ganlab.system.files import STALE_FILE, read_json, read_regular
from ganlab.system.lock import owner_of
from ganlab.training import resume
from ganlab.training.gan import GAN

MAX_DEPTH = 4  # levels of folders searched for runs
GOOD, DAMAGED, OTHER = "good", "damaged", "other run's"


def check(paths: Sequence[str], as_json: bool = False) -> int:
    """Print a line for each checkpoint of the runs at or below ``paths``; return 0 if all are intact.

    Raises DataError for a path without runs, CheckpointError naming each run that has a damaged checkpoint,
    no checkpoint, or inconsistent metrics or config.
    """
    runs = []
    for path in map(Path, paths):
        folders = list(_find_runs(path, MAX_DEPTH)) if path.is_dir() else []
        if not folders:
            fix = "give a run folder, or a folder that contains some"
            raise DataError(str(path), "contains no run" if path.is_dir() else "is not a folder", fix)
        runs += [inspect_run(folder) for folder in dict.fromkeys(folders)]
    if as_json:
        print(json.dumps({"ok": not any(r["problems"] for r in runs), "runs": runs}, indent=1))
    else:
        print(printable("\n".join(line for run in runs for line in report_lines(run))))
    if damaged := [r for r in runs if r["problems"]]:
        raise CheckpointError([_mistake(run) for run in damaged])
    return 0


def _find_runs(root: Path, depth: int) -> Iterator[Path]:
    if any((root / name).exists() for name in ("run.json", "checkpoints", "config.yaml")):
        yield root
    elif depth:
        for entry in sorted(os.scandir(root), key=lambda e: e.name):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _find_runs(Path(entry), depth - 1)


def inspect_run(folder: Path) -> dict[str, Any]:
    """The run's ``checkpoints`` (step, state, why, bytes), and ``problems`` and ``notes`` as text."""
    run, problems, notes = RunFolder(folder), list[str](), list[str]()
    if owner := owner_of(folder / ".lock"):
        notes.append(f"in use by {owner}: files being written are not checked")
    stored = _config(run, problems)
    run_id = _run_id(run, problems)
    checkpoints = Checkpoints(run.checkpoints, run_id)
    rows, newest = _steps(checkpoints, stored)
    for row in rows:
        if row["state"] not in (GOOD, OTHER):
            problems.append(f"step {row['step']}: {row['why']}")
    if not any(row["state"] == GOOD for row in rows):
        problems.append("no checkpoint to resume from")
    if newest is not None:
        _compare_config(run, newest, stored, problems, notes)
    _metrics(run, problems, notes)
    _leftovers(run, rows, problems, notes)
    return {"run": str(folder), "checkpoints": rows, "problems": problems, "notes": notes}


def _config(run: RunFolder, problems: list[str]) -> dict[str, Any]:
    try:
        stored = run.read_config()
    except GanlabError as error:
        problems.append(f"config.yaml: {error.mistakes[0].what}")
        return {}
    if stored is None:
        problems.append("config.yaml: missing; the run's command restores it from the newest checkpoint")
    return stored or {}


def _run_id(run: RunFolder, problems: list[str]) -> str:
    """The run ID of run.json; if that is lost, of the newest manifest that has one."""
    try:
        return run.run_id
    except GanlabError as error:
        problems.append(f"run.json: {error.mistakes[0].what}; its checkpoints cannot be matched to the run")
    checkpoints = Checkpoints(run.checkpoints, "")
    for step in reversed(checkpoints.steps()):
        try:
            run_id = json.loads(read(checkpoints.path(step) / MANIFEST, MAX_MANIFEST)).get("run_id")
        except (GanlabError, ValueError, RecursionError, AttributeError):
            continue
        if isinstance(run_id, str):
            return run_id
    return ""


def _steps(checkpoints: Checkpoints, stored: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Loaded | None]:
    """A row for each checkpoint, and the newest good one."""
    rows, newest, gan = [], None, None
    for step in checkpoints.all_steps():
        folder = checkpoints.path(step)
        row = {"step": step, "state": GOOD, "why": "", "bytes": _size(folder)}
        try:
            loaded = checkpoints.load(step)
            gan = gan or _build_gan(stored, loaded)
            if gan is not None:
                resume.restore(gan, loaded, stored, str(folder))
            newest = loaded
        except OtherRunError as error:
            row |= {"state": OTHER, "why": error.mistakes[0].what}
        except (CheckpointError, EnvError) as error:
            what, where = error.mistakes[0].what, Path(error.mistakes[0].where)
            name = f"{where.name}: " if where.parent == folder else ""
            row |= {"state": DAMAGED, "why": f"{name}{what}"}
        rows.append(row)
    return rows, newest


def _build_gan(stored: Mapping[str, Any], loaded: Loaded) -> GAN | None:
    """The GAN that the config builds, to check a checkpoint against; None if it cannot be built."""
    import torch

    from ganlab.training.build import build_gan, stored_shape

    try:
        e = compose.build(compose.reopen(stored))
        classes = int(loaded[2].get("num_classes", 0))
        random = torch.default_generator.get_state()
        gan = build_gan(e, torch.device("cpu"), classes, stored_shape(e, loaded[2]))
        torch.default_generator.set_state(random)
    except (ConfigError, DataError, EnvError, TypeError, ValueError):
        return None
    return gan


def _compare_config(
    run: RunFolder, newest: Loaded, stored: Mapping[str, Any], problems: list[str], notes: list[str]
) -> None:
    """Compare the config of the newest checkpoint with that of the folder."""
    identity = resume.stored_identity(newest[2])
    config = identity.get("config")
    if not isinstance(config, dict):
        notes.append("the checkpoints predate the record of config, data and machine")
        return
    allowed = {
        c.get("key")
        for c in process.read_json_leniently(run.result).get("changes", ())
        if isinstance(c, dict)
    }
    changes = list(differences(config, dict(stored))) if stored else []
    changes = [d for d in changes if d.key.partition(".")[0] not in FREE and d.key not in allowed]
    problems += [f"config.yaml: {d.key}: step {newest[0]} was made with {d}" for d in changes]


def _metrics(run: RunFolder, problems: list[str], notes: list[str]) -> None:
    """Check ``metrics.jsonl``: complete lines, increasing steps within a kind."""
    try:
        raw = read_regular(run.metrics, MAX_BYTES)
    except FileNotFoundError:
        notes.append("metrics.jsonl: missing")
        return
    except OSError as error:
        problems.append(f"metrics.jsonl: cannot be read ({error.strerror})")
        return
    records, last = read_metrics(run.metrics), dict[str, int]()
    lost = len(raw.splitlines()) - len(records)
    if lost == 1 and not raw.endswith(b"\n"):
        notes.append("metrics.jsonl: the last line is incomplete; the next start drops it")
    elif lost:
        problems.append(f"metrics.jsonl: {lost} lines are not records")
    for record in records:
        if record["step"] <= last.get(record["kind"], -1):
            problems.append(f"metrics.jsonl: step {record['step']} of {record['kind']} is out of order")
            break
        last[record["kind"]] = record["step"]
    notes.append(f"metrics.jsonl: {len(records)} records up to step {max(last.values(), default=0)}")


def _leftovers(
    run: RunFolder, rows: Sequence[Mapping[str, Any]], problems: list[str], notes: list[str]
) -> None:
    """Report files left by a kill, a quarantine or ``resume=``, and a missing last or best checkpoint."""
    for folder in (run.checkpoints, run.path):
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        for name in names:
            if QUARANTINED.fullmatch(name) or ASIDE.fullmatch(name):
                what = "damaged, quarantined" if QUARANTINED.fullmatch(name) else "set aside"
                notes.append(f"{name}: {what}; it may be deleted")
            elif LEFTOVER.fullmatch(name) or STALE_FILE.fullmatch(name):
                notes.append(f"{name}: left by a killed process; the next start removes it")
            elif folder_module.PLACE.fullmatch(name):
                notes.append(f"{name}: an earlier run, set aside by resume=never")
            elif name == folder_module.NOTE:
                notes.append(f"{name}: resume=never was interrupted; the next start finishes it")
            elif folder is run.checkpoints and not re.fullmatch(r"step-\d{9,18}", name):
                notes.append(f"{name}: not ganlab's")
    try:
        result = read_json(run.result) or {}
        best = ((result.get("scores") or {}).get("best") or {}).get("step")
        if rows and result.get("status") == "finished" and not run.finished(result):
            step = result.get("step")
            problems.append(
                f"result.json: says finished at step {step}, but there is no checkpoint at that step"
            )
    except (DataError, AttributeError):
        notes.append("result.json: damaged; the next start rewrites it")
        return
    if best is not None and best not in [row["step"] for row in rows]:
        notes.append(f"result.json: the checkpoint of the best score, step {best}, is missing")


def _size(folder: Path) -> int:
    files = (e for e in os.scandir(folder) if e.is_file(follow_symlinks=False))
    return sum(e.stat(follow_symlinks=False).st_size for e in files)


def report_lines(run: Mapping[str, Any]) -> list[str]:
    """The printed lines of a run."""
    lines = [f"{run['run']}: {'damaged' if run['problems'] else 'OK'}"]
    for row in run["checkpoints"]:
        why = f": {row['why']}" if row["why"] else f", {row['bytes'] / 1e6:.3f} MB"
        lines.append(f"  step {row['step']}  {row['state']}{why}")
    lines += [f"  problem  {text}" for text in run["problems"] if not text.startswith("step ")]
    return [*lines, *(f"  note  {text}" for text in run["notes"])]


def _mistake(run: Mapping[str, Any]) -> Mistake:
    good = [row["step"] for row in run["checkpoints"] if row["state"] == GOOD]
    more = f" (and {len(run['problems']) - 1} more)" if len(run["problems"]) > 1 else ""
    fix = f"the newest good checkpoint is step {good[-1]}" if good else "resume=never starts over"
    return Mistake(run["run"], f"{run['problems'][0]}{more}", fix)
