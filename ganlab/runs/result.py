"""``result.json``: a run's description, progress, scores and cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ganlab.data.base import SampleSet
from ganlab.distributed import collectives
from ganlab.errors import DataError
from ganlab.evaluation.scores import Scores, is_better
from ganlab.experiment import Experiment, method_name
from ganlab.runs.folder import RunFolder
from ganlab.runs.provenance import git_revision, now, versions
from ganlab.system.environment import redact
from ganlab.system.files import read_json, write_json
from ganlab.system.hardware import device_name, peak_memory_mb

log = logging.getLogger("ganlab")
PRIORITY = ("fid", "kid", "is")  # which score picks the best checkpoint, where a run has several


def score_entry(scores: Scores, every_class: bool = False) -> dict[str, Any]:
    """Scores as an entry of ``result.json``: step, values, the full protocol and its id.

    Group scores also have ``details`` with their own protocol and id; those averaged over classes include
    extremes, median and worst classes, and with ``every_class`` each class's value.
    """
    hidden = () if every_class else ("per_class",)
    details = {
        name: {k: v for k, v in entry.items() if k not in hidden} for name, entry in scores.details.items()
    }
    return {
        "step": scores.step,
        "values": scores.values,
        "protocol": scores.record,
        "protocol_id": scores.protocol_id,
        "seconds": round(scores.seconds, 3),
        **({"details": details} if details else {}),
        **({"among_real": scores.among_real} if scores.among_real else {}),
    }


def ranking_score(better: Mapping[str, str]) -> tuple[str, str] | None:
    """(name, direction) of the score that picks the best checkpoint; None without scores."""
    order = sorted(better, key=lambda n: next((i for i, p in enumerate(PRIORITY) if n.split("_")[0] == p), 9))
    return (order[0], better[order[0]]) if order else None


def improves(
    new: Mapping[str, float | None], old: Mapping[str, float | None] | None, better: Mapping[str, str]
) -> bool:
    """Whether ``new`` beats ``old`` by the leading score. None never wins, and is always beaten."""
    lead = ranking_score(better)
    if lead is None or (value := new.get(lead[0])) is None:
        return False
    before = old.get(lead[0]) if old else None
    return before is None or is_better(value, before, lead[1])


def format_scores(values: Mapping[str, float | None]) -> str:
    """``fid_cifar 12.3, is_cifar 7.41 +- 0.05`` on one line."""
    parts = []
    for name, value in values.items():
        if "_std" in name:
            continue
        stem, _, suffix = name.partition("_")
        spread = values.get(f"{stem}_std" + (f"_{suffix}" if suffix else ""))
        parts.append(
            f"{name} "
            + ("none" if value is None else f"{value:.4g}")
            + (f" +- {spread:.2g}" if spread else "")
        )
    return ", ".join(parts)


def summary_line(result: Mapping[str, Any]) -> str:
    """The scores of a result, last and best, on one line."""
    scores = result.get("scores", {})
    last, best = scores.get("last"), scores.get("best")
    if not last:
        return "no scores"
    text = f"step {last['step']}: {format_scores(last['values'])}"
    if best and best["step"] != last["step"]:
        text += f"; best at step {best['step']}: {format_scores(best['values'])}"
    text += f" (protocol {last['protocol'].get('protocol')} {last['protocol_id']})"
    share = result.get("eval_share")
    return text if share is None else f"{text}; evaluation {share:.1%} of the time"


def require_scores(progress: Mapping[str, Any]) -> None:
    """Raise ValueError unless the saved scores look like those of ``score_entry``."""
    for key in ("last", "best"):
        entry = progress.get(key)
        if entry is not None and not (type(entry["step"]) is int and isinstance(entry["values"], dict)):
            raise ValueError(f"progress.{key} is not an evaluation")


class RunRecord:
    """Writes ``result.json`` of the run in ``folder``.

    ``progress``: plain values saved in checkpoints: ``wall_s``, ``train_s`` and ``eval_s`` (seconds, earlier
    processes included), ``evaluated`` (the step of the last evaluation, -1: none), ``last`` and ``best``
    (score entries), and values added by the trainer. ``final``: the final scores, which replace ``last`` and
    ``best``.
    """

    def __init__(self, folder: RunFolder, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.began = time.perf_counter()
        self.progress: dict[str, Any] = {"wall_s": 0.0, "train_s": 0.0, "eval_s": 0.0}
        self.progress |= {"evaluated": -1, "last": None, "best": None}
        self.final: dict[str, Any] = {}
        self.result: dict[str, Any] = {}
        self.begun_s = 0.0
        self.engine: dict[str, Any] = {}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Restore the progress saved in a checkpoint."""
        self.progress |= progress
        self.begun_s = float(self.progress["wall_s"])

    def identify(
        self,
        e: Experiment,
        num_classes: int,
        parameters: Mapping[str, int],
        choices: Mapping[str, Any],
        images: SampleSet,
        step: int,
    ) -> None:
        """Fill in the constant part: a summary of the config, the machine, the versions."""
        names, team = list(e.normalization), collectives.current()
        ranks = {"size": team.size, "backend": team.backend, "sync_bn": e.sync_bn}
        before = read_result(self.folder.result)
        if before is None:
            log.warning("%s: was damaged; rewritten", self.folder.result)
            before = {}
        self.result = {
            "format": 1,
            "status": "running",
            "name": str(self.folder.path),
            "experiment": choices.get("experiment"),
            "setting": e.setting,
            "method": method_name(names, type(e.loss).__name__, list(e.technique)),
            "dataset": choices.get("dataset", e.dataset.name),
            "architecture": choices.get("architecture", type(e.architecture).__name__.lower()),
            "loss": choices.get("loss", type(e.loss).__name__.lower()),
            "normalization": names,
            **({"technique": list(e.technique)} if e.technique else {}),
            "num_classes": num_classes,
            "seed": e.seed,
            "steps": e.steps,
            "step": step,
            **({"phases": phases} if (phases := [s for s, _ in e.timetable.stretches(e.steps)[1:]]) else {}),
            "scores": {},
            "parameters": dict(parameters),
            "precision": e.precision,
            "device": device_name(self.device),
            **({"ranks": ranks} if team.size > 1 else {}),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "git": git_revision(),
            "data": {"name": images.name, "split": images.split, "images": len(images)},
            "error": None,
            "started": before.get("started") or now(),
        }

    def clock(self) -> None:
        """Update ``wall_s``."""
        self.progress["wall_s"] = self.begun_s + time.perf_counter() - self.began

    @property
    def eval_share(self) -> float:
        """Evaluation's fraction of the run's time so far, the feature pass over real images included."""
        self.clock()
        return round(float(self.progress["eval_s"]) / max(float(self.progress["wall_s"]), 1e-9), 4)

    def write(self, status: str, step: int, error: str | None = None) -> None:
        """Write ``result.json``. Raises EnvError, also if the run's folder is gone."""
        self.folder.require_here()
        self.clock()
        p = self.progress
        scores = self.final or {k: p[k] for k in ("last", "best") if p[k]}
        self.result |= {
            "status": status,
            "error": error,
            "step": step,
            "scores": scores,
            "it_per_s": round(step / p["train_s"], 3) if p["train_s"] else 0.0,
            "wall_s": round(p["wall_s"], 3),
            "eval_share": self.eval_share,
            "engine": self.engine,
            "changes": p.get("changes", []),
            "peak_memory_mb": round(peak_memory_mb(self.device), 1),
            "updated": now(),
        }
        if collectives.current().is_rank_zero:
            write_json(self.folder.result, {**redact(self.result), "status": status})


def read_result(path: Path) -> dict[str, Any] | None:
    """The content of ``result.json``; {} if there is none, None if it is damaged."""
    try:
        result: dict[str, Any] = read_json(path) or {}
        summary_line(result)
        numbers = result.get("step", 0), (result.get("packed") or {}).get("runs", 1)
    except (DataError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return result if all(type(n) is int for n in numbers) else None
