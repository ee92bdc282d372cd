"""The default folder of a run, named after its config, and the hash of a config. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ganlab.runs.renamed import to_first
from ganlab.system.environment import redact
from ganlab.system.files import to_strict_json

PARTS = ("dataset", "architecture", "normalization", "loss")  # name a run's folder without ``experiment``

# Keys that may change on resume: none of them affects what is trained.
_LENGTH = frozenset({"steps", "eval_every", "eval_start", "sample_every", "keep_checkpoints"})
_LOCAL = frozenset(
    {"run_dir", "device", "threads", "engine", "log_every", "save_every", "spectral_every", "keep_every"}
    | {"data_memory_gb", "resume", "resume_allow", "validation", "validation_n"}
)
FREE = _LENGTH | _LOCAL

# Keys that do not enter the folder's name: the run is the same on another device.
UNNAMED = _LOCAL | {"experiment", "setting", "seed"}


def run_path(choices: Mapping[str, Any], overrides: Sequence[str], setting: str, seed: int) -> Path:
    """``outputs/<experiment or parts>/<setting>-s<seed>[-<hash of other overrides>]``, without the clock."""
    experiment = choices.get("experiment")
    parts = [choices.get(part) for part in PARTS]
    named = UNNAMED if experiment else UNNAMED.union(PARTS)
    name = experiment or "-".join("+".join(p) if isinstance(p, (list, tuple)) else str(p) for p in parts)
    others = sorted(o for o in overrides if o.lstrip("+~").split("=")[0] not in named)
    tail = f"-{hashlib.sha256(chr(10).join(others).encode()).hexdigest()[:8]}" if others else ""
    return Path("outputs") / str(name).replace("/", "-") / f"{redact(setting)}-s{seed}{tail}"


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash (16 hex digits) of the config without the keys that do not affect training."""
    kept = {k: v for k, v in to_first(to_strict_json(config)).items() if k not in FREE}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
