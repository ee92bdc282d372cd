"""What a checkpoint says of the run and the machine that made it, and what is not the same any more."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ganlab.data.base import ImageSet
from ganlab.disk import strict
from ganlab.environment import unread
from ganlab.experiment import Experiment
from ganlab.facts import FREE, device_name, git_revision, versions
from ganlab.game import Game

MOVING = ("python", "torch", "numpy", "ganlab")  # versions that can move a number of training
PLACES = ("device", "threads", "world_size", "deterministic", "engine", "bf16")


def identity(
    e: Experiment, config: Mapping[str, Any], game: Game, images: ImageSet, run_id: str
) -> dict[str, Any]:
    """The run's config, data and machine, as plain values for ``state.json``."""
    data = {"name": images.name, "split": images.split, "images": len(images)}
    return {
        "run_id": run_id,
        "config": strict(config),
        "config_hash": config_hash(config),
        "seed": e.seed,
        "versions": _versions(),
        "git": _revision(),
        "device": device_name(game.device),
        "threads": torch.get_num_threads(),
        "world_size": world_size(),
        "deterministic": e.deterministic,
        "engine": e.engine,
        "bf16": game.bf16,
        "data": {**unread(data), "fingerprint": images.fingerprint},
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """Of what is trained: 16 hex digits over the config without the keys that change nothing of it."""
    kept = {k: v for k, v in strict(config).items() if k not in FREE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def world_size() -> int:
    """Processes that train this run together."""
    group = torch.distributed
    return group.get_world_size() if group.is_available() and group.is_initialized() else 1


def changed(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``torch 2.14.0, now 2.15.0`` for all that bit-identity hangs on; older checkpoints tell less of it."""
    return [f"{name} {old}, now {new}" for name, old, new in _pairs(was, now) if old != new]


def _pairs(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    told = was.get("versions")
    before: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    yield from ((name, before[name], now["versions"].get(name)) for name in MOVING if name in before)
    yield from ((name, was[name], now[name]) for name in PLACES if name in was)


@functools.cache
def _versions() -> dict[str, str | None]:
    return versions()


@functools.cache
def _revision() -> str | None:
    return git_revision()
