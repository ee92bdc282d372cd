"""Provenance of a run: versions, commit, machine, and their changes since a checkpoint."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ganlab.data.base import SampleSet
from ganlab.experiment import Experiment
from ganlab.runs.naming import config_hash
from ganlab.system.environment import redact
from ganlab.system.files import to_strict_json
from ganlab.system.hardware import device_name
from ganlab.system.paths import PACKAGE


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that can affect the numbers."""
    installed: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("ganlab", "torchvision", "numpy", "torch-fidelity", "hydra-core"):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = None
    return installed


def git_revision() -> str | None:
    """Commit of the checkout that ganlab runs from, with ``+changed`` for local edits; None from a wheel."""
    if not (PACKAGE.parent / ".git").exists():
        return None

    def git(*args: str) -> str:
        command = ["git", "-C", str(PACKAGE.parent), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changed" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


MOVING = ("python", "torch", "numpy", "ganlab")  # versions that can affect training
PLACES = ("device", "threads", "world_size", "deterministic", "engine", "bf16")


def identity(
    e: Experiment, config: Mapping[str, Any], device: torch.device, bf16: bool, images: SampleSet, run_id: str
) -> dict[str, Any]:
    """The run's config, data and machine, as plain values for ``state.json``."""
    data = {"name": images.name, "split": images.split, "images": len(images)}
    return {
        "run_id": run_id,
        "config": to_strict_json(config),
        "config_hash": config_hash(config),
        "seed": e.seed,
        "versions": _versions(),
        "git": _revision(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "world_size": world_size(),
        "deterministic": e.deterministic,
        "engine": e.engine,
        "bf16": bf16,
        "data": {**redact(data), "fingerprint": images.fingerprint},
    }


def world_size() -> int:
    """Processes that train this run together."""
    group = torch.distributed
    return group.get_world_size() if group.is_available() and group.is_initialized() else 1


def changed(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Changes that can break bit identity, as ``torch 2.14.0, now 2.15.0``; old checkpoints record fewer."""
    return [f"{name} {old}, now {new}" for name, old, new in _pairs(was, now) if old != new]


def _pairs(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    recorded = was.get("versions")
    before: Mapping[str, Any] = recorded if isinstance(recorded, Mapping) else {}
    yield from ((name, before[name], now["versions"].get(name)) for name in MOVING if name in before)
    yield from ((name, was[name], now[name]) for name in PLACES if name in was)


@functools.cache
def _versions() -> dict[str, str | None]:
    return versions()


@functools.cache
def _revision() -> str | None:
    return git_revision()
