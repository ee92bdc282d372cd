"""``ganlab check``: whether a run could go on, without going on: every checkpoint is read and verified.

Writes nothing, and needs no data set: safe beside a running run.
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

DEPTH = 4  # folders below the one that is named
GOOD, DAMAGED, OTHER = "good", "damaged", "other run's"


def check(places: Sequence[str], as_json: bool = False) -> int:
    """Print a line for each checkpoint of the runs at or below ``places``; return 0 if all are sound.

    Raises DataError for a place without runs; CheckpointError naming each run that has a damaged checkpoint,
    none at all, or metrics or a config that can't be right.
    """
    runs = []
    for place in map(Path, places):
        found = list(_runs(place, DEPTH)) if place.is_dir() else []
        if not found:
            fix = "name a run folder, or a folder that holds some"
            raise DataError(str(place), "holds no run" if place.is_dir() else "is no folder", fix)
        runs += [inspect_run(folder) for folder in dict.fromkeys(found)]
    if as_json:
        print(json.dumps({"ok": not any(r["problems"] for r in runs), "runs": runs}, indent=1))
    else:
        print(printable("\n".join(line for run in runs for line in report_lines(run))))
    if wrong := [r for r in runs if r["problems"]]:
        raise CheckpointError([m for run in wrong for m in _mistakes(run)])
    return 0


def _runs(root: Path, depth: int) -> Iterator[Path]:
    if any((root / name).exists() for name in ("run.json", "checkpoints", "config.yaml")):
        yield root
    elif depth:
        for entry in sorted(os.scandir(root), key=lambda e: e.name):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _runs(Path(entry), depth - 1)


def inspect_run(folder: Path) -> dict[str, Any]:
    """What is there: ``checkpoints`` (step, state, why, bytes), ``problems`` and ``notes``, both texts."""
    run, problems, notes = RunFolder(folder), list[str](), list[str]()
    if owner := owner_of(folder / ".lock"):
        notes.append(f"in use by {owner}: what it is writing now is not told")
    stored = _config(run, problems)
    run_id = _run_id(run, problems)
    checkpoints = Checkpoints(run.checkpoints, run_id)
    rows, newest = _steps(checkpoints, stored)
    for row in rows:
        if row["state"] not in (GOOD, OTHER):
            problems.append(f"step {row['step']}: {row['why']}")
    if not any(row["state"] == GOOD for row in rows):
        problems.append("there is no checkpoint to go on from")
    if newest is not None:
        _same_config(run, newest, stored, problems, notes)
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
        problems.append(
            "config.yaml: is missing; the run's command writes it anew from the newest checkpoint"
        )
    return stored or {}


def _run_id(run: RunFolder, problems: list[str]) -> str:
    """As run.json has it; if that is lost, as the newest manifest that names one has it."""
    try:
        return run.run_id
    except GanlabError as error:
        problems.append(f"run.json: {error.mistakes[0].what}: its checkpoints are not known as its own")
    checkpoints = Checkpoints(run.checkpoints, "")
    for step in reversed(checkpoints.steps()):
        try:
            found = json.loads(read(checkpoints.path(step) / MANIFEST, MAX_MANIFEST)).get("run_id")
        except (GanlabError, ValueError, RecursionError, AttributeError):
            continue
        if isinstance(found, str):
            return found
    return ""


def _steps(checkpoints: Checkpoints, stored: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Loaded | None]:
    """A row for each step's folder, and the newest good one."""
    rows, newest, game = [], None, None
    for step in checkpoints.all_steps():
        folder = checkpoints.path(step)
        row = {"step": step, "state": GOOD, "why": "", "bytes": _size(folder)}
        try:
            loaded = checkpoints.load(step)
            game = game or _game(stored, loaded)
            if game is not None:
                resume.restore(game, loaded, stored, str(folder))
            newest = loaded
        except OtherRunError as error:
            row |= {"state": OTHER, "why": error.mistakes[0].what}
        except (CheckpointError, EnvError) as error:
            what, where = error.mistakes[0].what, Path(error.mistakes[0].where)
            name = f"{where.name}: " if where.parent == folder else ""
            row |= {"state": DAMAGED, "why": f"{name}{what}"}
        rows.append(row)
    return rows, newest


def _game(stored: Mapping[str, Any], loaded: Loaded) -> GAN | None:
    """The players that the config builds, to see whether a checkpoint fits them; None if it builds none."""
    import torch

    from ganlab.training.build import build_gan, stored_shape

    try:
        e = compose.build(compose.reopen(stored))
        classes = int(loaded[2].get("num_classes", 0))
        random = torch.default_generator.get_state()
        game = build_gan(e, torch.device("cpu"), classes, stored_shape(e, loaded[2]))
        torch.default_generator.set_state(random)
    except (ConfigError, DataError, EnvError, TypeError, ValueError):
        return None
    return game


def _same_config(
    run: RunFolder, newest: Loaded, stored: Mapping[str, Any], problems: list[str], notes: list[str]
) -> None:
    """The config that the newest checkpoint was made with, beside that of the folder."""
    identity = resume.stored_identity(newest[2])
    was = identity.get("config")
    if not isinstance(was, dict):
        notes.append("its checkpoints are older than the record of config, data and machine in them")
        return
    allowed = {
        c.get("key")
        for c in process.read_json_leniently(run.result).get("changes", ())
        if isinstance(c, dict)
    }
    found = list(differences(was, dict(stored))) if stored else []
    found = [d for d in found if d.key.partition(".")[0] not in FREE]
    found = [d for d in found if d.key not in allowed]
    problems += [f"config.yaml: {d.key}: step {newest[0]} was made with {d}" for d in found]


def _metrics(run: RunFolder, problems: list[str], notes: list[str]) -> None:
    """``metrics.jsonl``: whole lines, steps that only grow within a kind."""
    try:
        raw = read_regular(run.metrics, MAX_BYTES)
    except FileNotFoundError:
        notes.append("metrics.jsonl: there is none")
        return
    except OSError as error:
        problems.append(f"metrics.jsonl: can't read ({error.strerror})")
        return
    records, last = read_metrics(run.metrics), dict[str, int]()
    lost = len(raw.splitlines()) - len(records)
    if lost == 1 and not raw.endswith(b"\n"):
        notes.append("metrics.jsonl: its last line is torn; the next start drops it")
    elif lost:
        problems.append(f"metrics.jsonl: {lost} lines are no records")
    for record in records:
        if record["step"] <= last.get(record["kind"], -1):
            problems.append(f"metrics.jsonl: step {record['step']} of {record['kind']} is not in order")
            break
        last[record["kind"]] = record["step"]
    notes.append(f"metrics.jsonl: {len(records)} records up to step {max(last.values(), default=0)}")


def _leftovers(
    run: RunFolder, rows: Sequence[Mapping[str, Any]], problems: list[str], notes: list[str]
) -> None:
    """What a kill, a quarantine or ``resume=`` has left; a last or best checkpoint that is gone."""
    for place in (run.checkpoints, run.path):
        names = sorted(os.listdir(place)) if place.is_dir() else []
        for name in names:
            if QUARANTINED.fullmatch(name) or ASIDE.fullmatch(name):
                what = "quarantined, damaged" if QUARANTINED.fullmatch(name) else "set aside"
                notes.append(f"{name}: {what}; it may be deleted")
            elif LEFTOVER.fullmatch(name) or STALE_FILE.fullmatch(name):
                notes.append(f"{name}: left by a process that was killed; the next start removes it")
            elif folder_module.PLACE.fullmatch(name):
                notes.append(f"{name}: an earlier run, set aside by resume=never")
            elif name == folder_module.NOTE:
                notes.append(f"{name}: resume=never was cut short; the next start finishes it")
            elif place is run.checkpoints and not re.fullmatch(r"step-\d{9,18}", name):
                notes.append(f"{name}: none of ganlab's")
    try:
        result = read_json(run.result) or {}
        best = ((result.get("scores") or {}).get("best") or {}).get("step")
        if rows and result.get("status") == "finished" and not run.finished(result):
            step = result.get("step")
            problems.append(f"result.json: says finished at step {step}, and has no checkpoint of that step")
    except (DataError, AttributeError):
        notes.append("result.json: is damaged; the next start writes it anew")
        return
    if best is not None and best not in [row["step"] for row in rows]:
        notes.append(f"result.json: the checkpoint of the best score, step {best}, is not there")


def _size(folder: Path) -> int:
    files = (e for e in os.scandir(folder) if e.is_file(follow_symlinks=False))
    return sum(e.stat(follow_symlinks=False).st_size for e in files)


def report_lines(run: Mapping[str, Any]) -> list[str]:
    """The lines of a run."""
    lines = [f"{run['run']}: {'damaged' if run['problems'] else 'sound'}"]
    for row in run["checkpoints"]:
        why = f": {row['why']}" if row["why"] else f", {row['bytes'] / 1e6:.3f} MB"
        lines.append(f"  step {row['step']}  {row['state']}{why}")
    lines += [f"  problem  {text}" for text in run["problems"] if not text.startswith("step ")]
    return [*lines, *(f"  note  {text}" for text in run["notes"])]


def _mistakes(run: Mapping[str, Any]) -> Iterator[Mistake]:
    good = [row["step"] for row in run["checkpoints"] if row["state"] == GOOD]
    more = f" (and {len(run['problems']) - 1} more)" if len(run["problems"]) > 1 else ""
    fix = f"the newest good one is step {good[-1]}" if good else "resume=never begins anew"
    yield Mistake(run["run"], f"{run['problems'][0]}{more}", fix)
