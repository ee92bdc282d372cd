"""Finds run folders and reads them as untrusted input.

A run is read from ``result.json`` (identity and scores), ``config.yaml``, ``metrics.jsonl`` (curves) and
``samples/``. A damaged part becomes a note on its run, never a crash. The files are plain JSON and YAML of
bounded size; nothing in them is executed or resolved.
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
from ganlab.report.read.history import mapping
from ganlab.system.files import open_regular
from ganlab.text import clean

MAX_FILE = 8 << 20  # bytes of a result.json, config.yaml or grid.json
GRID, MAX_CELLS = "grid.json", 5000
MAX_KEYS = 5000  # of a config
MAX_SCORES = 40
MAX_EVALUATIONS = 100
_TEXTS = {"name": 60, "experiment": 60, "setting": 16, "method": 40, "dataset": 40, "architecture": 40}
_TEXTS |= {"loss": 40, "device": 60, "git": 60, "error": 200, "started": 30, "updated": 30}
STATUSES = ("finished", "running", "stopped", "diverged", "failed")


@dataclass(frozen=True)
class Score:
    """One score of one checkpoint: ``std`` is the metric's own spread (IS: over splits), not over seeds.

    among_real: the score of other real samples, where the run records it.
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
    """One run folder. Texts are cleaned; numbers are finite or None; times are in seconds."""

    folder: Path
    label: str  # the folder, relative to the parent that all runs share
    status: str = "unreadable"
    problem: str = ""  # why the run is excluded
    notes: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float | None] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)  # flat: "architecture.width" -> 0.25
    scores: list[Score] = field(default_factory=list)
    curves: dict[tuple[str, str], history.Curve] = field(default_factory=dict)  # (name, protocol id or "")
    train_s: Callable[[int], float | None] = field(default=lambda step: None)  # step -> training time

    def text(self, key: str) -> str:
        return self.texts.get(key, "")

    def number(self, key: str) -> float | None:
        return self.numbers.get(key)

    @property
    def by_seed(self) -> tuple[float, str]:
        """Sort key: the seed, then the folder."""
        return self.number("seed") or 0.0, self.label

    @property
    def seeds(self) -> tuple[float | None, float | None]:
        """Its seed, and that of its labels where they have their own: what runs are averaged over."""
        return self.number("seed"), number(self.config.get("label_seed"))

    @property
    def scale(self) -> tuple[float | None, float | None]:
        """Configured generator updates, and the width factor."""
        steps = number(self.config.get("steps"))
        width = number(self.config.get("architecture.width"))
        return self.number("steps") if steps is None else steps, width

    @property
    def head(self) -> str:
        """D's conditional head (``projection``, ``concat``, ``ac``); "" for an unconditional run."""
        head = self.config.get("architecture.head")
        return "" if head in (None, "none") else clean(head, 20)

    @property
    def wide(self) -> bool:
        """Whether D has 1.5 times the channels of SNGAN's ResNet at 32 px, as in its Tables 7 and 8."""
        return self.config.get("architecture.d_channels") == 192

    @property
    def labels(self) -> int | None:
        """Labelled images of a semi-supervised run; None of another."""
        per_class = number(self.config.get("labelled_per_class"))
        classes = number(self.config.get("architecture.classes"))
        return int(per_class * classes) if per_class and classes else None

    def samples(self, suffix: str = "png") -> dict[int, Path]:
        """The sample grids (or texts) by step, newest last."""
        pattern = re.compile(rf"step-(\d{{1,18}})\.{suffix}")
        matches = ((pattern.fullmatch(p.name), p) for p in self.folder.glob(f"samples/*.{suffix}"))
        return dict(sorted((int(m[1]), p) for m, p in matches if m and not p.is_symlink()))

    def note_unreadable(self, path: Path, error: Exception) -> None:
        self.notes.append(f"samples/{clean(path.name, 40)} can't be read: {clean(error, 80)}")


def collect(paths: Sequence[Path]) -> list[Run]:
    """All runs at or under ``paths``, each once, sorted by folder; unreadable runs included.

    Raises DataError that names every path that does not exist or has no run.
    """
    folders: dict[Path, None] = {}
    empty = []
    for path in paths:
        matches = [path] if _is_run(path) else [*_search(path), *_listed(path)]
        if not matches:
            empty.append(path)
        folders |= dict.fromkeys(f.resolve() for f in matches)
    if empty:
        where = ", ".join(clean(str(p), 200) for p in empty)
        missing = all(not p.exists() for p in empty)
        problem = "no such folder" if missing else "contains no run (no result.json)"
        raise DataError(where, problem, "name run folders, or a folder that contains some")
    ordered = sorted(folders)
    base = Path(os.path.commonpath(ordered)) if len(ordered) > 1 else ordered[0].parent
    return [
        read(folder, clean(folder.relative_to(base).as_posix() or folder.name, 120)) for folder in ordered
    ]


def _is_run(folder: Path) -> bool:
    """Whether this is a run folder, even of a run killed before its first result.json."""
    if (folder / "result.json").is_file():
        return True
    return (folder / "config.yaml").is_file() and (
        (folder / "metrics.jsonl").is_file() or (folder / "checkpoints").is_dir()
    )


def _search(top: Path) -> Iterator[Path]:
    """Run folders under ``top``; symlinks are not followed, and run folders are not searched further."""
    for here, names, _ in os.walk(top):
        if _is_run(Path(here)):
            names.clear()
            yield Path(here)
        names.sort()


def _listed(folder: Path) -> list[Path]:
    """Run folders elsewhere that the folder's ``grid.json`` lists, as ``ganlab train -m`` records them."""
    try:
        cells = grid_cells(read_object(folder / GRID))
    except (OSError, ValueError, RecursionError):
        return []  # reported by ``grids.read``
    return [run for cell in cells if _is_run(run := cell_folder(folder, cell))]


def grid_cells(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of the content of a ``grid.json``."""
    entries = record.get("cells")
    return [e for e in entries if isinstance(e, dict)][:MAX_CELLS] if isinstance(entries, list) else []


def cell_folder(grid: Path, cell: dict[str, Any]) -> Path:
    """The run folder of a cell of the grid in the folder ``grid``."""
    return Path(os.path.normpath(grid.resolve() / str(cell.get("run") or cell.get("name") or "")[:400]))


def read(folder: Path, label: str) -> Run:
    """Read one run folder; what can't be read is reported in ``problem`` or ``notes``."""
    run = Run(folder, label)
    try:
        result = read_object(folder / "result.json")
    except FileNotFoundError:
        run.problem = "no result.json: the run ended before writing one"
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
        run.numbers[key] = number(result.get(key))
    for player in ("generator", "discriminator"):
        run.numbers[f"parameters_{player}"] = number(mapping(result.get("parameters")).get(player))
    run.texts["torch"] = clean(mapping(result.get("versions")).get("torch", ""), 30)
    status = clean(result.get("status"), 30)
    run.status = status if status in STATUSES else "failed"
    if status not in STATUSES:
        run.notes.append(f"result.json: unknown status {status!r}, counted as failed")
    _read_config(run)
    run.texts["dataset_path"] = clean(Path(str(run.config.get("dataset.path") or "")).name, 60)
    run.scores = list(_scores(result.get("scores"), run.notes))
    _read_evaluations(run)
    summary = history.read(run.folder / "metrics.jsonl", run.notes)
    run.curves, run.train_s = summary.curves, summary.seconds
    return run


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size. Raises OSError, ValueError, RecursionError."""
    content = json.loads(_bytes(path))
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _bytes(path: Path) -> bytes:
    with open(path, "rb", opener=open_regular) as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"larger than {MAX_FILE >> 20} MB")
    return data


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
        return None
    return float(value) if math.isfinite(value) else None


def _scores(tree: object, notes: list[str]) -> Iterator[Score]:
    """Parse ``{last: {step, values, protocol, protocol_id}, best: {...}}``; each value may also be a list."""
    for checkpoint, nodes in mapping(tree).items():
        for node in map(mapping, nodes if isinstance(nodes, list) else [nodes]):
            values, protocol = mapping(node.get("values")), mapping(node.get("protocol"))
            ident = clean(node.get("protocol_id") or _digest(protocol), 24)
            own_protocols, among_real = _own_protocols(node.get("details")), mapping(node.get("among_real"))
            step = number(node.get("step"))
            at = None if step is None else int(step)
            for name, value in list(values.items())[:MAX_SCORES]:
                if labels.spread_of(name):
                    continue
                if (v := number(value)) is None:
                    notes.append(
                        f"{clean(name, 40)} of the {clean(checkpoint, 20)} checkpoint is not a finite number"
                    )
                    continue
                std = next((number(values[k]) for k in values if labels.spread_of(k) == name), None)
                yield Score(
                    *(clean(checkpoint, 20), at, clean(name, 40), v, std),
                    *own_protocols.get(name, (protocol, ident)),
                    number(among_real.get(name)),
                )


def _own_protocols(details: object) -> dict[str, tuple[dict[str, Any], str]]:
    """Score -> protocol record and id, for the scores (those of classes) that have their own protocol."""
    protocols = {}
    for name, node in mapping(details).items():
        if isinstance(record := mapping(node).get("protocol"), dict):
            protocols[name] = (record, clean(node.get("protocol_id") or _digest(record), 24))
    return protocols


def _read_evaluations(run: Run) -> None:
    """Add the scores that ``ganlab evaluate`` computed: the same checkpoints under other protocols."""
    steps = {s.checkpoint: s.step for s in run.scores}
    present = {(s.checkpoint, s.name, s.protocol_id) for s in run.scores}
    for path in sorted(run.folder.glob("evaluations/*.json"))[:MAX_EVALUATIONS]:
        try:
            record = json.loads(_bytes(path))
            checkpoint, step = clean(record["checkpoint"], 20), number(record.get("step"))
            if checkpoint not in steps or steps[checkpoint] != step:  # the run has moved on since
                checkpoint = f"step {step:.0f}"
            scores = list(_scores({checkpoint: record}, run.notes))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            run.notes.append(f"evaluations/{clean(path.name, 60)} can't be read: {clean(e, 80)}")
            continue
        run.scores += [s for s in scores if (s.checkpoint, s.name, s.protocol_id) not in present]


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _read_config(run: Run) -> None:
    """Flatten config.yaml. ``${...}`` stays text: nothing is resolved, not even environment variables."""
    try:
        stack: list[tuple[str, Any]] = [("", yaml.safe_load(_bytes(run.folder / "config.yaml")))]
        while stack:
            prefix, node = stack.pop()
            if isinstance(node, dict):
                items = list(node.items())[: MAX_KEYS + 1]
                stack += [(f"{prefix}.{k}" if prefix else str(k), v) for k, v in items]
            elif prefix:
                run.config[prefix[:200]] = _leaf(node)
            if len(stack) + len(run.config) > MAX_KEYS:  # aliases can unfold to any size
                raise ValueError(f"more than {MAX_KEYS} keys")
    except FileNotFoundError:
        run.notes.append("no config.yaml: the run's configuration is unknown")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        run.config = {}
        run.notes.append(f"config.yaml can't be read: {clean(e, 120)}")


def _leaf(node: object) -> object:
    """A config value of bounded size; a list becomes its text."""
    if isinstance(node, list):
        items = [
            str(v)[:40] if isinstance(v, (bool, float, str)) or number(v) is not None else "…"
            for v in node[:50]
        ]
        return f"[{', '.join(items)}]"
    if node is None or isinstance(node, (bool, float)) or number(node) is not None:
        return node
    return node[:200] if isinstance(node, str) else "…"
