"""From folders to runs: finds run folders, reads what they say of themselves, and never trusts them.

A run is read from ``result.json`` (what it is and scored), ``config.yaml`` (what it was asked to do),
``metrics.jsonl`` (its curves) and ``samples/``. Damaged parts become notes of that run, never a crash; the
files are plain JSON and YAML, bounded in size, and nothing in them is executed or resolved.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from ganlab.errors import DataError
from ganlab.papers import labels
from ganlab.report.read import history
from ganlab.system.files import open_regular
from ganlab.text import clean

MAX_FILE = 8 << 20  # bytes of a result.json or config.yaml
MAX_KEYS = 5000  # of a config
MAX_SCORES = 40
MAX_EVALUATIONS = 100
_TEXTS = {"name": 60, "experiment": 60, "setting": 16, "method": 40, "dataset": 40, "architecture": 40}
_TEXTS |= {"loss": 40, "device": 60, "git": 60, "error": 200, "started": 30, "updated": 30}
STATUSES = ("finished", "running", "stopped", "diverged", "failed")


@dataclass(frozen=True)
class Score:
    """One score of one checkpoint: ``std`` is the metric's own spread (IS: over splits), not over seeds.

    among_real: what other real samples would have, where the run says so.
    """

    checkpoint: str
    step: int | None
    name: str
    value: float
    std: float | None
    protocol: dict[str, Any]
    protocol_id: str
    among_real: float | None = None


@dataclass(eq=False)
class Run:
    """What a report knows of a run. Texts are cleaned; numbers are finite or None; times are in seconds."""

    folder: Path
    shown: str  # the folder, relative to what all runs have in common
    status: str = "unreadable"
    problem: str = ""  # why the run can't be counted at all
    notes: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float | None] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)  # flat: "architecture.width" -> 0.25
    scores: list[Score] = field(default_factory=list)
    curves: dict[tuple[str, str], history.Curve] = field(default_factory=dict)  # (name, protocol id or "")
    train_s: Callable[[int], float | None] = field(
        default=lambda step: None
    )  # at a step, evaluations left out

    def text(self, key: str) -> str:
        return self.texts.get(key, "")

    def number(self, key: str) -> float | None:
        return self.numbers.get(key)

    @property
    def scale(self) -> tuple[float | None, float | None]:
        """Generator updates asked for, and the width factor."""
        steps = _number(self.config.get("steps"))
        width = _number(self.config.get("architecture.width"))
        return self.number("steps") if steps is None else steps, width

    @property
    def head(self) -> str:
        """How D is told the class (``projection``, ``concat``, ``ac``); "" for an unconditional run."""
        head = self.config.get("architecture.head")
        return "" if head in (None, "none") else clean(head, 20)

    @property
    def wide(self) -> bool:
        """Whether D has 1.5 times the channels of SNGAN's ResNet at 32 px, as in its Tables 7 and 8."""
        return self.config.get("architecture.d_channels") == 192

    @property
    def samples(self) -> list[Path]:
        """The sample grids, newest step last."""
        named = (
            (re.fullmatch(r"step-(\d{1,18})\.png", p.name), p) for p in self.folder.glob("samples/*.png")
        )
        return [p for _, p in sorted((int(m[1]), p) for m, p in named if m and not p.is_symlink())]


def collect(paths: Sequence[Path]) -> list[Run]:
    """All runs at or under ``paths``, by folder name, each once; the unreadable ones too.

    Raises DataError for each path that does not exist or has no run.
    """
    folders: dict[Path, None] = {}
    empty = []
    for path in paths:
        found = [path] if _is_run(path) else list(_search(path)) if path.is_dir() else []
        if not found:
            empty.append(path)
        folders |= dict.fromkeys(f.resolve() for f in found)
    if empty:
        where = ", ".join(clean(str(p), 200) for p in empty)
        missing = all(not p.exists() for p in empty)
        what = "there is no such folder" if missing else "no run in it (no result.json)"
        raise DataError(where, what, "give run folders, or a folder that holds some")
    ordered = sorted(folders)
    base = Path(os.path.commonpath(ordered)) if len(ordered) > 1 else ordered[0].parent
    return [
        read(folder, clean(folder.relative_to(base).as_posix() or folder.name, 120)) for folder in ordered
    ]


def _is_run(folder: Path) -> bool:
    """A run folder, even one that was killed before its first result.json."""
    if (folder / "result.json").is_file():
        return True
    return (folder / "config.yaml").is_file() and (
        (folder / "metrics.jsonl").is_file() or (folder / "checkpoints").is_dir()
    )


def _search(top: Path) -> Iterator[Path]:
    """Run folders under ``top``; links are not followed, and runs are not searched for runs."""
    for here, names, _ in os.walk(top):
        if _is_run(Path(here)):
            names.clear()
            yield Path(here)
        names.sort()


def read(folder: Path, shown: str) -> Run:
    """One run folder; what can't be read is said in ``problem`` or ``notes``."""
    run = Run(folder, shown)
    try:
        result = json.loads(_bytes(folder / "result.json"))
        if not isinstance(result, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        run.problem = "no result.json: the run stopped before it wrote one"
        return run
    except (OSError, ValueError, RecursionError) as e:
        run.problem = f"result.json can't be read: {clean(e, 120)}"
        return run
    for key, limit in _TEXTS.items():
        value = result.get(key)
        run.texts[key] = "" if value is None else clean(value, limit)
    normalization = result.get("normalization")
    names = normalization if isinstance(normalization, list) else []
    run.texts["normalization"] = "+".join(clean(n, 30) for n in names[:20])
    run.texts["name"] = Path(run.texts["name"]).name or clean(folder.name, 60)  # no path of this machine
    run.texts["method"] = run.texts["method"] or run.texts["normalization"] or "unknown"
    run.texts["setting"] = run.texts["setting"] or "–"
    for key in ("seed", "steps", "step", "it_per_s", "wall_s", "eval_share", "peak_memory_mb"):
        run.numbers[key] = _number(result.get(key))
    counts = result.get("parameters")
    counts = counts if isinstance(counts, dict) else {}
    for player in ("generator", "discriminator"):
        run.numbers[f"parameters_{player}"] = _number(counts.get(player))
    versions = result.get("versions")
    run.texts["torch"] = clean(versions.get("torch", ""), 30) if isinstance(versions, dict) else ""
    status = clean(result.get("status"), 30)
    run.status = status if status in STATUSES else "failed"
    if status not in STATUSES:
        run.notes.append(f"unknown status {status!r} in result.json")
    _read_config(run)
    run.texts["dataset_path"] = clean(Path(str(run.config.get("dataset.path") or "")).name, 60)
    run.scores = list(_scores(result.get("scores"), run.notes))
    _read_evaluations(run)
    told = history.read(run.folder / "metrics.jsonl", run.notes)
    run.curves, run.train_s = told.curves, told.seconds
    return run


def _bytes(path: Path) -> bytes:
    with open(path, "rb", opener=open_regular) as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"larger than {MAX_FILE >> 20} MB")
    return data


def _number(value: object) -> float | None:
    """A finite number, or None for whatever else a file may hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
        return None
    return float(value) if math.isfinite(value) else None


def _scores(tree: object, notes: list[str]) -> Iterator[Score]:
    """``{last: {step, values, protocol, protocol_id}, best: {...}, ...}``; a value may be a list of such."""
    for checkpoint, nodes in tree.items() if isinstance(tree, dict) else ():
        for node in nodes if isinstance(nodes, list) else [nodes]:
            values = node.get("values") if isinstance(node, dict) else None
            if not isinstance(values, dict):
                continue
            step, protocol = _number(node.get("step")), node.get("protocol")
            protocol = protocol if isinstance(protocol, dict) else {}
            ident = clean(node.get("protocol_id") or _digest(protocol), 24)
            own, among = _own_protocols(node.get("details")), node.get("among_real")
            among = among if isinstance(among, dict) else {}
            for name, value in list(values.items())[:MAX_SCORES]:
                if labels.spread_of(name):
                    continue
                if (v := _number(value)) is None:
                    notes.append(f"{clean(name, 40)} of {clean(checkpoint, 20)} is not a finite number")
                    continue
                std = next((_number(values[k]) for k in values if labels.spread_of(k) == name), None)
                at = None if step is None else int(step)
                told = own.get(name, (protocol, ident))
                yield Score(
                    clean(checkpoint, 20), at, clean(name, 40), v, std, *told, _number(among.get(name))
                )


def _own_protocols(details: object) -> dict[str, tuple[dict[str, Any], str]]:
    """Record and id of the scores that have a protocol of their own (those of classes), by name."""
    found = {}
    for name, told in details.items() if isinstance(details, dict) else ():
        record = told.get("protocol") if isinstance(told, dict) else None
        if isinstance(record, dict):
            found[name] = (record, clean(told.get("protocol_id") or _digest(record), 24))
    return found


def _read_evaluations(run: Run) -> None:
    """Scores by ``ganlab evaluate``: the same checkpoints under other protocols."""
    ends = {s.checkpoint: s.step for s in run.scores}
    there = {(s.checkpoint, s.name, s.protocol_id) for s in run.scores}
    for path in sorted(run.folder.glob("evaluations/*.json"))[:MAX_EVALUATIONS]:
        try:
            told = json.loads(_bytes(path))
            checkpoint, step = clean(told["checkpoint"], 20), _number(told.get("step"))
            if checkpoint not in ends or ends[checkpoint] != step:  # of another step than it is today
                checkpoint = f"step {step:.0f}"
            found = list(_scores({checkpoint: told}, run.notes))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            run.notes.append(f"evaluations/{clean(path.name, 60)} can't be read: {clean(e, 80)}")
            continue
        run.scores += [s for s in found if (s.checkpoint, s.name, s.protocol_id) not in there]


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _read_config(run: Run) -> None:
    """Flatten config.yaml. ``${...}`` stays text: nothing is resolved, least of all the environment."""
    try:
        stack: list[tuple[str, Any]] = [("", yaml.safe_load(_bytes(run.folder / "config.yaml")))]
        while stack:
            where, node = stack.pop()
            if isinstance(node, dict):
                stack += [
                    (f"{where}.{k}" if where else str(k), v) for k, v in list(node.items())[: MAX_KEYS + 1]
                ]
            elif where:
                run.config[where[:200]] = _leaf(node)
            if len(stack) + len(run.config) > MAX_KEYS:  # aliases can unfold to any size
                raise ValueError(f"more than {MAX_KEYS} keys")
    except FileNotFoundError:
        run.notes.append("no config.yaml: what the run was asked to do is unknown")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        run.config = {}
        run.notes.append(f"config.yaml can't be read: {clean(e, 120)}")


def _leaf(node: object) -> object:
    """A config value of bounded size; a list becomes its text."""
    if isinstance(node, list):
        flat = [
            str(v)[:40] if isinstance(v, (bool, float, str)) or _number(v) is not None else "…"
            for v in node[:50]
        ]
        return f"[{', '.join(flat)}]"
    if node is None or isinstance(node, (bool, float)) or _number(node) is not None:
        return node
    return node[:200] if isinstance(node, str) else "…"
