"""A training run as this process was launched: alone, or as one of many by torchrun or a launcher like it.

Imports nothing heavy but inside.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from ganlab.errors import ConfigError


def many_ranks() -> bool:
    """Whether RANK and WORLD_SIZE are set, and there is more than one."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "").strip() not in ("", "1")


def require_alone(command: str, rest: Sequence[str]) -> None:
    """Raise ConfigError for a command of one process, which each of many ranks would do once more."""
    sweeps = command == "train" and any(word in ("-m", "--multirun") for word in rest)
    if many_ranks() and (command != "train" or sweeps):
        what = f"runs as one process, and this is one of {os.environ['WORLD_SIZE']}"
        error = ConfigError("train -m" if sweeps else command, what, "start it without torchrun")
        error.silent = os.environ["RANK"] != "0"
        raise error


def train(overrides: list[str], config_dirs: list[str]) -> int:
    """``ganlab train`` on the command line's overrides. Returns the exit code; raises as ``loop.train``."""
    if not many_ranks():
        return _train(overrides, config_dirs)
    from ganlab.distributed.session import joined

    with joined() as team:
        return _train(overrides, config_dirs, team.agree_on_errors)


def _train(overrides: list[str], dirs: list[str], together: Callable[[], Any] = nullcontext) -> int:
    from ganlab.config import compose

    with together():
        composed = compose.compose(overrides, dirs)
        experiment = compose.build(composed)
    from ganlab.training import trainer

    return int(trainer.train(experiment, composed.saved, composed.choices, composed.overrides) or 0)
